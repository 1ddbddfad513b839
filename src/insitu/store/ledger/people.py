"""Members and invitations: functions of a connection, whose transaction is the caller's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from insitu.core.errors import StoreError, TokenError
from insitu.core.federation import Invitation, Member
from insitu.core.part import to_json
from insitu.store.ledger.tables import invitations, members


def invite(connection: Connection, invitation: Invitation) -> None:
    if connection.scalar(select(invitations.c.name).where(invitations.c.token == invitation.token)) is not None:
        raise StoreError(f"the invitation of {invitation.name!r} has a token that was given before: make another one")
    connection.execute(insert(invitations), vars(invitation))


def invited(connection: Connection) -> list[Invitation]:
    """All invitations, those that end first at the front."""
    rows = connection.execute(select(invitations).order_by(invitations.c.expires, invitations.c.token))
    return [Invitation(**row) for row in rows.mappings()]


def enrol(connection: Connection, member: Member, token: str, now: float) -> None:
    row = connection.execute(select(invitations).where(invitations.c.token == token).with_for_update()).one_or_none()
    if row is None:
        raise TokenError(f"the token that {member.name!r} shows is unknown here: ask the operator for a new one")
    if row.used is not None:
        raise TokenError(f"the token for {row.name!r} was used already: ask the operator for a new one")
    if now >= row.expires:
        raise TokenError(
            f"the token for {row.name!r} expired {now - row.expires:.0f} s ago: ask the operator for a new one"
        )
    if (row.name, row.role) != (member.name, member.role):
        raise TokenError(f"the token is for the {row.role} {row.name!r}, not for the {member.role} {member.name!r}")
    add(connection, member)
    connection.execute(update(invitations).where(invitations.c.token == token).values(used=now))


def add(connection: Connection, member: Member) -> None:
    """Takes a member in, in the place of one of that name who was revoked. Raises StoreError for one who was not."""
    there = connection.execute(select(members).where(members.c.name == member.name).with_for_update()).one_or_none()
    if there is not None and there.revoked is None:
        raise StoreError(f"{member.name!r} is a member already: revoke it first, or choose another name")
    _free(connection, member.serial, member.name)
    connection.execute(delete(members).where(members.c.name == member.name))
    connection.execute(insert(members), {**vars(member), "declared": to_json(member.declared)})


Listed = tuple[list[Any], list[Member]]
"""Rows as the database has them, and what was made of them."""


def listed(connection: Connection, before: Listed) -> Listed:
    """All members in the order of their names, revoked ones too; those of ``before`` where nothing has changed.

    A coordinator asks every few seconds, and of a thousand rows their making takes ten times as long as their reading.
    """
    rows = list(connection.execute(select(members).order_by(members.c.name)))
    if rows == before[0]:
        return before
    found = [Member(**{**row._mapping, "declared": json.loads(row.declared)}) for row in rows]
    return rows, sorted(found, key=lambda member: member.name)


def declare(connection: Connection, name: str, declared: Mapping[str, Any], now: float) -> None:
    _change(connection, name, declared=to_json(declared), seen=now)


def renew(connection: Connection, name: str, serial: str) -> None:
    _free(connection, serial, name)
    _change(connection, name, serial=serial)


def revoke(connection: Connection, name: str, now: float) -> None:
    """A member that was revoked before stays so from then on."""
    revoked = connection.scalar(select(members.c.revoked).where(members.c.name == name))
    _change(connection, name, revoked=now if revoked is None else revoked)


def _change(connection: Connection, name: str, **values: Any) -> None:
    if not connection.execute(update(members).where(members.c.name == name).values(**values)).rowcount:
        raise StoreError(f"there is no member {name!r}: look at the names of those there are")


def _free(connection: Connection, serial: str, name: str) -> None:
    whose = connection.scalar(select(members.c.name).where(members.c.serial == serial, members.c.name != name))
    if whose is not None:
        raise StoreError(f"the certificate {serial} of {name!r} is that of {whose!r} too: make another one")
