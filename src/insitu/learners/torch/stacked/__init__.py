"""The gradient of many clients at once, without a transform: a module whose layers hold one set of weights a lane."""

from insitu.learners.torch.stacked.gradient import Stacked, stacked

__all__ = ["Stacked", "stacked"]
