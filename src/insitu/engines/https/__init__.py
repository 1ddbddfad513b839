"""Federations: a coordinator and sites over mutually authenticated HTTPS (docs/decisions/0018)."""

from insitu.engines.https.engine import Https

__all__ = ["Https"]
