"""The demonstration: ``insitu demo``, or ``python -m insitu.demo``. Real data that scikit-learn bundles, a minute."""

from insitu.demo.show import main

__all__ = ["main"]
