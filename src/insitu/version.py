"""The version number: the one place it is written. Packaging, run records and the wire read it here."""

__version__ = "0.1.0"
