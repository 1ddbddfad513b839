"""One-time invitations: what an operator sends to a site, by a way that others do not read.

A token says where the coordinator is, which authority it has, who the bearer will be, and a secret. Only the digest of
the secret is kept by the ledger.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from insitu.core.errors import Refusal, TokenError
from insitu.core.federation import Invitation, Role
from insitu.engines.https.authority.names import checked_name, checked_role
from insitu.engines.https.http import parsed

PREFIX = "insitu1."
MAX_TOKEN = 8192
"""The longest token in characters."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{20,200}")


@dataclass(frozen=True)
class Token:
    """An invitation as its bearer sees it.

    urls         ``https://host:port`` of the coordinator; several are tried in turn
    fingerprint  SHA-256 of the authority's certificate (DER)
    secret       at least 120 random bits
    """

    urls: tuple[str, ...]
    fingerprint: str
    secret: str
    name: str
    role: Role

    def __repr__(self) -> str:
        return f"Token(name={self.name!r}, role={self.role!r}, urls={self.urls!r}, secret=…)"

    @classmethod
    def new(cls, urls: Sequence[str], fingerprint: str, name: str, role: str) -> Token:
        """A token with a fresh secret of 256 bits. Raises Refusal BAD_REQUEST for a bad name or role."""
        return cls(
            tuple(checked_url(u) for u in urls), fingerprint, secrets.token_urlsafe(32), checked_name(name),
            checked_role(role),
        )  # fmt: skip

    def text(self) -> str:
        """The token in one line."""
        told = {"u": list(self.urls), "f": self.fingerprint, "s": self.secret, "n": self.name, "r": self.role}
        packed = base64.urlsafe_b64encode(json.dumps(told, separators=(",", ":")).encode())
        return PREFIX + packed.decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Reads a token. Raises TokenError, which says what is wrong with it and never repeats it."""
        text = "".join(text.split()) if len(text) <= 2 * MAX_TOKEN else text  # mail programs break lines
        if len(text) > MAX_TOKEN:
            raise TokenError(f"a token has at most {MAX_TOKEN} characters, and this one {len(text)}: copy it again")
        if not text.startswith(PREFIX):
            version = re.match(r"insitu(\d{1,4})\.", text)
            if version:
                raise TokenError(f"the token is of version {version[1]}, and this insitu reads 1: update one of them")
            raise TokenError(
                f"a token starts with {PREFIX!r}: copy the whole line that `insitu federation invite` wrote"
            )
        try:
            packed = text[len(PREFIX) :].encode("ascii")
            told = parsed(base64.b64decode(packed + b"=" * (-len(packed) % 4), altchars=b"-_", validate=True))
        except (ValueError, Refusal) as error:
            raise TokenError("the token is damaged or cut off: copy it again, as one whole line") from error
        try:
            urls, print_, secret = told["u"], told["f"], told["s"]
            name, role = checked_name(told["n"]), checked_role(told["r"])
            if not isinstance(urls, list) or not 1 <= len(urls) <= 16:
                raise ValueError("urls")
            if _DIGEST.fullmatch(print_) is None or _SECRET.fullmatch(secret) is None:
                raise ValueError("fingerprint or secret")
            return cls(tuple(checked_url(u) for u in urls), print_, secret, name, role)
        except (KeyError, TypeError, ValueError, Refusal) as error:
            raise TokenError(f"the token is not what an invitation holds ({error}): ask for a new one") from error

    def invitation(self, expires: float) -> Invitation:
        """What the ledger keeps of this token."""
        return Invitation(digest_of(self.secret), self.name, self.role, expires)


def digest_of(secret: str) -> str:
    """The digest of a secret, by which the ledger knows it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def checked_url(url: str) -> str:
    """``https://host[:port]`` without a path. Raises ValueError."""
    if not isinstance(url, str) or len(url) > 300 or not url.isascii() or any(c <= " " for c in url):
        raise ValueError("an address is no ASCII text of at most 300 characters")
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
        raise ValueError(f"{url!r} is no address like https://host:8443")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.port == 0:
        raise ValueError(f"{url!r} is no address like https://host:8443")
    return f"https://{parts.netloc}"
