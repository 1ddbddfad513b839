"""Partitions: which examples belong to which client.

Each takes labels [n] (or n) and a number of clients, and returns a list of int64 index arrays: disjoint,
covering all examples, none with fewer than ``least``, ascending within a client, and the same whenever the
seed is.
"""

from insitu.data.partition.by_key import by_key
from insitu.data.partition.dirichlet import dirichlet
from insitu.data.partition.iid import iid
from insitu.data.partition.quantity_skew import quantity_skew
from insitu.data.partition.shards import shards
from insitu.data.summary import Summary, describe

__all__ = ["by_key", "dirichlet", "iid", "quantity_skew", "shards", "describe", "Summary"]
