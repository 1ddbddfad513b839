"""Who belongs to a federation, asked and changed by its operators: sites, invitations, revocation, the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from insitu.core.errors import Refusal
from insitu.core.federation import Ledger, Member, Role
from insitu.engines.https.api.numbers import whole_number
from insitu.engines.https.authority.names import checked_name, checked_role
from insitu.engines.https.authority.tokens import Token
from insitu.engines.https.http import Request, Response, Route

LONGEST = 30 * 86400.0
"""The longest that an invitation may be good for, in seconds."""
OPERATOR: tuple[Role, ...] = ("operator",)
READERS: tuple[Role, ...] = ("operator", "viewer")

Maker = Callable[[str, Role], Token]
"""Makes an invitation's token for a name and a role."""


def invite(
    ledger: Ledger, tokens: Maker, name: Any, role: Any, seconds: float, by: str, now: float
) -> tuple[str, float]:
    """Invites someone, and returns the token's text and when it expires.

    Raises Refusal: NAME_TAKEN for a member's name, BAD_REQUEST for one that cannot be a name, or for a time too long.
    """
    name, role = checked_name(name), checked_role(role)
    if not 60 <= seconds <= LONGEST:
        raise Refusal("BAD_REQUEST", f"an invitation is good for a minute to 30 days, not for {seconds:g} s")
    if any(member.name == name and member.revoked is None for member in ledger.members()):
        raise Refusal("NAME_TAKEN", f"{name!r} is enrolled already: revoke it first, or choose another name")
    token, expires = tokens(name, role), now + seconds
    # First, since the two are not one transaction: nothing may be done of which nobody would know.
    ledger.audit([{"at": now, "who": by, "what": "invite", "data": {"name": name, "role": role, "expires": expires}}])
    ledger.invite(token.invitation(expires))
    return token.text(), expires


def revoke(ledger: Ledger, name: Any, by: str, now: float) -> None:
    """Shuts a member out from now on. Raises Refusal NOT_FOUND where there is none of this name."""
    name = checked_name(name)
    if not any(member.name == name and member.revoked is None for member in ledger.members()):
        raise Refusal(
            "NOT_FOUND", f"there is no member {name!r} that could be revoked: see `insitu federation members`"
        )
    ledger.audit([{"at": now, "who": by, "what": "revoke", "data": {"name": name}}])  # first, as above
    ledger.revoke(name, now)


class MembersApi:
    """Answers operators about members.

    contacts  by site: seconds since it was last heard, whether it is connected, and what it is doing
    revoked   told a name after it has been revoked, so that what it is doing can be cut short
    now       the wall clock
    """

    def __init__(
        self,
        ledger: Ledger,
        tokens: Maker,
        contacts: Callable[[], Mapping[str, Mapping[str, Any]]],
        revoked: Callable[[str], None],
        now: Callable[[], float],
    ) -> None:
        self._ledger, self._tokens, self._contacts, self._revoked, self._now = ledger, tokens, contacts, revoked, now

    def routes(self) -> list[Route]:
        """What is answered here."""
        return [
            Route("GET", "/v1/sites", READERS, self.sites, "who belongs to the federation"),
            Route("POST", "/v1/invitations", OPERATOR, self.invitations, "a one-time token"),
            Route("POST", "/v1/members/{name}/revoke", OPERATOR, self.revoke, "shuts a member out"),
            Route("GET", "/v1/audit", READERS, self.audit, "who did what"),
        ]

    async def sites(self, request: Request) -> Response:
        """Everyone who is enrolled, and what sites are doing."""
        members = await asyncio.to_thread(self._ledger.members)
        return Response.json({"sites": described(members, self._contacts())})

    async def invitations(self, request: Request) -> Response:
        """Invites someone."""
        body = await request.table()
        seconds = body.get("seconds", 2 * 86400)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise Refusal("BAD_REQUEST", f"seconds is {str(seconds)[:40]!r}: give a number")
        text, expires = await asyncio.to_thread(
            invite,
            self._ledger,
            self._tokens,
            body.get("name", ""),
            body.get("role", "site"),
            seconds,
            by(request),
            self._now(),
        )
        return Response.json({"token": text, "expires": expires})

    async def revoke(self, request: Request) -> Response:
        """Shuts someone out."""
        name = unquote(request.arguments["name"])
        if name == by(request):
            raise Refusal("BAD_STATE", "nobody can revoke the certificate they are using: let another operator do it")
        await asyncio.to_thread(revoke, self._ledger, name, by(request), self._now())
        self._revoked(name)
        return Response.json({})

    async def audit(self, request: Request) -> Response:
        """Entries of the audit log, in their order."""
        after = whole_number(request, "after", 0)
        entries = await asyncio.to_thread(self._ledger.audited, after, 1000)
        return Response.json({"entries": entries})


def by(request: Request) -> str:
    """Who asks."""
    return request.peer.name if request.peer else ""


def described(members: Sequence[Member], contacts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Members as they are told to operators."""
    told = []
    for member in members:
        contact = contacts.get(member.name, {})
        told.append(
            {
                "name": member.name,
                "role": member.role,
                "serial": member.serial,
                "enrolled": member.enrolled,
                "seen": member.seen,
                "revoked": member.revoked,
                "declared": dict(member.declared),
                "connected": bool(contact.get("connected", False)),
                "last_contact": contact.get("last_contact"),
                "doing": contact.get("doing", ""),
            }
        )
    return told
