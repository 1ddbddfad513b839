"""Reading what a request says: its JSON body, and numbers of its query."""

from __future__ import annotations

from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.http import MAX_JSON, Request, parsed


async def body_of(request: Request, *needed: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in the body. Raises Refusal: it is too long, no object, or lacks one of the keys ``needed``."""
    whole = bytearray()
    if request.body is not None:
        async for piece in request.body:
            whole += piece
            if len(whole) > limit:
                raise Refusal("TOO_LARGE", f"the body is longer than the {limit} bytes that it may have")
    value = parsed(bytes(whole)) if whole else {}
    if not isinstance(value, dict):
        raise Refusal("BAD_REQUEST", f"the body is a {type(value).__name__}, and should be an object")
    for key in needed:
        if key not in value:
            raise Refusal("BAD_REQUEST", f"the body lacks the key {key!r}")
    return value


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
