"""Modules that are one layer after another, stepped without autograd: what is done a step is written down by hand."""

from insitu.learners.torch.chain.chain import Chain, chained

__all__ = ["Chain", "chained"]
