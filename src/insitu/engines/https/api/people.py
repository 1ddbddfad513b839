"""Who a certificate belongs to, known without asking the ledger: every request needs it, and none may wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from insitu.core.errors import Refusal, StoreError
from insitu.core.federation import Ledger, Member
from insitu.engines.https.authority.certificates import renews
from insitu.engines.https.authority.names import shown
from insitu.engines.https.http import Peer

Note = Callable[[str, str, Mapping[str, Any]], None]
"""(who, what, data): an entry for the audit log."""


class People:
    """The ledger's members as they were read last. ``refresh`` reads them again, and writes down what was learnt.

    A certificate that was made in renewal of a member's takes its place when it is first shown; the old one counts no
    more then.

    note    told of members that are new, and of certificates that were renewed
    gone    told the serials that no longer count, so that their connections can be cut
    """

    def __init__(self, ledger: Ledger, note: Note, gone: Callable[[list[str]], Any] = lambda serials: None) -> None:
        self._ledger, self._note, self._gone = ledger, note, gone
        self._lock = threading.Lock()
        self._by_serial: dict[str, Member] = {}
        self._by_name: dict[str, Member] = {}
        self._renewed: dict[str, str] = {}
        self._known: set[tuple[str, str]] | None = None
        self._last: list[Member] | None = None
        self.read = 0.0
        """When the ledger was read last, by the monotonic clock."""

    def __call__(self, serial: str, name: str) -> Peer:
        """The member with this certificate. Raises Refusal UNKNOWN_CERTIFICATE, REVOKED; BUSY before the first look."""
        if self._known is None:  # else a coordinator that has just started would turn its own sites away for good
            raise Refusal("BUSY", "the members are not read yet: come back in a moment", 1.0)
        member = self._by_serial.get(serial) or self._renewal(serial, name)
        if member is None or member.name != name:
            raise Refusal(
                "UNKNOWN_CERTIFICATE",
                f"the certificate {shown(serial, 50)} of {shown(name)} is no member's of this federation",
            )
        if member.revoked is not None:
            raise Refusal("REVOKED", f"the certificate of {member.name} was revoked: ask whoever runs the federation")
        return Peer(member.name, member.role, serial)

    def members(self) -> list[Member]:
        """All of them, as last read."""
        with self._lock:
            return list(self._by_name.values())

    def refresh(self) -> None:
        """Reads the members. Waits for the ledger; raises StoreError."""
        for name, serial in list(self._renewed.items()):
            self._ledger.renew(name, serial)
            self._note(name, "renew", {"serial": serial})
            with self._lock:
                if self._renewed.get(name) == serial:
                    del self._renewed[name]
        members = self._ledger.members()
        if members == self._last and not self._renewed:
            self.read = time.monotonic()
            return
        with self._lock:
            self._last = members
            before = {serial for serial, member in self._by_serial.items() if member.revoked is None}
            members = [replace(m, serial=self._renewed.get(m.name, m.serial)) for m in members]
            self._by_serial = {member.serial: member for member in members}
            self._by_name = {member.name: member for member in members}
            after = {member.serial for member in members if member.revoked is None}
            known = {(member.name, member.serial) for member in members}
            new = [] if self._known is None else [m for m in members if (m.name, m.serial) not in self._known]
            self._known = known
        self.read = time.monotonic()
        for member in new:
            self._note(member.name, "enrol", {"role": member.role, "serial": member.serial})
        if lost := sorted(before - after):
            self._gone(lost)

    def try_refresh(self) -> str:
        """`refresh`, but what is wrong with the ledger is returned."""
        try:
            self.refresh()
        except StoreError as error:
            return str(error)
        return ""

    def _renewal(self, serial: str, name: str) -> Member | None:
        with self._lock:
            member = self._by_name.get(name)
            if member is None or member.revoked is not None or not renews(serial, member.serial):
                return None
            renewed = replace(member, serial=serial)
            self._by_serial.pop(member.serial, None)
            self._by_serial[serial] = self._by_name[name] = renewed
            self._renewed[name] = serial
            if self._known is not None:
                self._known.add((name, serial))
            return renewed
