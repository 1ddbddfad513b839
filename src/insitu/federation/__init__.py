"""Federations: a coordinator and sites over mutually authenticated HTTPS. ``docs/federations.md`` is the way in."""
