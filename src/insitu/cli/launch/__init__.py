"""``insitu launch``: starts the ranks of a run, here or on a cluster."""

from insitu.cli.launch.command import launch

__all__ = ["launch"]
