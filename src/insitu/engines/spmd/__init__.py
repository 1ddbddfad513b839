"""Ranks started by torchrun, SLURM, Ray or ``insitu launch``, each of which runs the same rounds."""

from insitu.engines.spmd.engine import Spmd

__all__ = ["Spmd"]
