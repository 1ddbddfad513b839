"""Configuration files: TOML to typed tables to objects, the one place where text becomes classes.

``load("insitu.toml", ["algorithm.lr=0.05"]).build()`` gives what :func:`insitu.run` takes. There is no registry: a name
is the name of a file (``fedprox``) or code of the user's (``fedfoo.py:FedFoo``), and the keys of a table are the fields
of what it names. ``docs/command-line.md`` is the reference.
"""

from insitu.config.config import Built, Config, RunTable, load, of_tables
from insitu.config.data import DataTable

__all__ = ["Built", "Config", "DataTable", "RunTable", "load", "of_tables"]
