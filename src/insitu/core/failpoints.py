"""Named places in the code where a test makes something go wrong. Off, unless a test puts something there."""

from __future__ import annotations


def hit(name: str) -> None:
    """Nothing, outside a test that has asked for a failure at ``name``."""
