"""A token becomes a folder with a key and a certificate: for sites and operators alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from insitu.core.errors import EngineError
from insitu.core.federation import Role
from insitu.engines.https.authority import Token


class Joined(NamedTuple):
    """Who somebody is from now on, and where the coordinator is."""

    name: str
    role: Role
    urls: tuple[str, ...]


def join(token: str, folder: Path, urls: Sequence[str] = (), proxy: str | None = None) -> Joined:
    """Enrols by a token: ``key.pem``, ``certificate.pem`` and ``authority.pem`` are then in ``folder``.

    urls  where the coordinator is, if not where the token says

    Raises TokenError for a text that is no token, Refusal where the coordinator does not take it, ConfigError where
    the coordinator is another one or the folder is enrolled already, EngineError where nobody can be reached.
    """
    from insitu.engines.https.site.enrolment import enrol

    read = Token.parse(token)
    where = tuple(urls) or read.urls
    try:
        name, role = asyncio.run(enrol(read, folder, where, proxy))
    except OSError as error:
        raise EngineError(
            f"the coordinator cannot be reached: {error}: is it running? Are name and port right?"
        ) from error
    return Joined(name, role, where)
