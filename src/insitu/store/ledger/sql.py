"""The ledger over any database that SQLAlchemy reaches: each method a transaction, fenced by who leads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from sqlalchemy import Connection, insert, select

from insitu.core import audit
from insitu.core.federation import Call, CallKey, Entry, Invitation, Member, Submitted
from insitu.store.database.base import Database, T
from insitu.store.leading import Leadership
from insitu.store.ledger import journal, orders, people, tables


class SqlLedger:
    """``core.federation.Ledger`` in ``database``. Close it with ``with`` or ``close``; another call opens it again.

    Before ``lead`` it may write as long as nobody leads; after it, as long as nobody else has taken over. Raises
    StoreError (DiskFull, Fenced): nothing of the method's transaction is there then.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leadership = Leadership(database)
        self._listed: people.Listed = ([], [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def epoch(self) -> int | None:
        """The last one that this ledger led in; None where it never led."""
        return self._leadership.epoch

    def fence(self, connection: Connection) -> None:
        """Raises Fenced where this ledger may not write, for a store that writes under the same leadership."""
        self._leadership.check(connection)

    # ------------------------------------------------------------ who belongs to it

    def invite(self, invitation: Invitation) -> None:
        """Keeps an invitation. Raises StoreError for a token that was given before."""
        self._write(partial(people.invite, invitation=invitation))

    def invitations(self) -> list[Invitation]:
        return self._database.read(people.invited)

    def enrol(self, member: Member, token: str, now: float) -> None:
        """Takes a member in and uses up the invitation with this token's digest.

        Raises TokenError (unknown, used, expired, or for another name or role), and StoreError where somebody of
        that name is a member and was not revoked; nothing has changed then.
        """
        self._write(partial(people.enrol, member=member, token=token, now=now))

    def add_member(self, member: Member) -> None:
        """Takes a member in without an invitation. Raises StoreError as ``enrol`` does."""
        self._write(partial(people.add, member=member))

    def members(self) -> list[Member]:
        self._listed = self._database.read(partial(people.listed, before=self._listed))
        return list(self._listed[1])

    def declare(self, name: str, declared: Mapping[str, Any], now: float) -> None:
        self._write(partial(people.declare, name=name, declared=declared, now=now))

    def renew(self, name: str, serial: str) -> None:
        self._write(partial(people.renew, name=name, serial=serial))

    def revoke(self, name: str, now: float) -> None:
        self._write(partial(people.revoke, name=name, now=now))

    # ------------------------------------------------------------ what was asked for

    def submit(self, run: Submitted) -> None:
        """Raises StoreError where the id is taken."""
        self._write(partial(orders.submit, run=run))

    def mark(self, run: str, status: str, reason: str = "") -> None:
        self._write(partial(orders.mark, run=run, status=status, reason=reason))

    def submitted(self) -> list[Submitted]:
        return self._database.read(orders.listed)

    def admit(self, run: str, names: Sequence[str], since: int) -> None:
        """These sites take part from round ``since`` on, at the next free places; those that do already stay."""
        self._write(partial(orders.admit, run=run, names=names, since=since))

    def roster(self, run: str) -> list[tuple[str, int]]:
        return self._database.read(partial(orders.roster, run=run))

    # ------------------------------------------------------------ what was told

    def open_call(self, call: Call) -> None:
        self._write(partial(journal.open_call, call=call))

    def append(self, key: CallKey, entries: Sequence[Entry]) -> None:
        """All of ``entries`` in one transaction. Raises StoreError where their ``seq`` is not what comes next."""
        self._write(partial(journal.append, key=key, new=entries))

    def calls(self, run: str) -> list[Call]:
        return self._database.read(partial(journal.listed, run=run))

    def forget(self, run: str, before: int) -> None:
        self._write(partial(journal.forget, run=run, before=before))

    # ------------------------------------------------------------ documents and the trail

    def keep(self, digest: str, text: str, run: str) -> None:
        """Keeps a document; one that is there already stays as it is."""

        def work(connection: Connection) -> None:
            there = select(tables.documents.c.run).where(tables.documents.c.digest == digest)
            if connection.scalar(there) is None:
                connection.execute(insert(tables.documents), {"digest": digest, "run": run, "body": text})

        self._write(work)

    def document(self, digest: str) -> str | None:
        query = select(tables.documents.c.body).where(tables.documents.c.digest == digest)
        return self._database.read(lambda connection: connection.scalar(query))

    def discard(self, run: str, digests: Iterable[str] | None = None) -> int:
        """Removes documents that no call names: these, or all that the run was the first to have; how many."""
        some = None if digests is None else set(digests)
        return self._write(partial(journal.discard, run=run, digests=some))

    def audit(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Appends entries (at, who, what, data), each chained to the one before it: see ``core.audit``."""
        new = list(entries)

        def work(connection: Connection) -> None:
            of = tables.audit.c
            last = connection.execute(select(of.seq, of.hash).order_by(of.seq.desc()).limit(1)).one_or_none()
            seq, before = (last.seq, last.hash) if last else (0, audit.GENESIS)
            for entry in new:
                whole = audit.chained(entry, seq + 1, before)
                seq, before = whole["seq"], whole["hash"]
                connection.execute(insert(tables.audit), {**whole, "data": json.dumps(whole["data"])})

        if new:
            self._write(work)

    def audited(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        of = tables.audit.c
        query = select(tables.audit).where(of.seq > after).order_by(of.seq).limit(limit)

        def work(connection: Connection) -> list[dict[str, Any]]:
            return [{**row, "data": json.loads(row["data"])} for row in connection.execute(query).mappings()]

        return self._database.read(work)

    # ------------------------------------------------------------ who may write

    def lead(self, holder: str, seconds: float) -> bool:
        """Takes or renews leadership for so long, by the database's own clock; False while another one holds it.

        Raises StoreError where the database does not answer within ``seconds``.
        """
        work = partial(self._leadership.take, holder=holder, seconds=seconds)
        epoch = self._database.write(work, _nothing, patience=min(self._database.patience, seconds))
        if epoch is not None:
            self._leadership.epoch = epoch
        return epoch is not None

    def resign(self) -> None:
        """Ends leadership at once; this ledger writes nothing more until it leads again."""
        self._database.write(self._leadership.give_up, _nothing)

    def leader(self) -> tuple[str, float] | None:
        return self._database.read(self._leadership.who)

    def close(self) -> None:
        self._database.close()

    def _write(self, work: Callable[[Connection], T]) -> T:
        def fenced(connection: Connection) -> T:
            self.fence(connection)
            return work(connection)

        return self._database.write(fenced, _nothing)


def _nothing() -> str:
    return "Nothing in it has changed."
