"""How a site gets its certificate, and the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from insitu.core.errors import Refusal, StoreError, TokenError
from insitu.core.federation import ROLES, Ledger, Member
from insitu.engines.https.authority import certificates, keys
from insitu.engines.https.authority.folder import Authority
from insitu.engines.https.authority.tokens import Token, digest_of
from insitu.engines.https.http import Request, Response, Route

MAX_BODY = 32 * 1024
"""The longest body of these requests in bytes."""

Offload = Callable[..., Awaitable[Any]]
"""Runs a function that waits for the disk: in a thread, or at once in a simulation."""


@dataclass(frozen=True)
class Enrolment:
    """The handlers of ``POST /v1/enrol`` and ``POST /v1/renew``.

    changed  called after the ledger's members have changed, so that a port knows them at once
    """

    authority: Authority
    ledger: Ledger
    changed: Callable[[], Any] = field(default=lambda: None)
    clock: Callable[[], float] = field(default=time.time)
    offload: Offload = field(default=asyncio.to_thread)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/enrol", (), self.enrol, "exchanges an invitation for a certificate"),
            Route("POST", "/v1/renew", ROLES, self.renew, "a new certificate for a member that has one"),
        ]

    async def enrol(self, request: Request) -> Response:
        """Uses up an invitation. The name and role are the invitation's. Raises Refusal BAD_TOKEN or NAME_TAKEN."""
        told = await request.table(MAX_BODY)
        secret, csr = Token.parse(_text(told, "token")).secret, _text(told, "csr")
        key = keys.key_of(csr)
        answer = await self.offload(self._enrol, secret, csr, certificates.enrolled_serial(secret, key))
        self.changed()
        return Response.json(answer)

    async def renew(self, request: Request) -> Response:
        """A certificate for the same name and role.

        The old one counts until the new one is first used, so that a site whose answer was lost is not locked out.
        """
        assert request.peer is not None, "the table lets members in only"
        csr = _text(await request.table(MAX_BODY), "csr")
        keys.key_of(csr)
        peer = request.peer
        serial = certificates.renewed_serial(peer.serial)
        made = await self.offload(self.authority.sign, csr, peer.name, peer.role, serial)
        return Response.json(
            {"certificate": certificates.pem(made).decode(), "authority": self.authority.bundle_text()}
        )

    def _enrol(self, secret: str, csr: str, serial: int) -> dict[str, str]:
        now, digest = self.clock(), digest_of(secret)
        invitation = next((i for i in self.ledger.invitations() if i.token == digest), None)
        if invitation is None:
            raise TokenError("this invitation is not known here: ask whoever runs the federation for a new one")
        made = self.authority.sign(csr, invitation.name, invitation.role, serial)
        member = Member(invitation.name, invitation.role, certificates.serial_text(made), now)
        try:
            self.ledger.enrol(member, digest, now)
        except (TokenError, StoreError) as error:
            known = next((m for m in self.ledger.members() if m.name == member.name and m.revoked is None), None)
            # The same token and key once more: a site that the first answer did not reach.
            if known is None or known.serial != member.serial or now >= invitation.expires:
                if known is not None and isinstance(error, StoreError):
                    text = f"{member.name} is enrolled already: revoke it first, or invite under another name"
                    raise Refusal("NAME_TAKEN", text) from error
                raise
        return {
            "certificate": certificates.pem(made).decode(),
            "authority": self.authority.bundle_text(),
            "name": member.name,
            "role": member.role,
        }


def _text(told: dict[str, Any], key: str) -> str:
    value = told.get(key)
    if not isinstance(value, str) or not value or len(value) > MAX_BODY:
        raise Refusal("BAD_REQUEST", f"the body needs {key!r}, a text of at most {MAX_BODY} characters")
    return value
