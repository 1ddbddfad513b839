"""Numbers in a request's query."""

from __future__ import annotations

from insitu.core.errors import Refusal
from insitu.engines.https.http import Request


def whole_number(request: Request, name: str, usual: int) -> int:
    """A number of the query that is not negative. Raises Refusal BAD_REQUEST where it is anything else."""
    text = request.query.get(name, str(usual))
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Refusal("BAD_REQUEST", f"{name} is {text[:40]!r}: give a whole number")
    return int(text)


def seconds(request: Request, name: str, usual: float, most: float) -> float:
    """Seconds of the query, at most so many. Raises Refusal BAD_REQUEST."""
    text = request.query.get(name)
    if text is None:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refusal("BAD_REQUEST", f"{name} is {text[:40]!r}: give seconds, such as 25")
    return min(value, most)
