"""Federations: a coordinator and sites over mutually authenticated HTTPS (docs/decisions/0018)."""
