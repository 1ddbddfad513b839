"""How a database comes to the present version: ordered steps, all of them in one transaction of the caller's.

A step that was once released is never changed, since databases that it made are out there: the next change is the next
step. The tables of runs are as version 2 made them, so a new database starts with those.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from insitu.core import failpoints
from insitu.core.errors import StoreError
from insitu.store import schema
from insitu.store.views import CLIENT_METRICS

OLDEST = 2
"""The oldest version that is brought up to the present one."""

# Names of a federation's tables that are words of SQL are avoided: what is typed here is what a user types later.
_TO_3 = """
CREATE TABLE leader (one INTEGER NOT NULL CHECK (one = 1), epoch BIGINT NOT NULL, holder TEXT NOT NULL,
    PRIMARY KEY (one));
CREATE TABLE lease (one INTEGER NOT NULL CHECK (one = 1), expires DOUBLE PRECISION NOT NULL, PRIMARY KEY (one));
INSERT INTO leader VALUES (1, 0, '');
INSERT INTO lease VALUES (1, 0.0);
CREATE TABLE members (name TEXT NOT NULL, role TEXT NOT NULL, serial TEXT NOT NULL, enrolled DOUBLE PRECISION NOT NULL,
    declared TEXT NOT NULL, revoked DOUBLE PRECISION, seen DOUBLE PRECISION, PRIMARY KEY (name));
CREATE UNIQUE INDEX members_by_serial ON members (serial);
CREATE TABLE invitations (token TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL,
    expires DOUBLE PRECISION NOT NULL, used DOUBLE PRECISION, PRIMARY KEY (token));
CREATE TABLE submitted (run TEXT NOT NULL, place BIGINT NOT NULL, tables TEXT NOT NULL, submitter TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (run));
CREATE UNIQUE INDEX submitted_by_place ON submitted (place);
CREATE TABLE rosters (run TEXT NOT NULL, place BIGINT NOT NULL, site TEXT NOT NULL, since BIGINT NOT NULL,
    PRIMARY KEY (run, place));
CREATE UNIQUE INDEX rosters_by_site ON rosters (run, site);
CREATE TABLE calls (run TEXT NOT NULL, round BIGINT NOT NULL, kind TEXT NOT NULL, number BIGINT NOT NULL,
    place BIGINT NOT NULL, asked TEXT NOT NULL, message TEXT NOT NULL, opened DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (run, round, kind, number));
CREATE UNIQUE INDEX calls_by_place ON calls (run, place);
CREATE TABLE entries (run TEXT NOT NULL, round BIGINT NOT NULL, kind TEXT NOT NULL, number BIGINT NOT NULL,
    seq BIGINT NOT NULL, what TEXT NOT NULL, client TEXT NOT NULL, now DOUBLE PRECISION NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (run, round, kind, number, seq));
CREATE UNIQUE INDEX entries_by_client ON entries (run, round, kind, number, client) WHERE client <> '';
CREATE TABLE documents (digest TEXT NOT NULL, run TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (digest));
CREATE TABLE audit (seq BIGINT NOT NULL, at DOUBLE PRECISION NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    data TEXT NOT NULL, before TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (seq))
"""


def _runs(connection: Connection) -> None:
    schema.metadata.create_all(connection, checkfirst=False)
    connection.exec_driver_sql(CLIENT_METRICS[connection.dialect.name])


def _federations(connection: Connection) -> None:
    for statement in _TO_3.split(";\n"):
        connection.exec_driver_sql(statement.strip())


STEPS: dict[int, Callable[[Connection], None]] = {2: _runs, 3: _federations}
"""By the version to which a step leads."""


def refuse(place: str, version: int) -> None:
    """Raises StoreError for a version that is newer than ours, or too old to be brought up."""
    if version > schema.VERSION:
        raise StoreError(
            f"{place} has schema version {version}, newer than {schema.VERSION}: "
            "open it with the insitu that wrote it, or a newer one"
        )
    if version < OLDEST:
        raise StoreError(
            f"{place} has schema version {version}, and this insitu writes {schema.VERSION} and brings up what is not"
            f" older than {OLDEST}: move it away, or give another path (an older insitu still reads it)"
        )


def bring_up(connection: Connection, version: int) -> None:
    """Everything from ``version`` (0: an empty database) to the present one."""
    for to, step in sorted(STEPS.items()):
        if to > version:
            failpoints.hit(f"migration.{to}.before")
            step(connection)
            failpoints.hit(f"migration.{to}.after")
