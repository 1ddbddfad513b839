"""Local worker processes, each with an engine of its own."""

from insitu.engines.processes.engine import Processes

__all__ = ["Processes"]
