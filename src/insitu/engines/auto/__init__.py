"""The fastest engine for a plan, found out while it runs."""

from insitu.engines.auto.engine import Auto

__all__ = ["Auto"]
