"""How updates become a total, one way a file. The default, the weighted mean, is :mod:`insitu.core.mean`."""
