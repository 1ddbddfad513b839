"""Stages that make an update smaller, one way a file. What they have in common is :mod:`insitu.core.compressor`."""
