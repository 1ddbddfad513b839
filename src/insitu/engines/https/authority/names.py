"""What a member may be called: a name that is safe in a path, a log line, a certificate and a shell."""

from __future__ import annotations

import re

from insitu.core.errors import Refusal
from insitu.core.federation import ROLES, Role

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def checked_name(name: str) -> str:
    """``name``, where it is one. Raises Refusal BAD_REQUEST."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise Refusal(
            "BAD_REQUEST",
            f"{shown(name)} is no name: take 1 to 63 of a-z, 0-9, '.', '_' and '-', with a letter or digit first",
        )
    return name


def checked_role(role: str) -> Role:
    """``role``, where it is one. Raises Refusal BAD_REQUEST."""
    for known in ROLES:
        if role == known:
            return known
    raise Refusal("BAD_REQUEST", f"{shown(role)} is no role: there are {', '.join(ROLES)}")


def shown(text: object, most: int = 80) -> str:
    """A stranger's text as it may stand in a log line: quoted, ASCII, escaped, at most ``most`` characters of it."""
    text = str(text)
    return ascii(text if len(text) <= most else text[:most] + "…")
