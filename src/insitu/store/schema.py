"""The tables of runs, as users may query them: ``docs/store-and-resume.md`` explains each to them.

Whatever changes here, or in ``ledger/tables.py``, changes ``VERSION`` and is a step in ``migrations.py``: an older
insitu then refuses the database instead of misreading it.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text

VERSION = 3
APPLICATION = int.from_bytes(b"insi")
"""Written into the file's header, by which ``file`` and we tell our databases from others."""

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created", Text, nullable=False, comment="UTC, ISO 8601"),
    Column("status", Text, nullable=False),
    Column("rounds", Integer, nullable=False, comment="durable committed rounds"),
    Column("record", Text, nullable=False, comment="JSON: config, seed, digest, choices, versions"),
    Column("writer", Text, nullable=False, comment="the store that created or resumed it last"),
)

events = Table(
    "events",
    metadata,
    Column("run", Text, primary_key=True),
    Column("seq", Integer, primary_key=True, comment="1, 2, … in the order in which they happened"),
    Column("round", Integer, nullable=False),
    Column("kind", Text, nullable=False, comment="the event's name"),
    Column("data", Text, nullable=False, comment="JSON: the event's other fields"),
    Index("events_by_round", "run", "round"),
)

round_metrics = Table(
    "round_metrics",
    metadata,
    Column("run", Text, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("kind", Text, primary_key=True, comment="train, measures, or where evaluated: central, clients"),
    Column("name", Text, primary_key=True),
    Column("value", Float, comment="NULL where it was not finite"),
    sqlite_with_rowid=False,
)

# Blobs are cut into parts: SQLite holds at most 1 GB in one, and a model may be larger.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("blob", LargeBinary, nullable=False),
)

memories = Table(
    "memories",
    metadata,
    Column("run", Text, primary_key=True),
    Column("client", Text, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("round", Integer, nullable=False, comment="the commit that wrote it"),
    Column("blob", LargeBinary, nullable=False),
)
