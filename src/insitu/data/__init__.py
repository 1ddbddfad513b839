"""Data and who has it: clients, partitions of one data set into clients, and readers of real data sets."""

from insitu.data.clients import Clients
from insitu.data.dataset import DataSet
from insitu.data.sets import load

__all__ = ["Clients", "DataSet", "load"]
