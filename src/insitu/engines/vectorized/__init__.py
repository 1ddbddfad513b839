"""Many clients at once on one device."""

from insitu.engines.vectorized.engine import Vectorized

__all__ = ["Vectorized"]
