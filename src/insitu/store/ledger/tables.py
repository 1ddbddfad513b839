"""A federation's tables, as ``migrations.py`` makes them. ``docs/store-and-resume.md`` explains each to users."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text

metadata = MetaData()

leader = Table(
    "leader", metadata, Column("one", Integer, primary_key=True), Column("epoch", BigInteger), Column("holder", Text)
)
lease = Table("lease", metadata, Column("one", Integer, primary_key=True), Column("expires", Float))
members = Table(
    "members",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text),
    Column("serial", Text),
    Column("enrolled", Float),
    Column("declared", Text, comment="JSON"),
    Column("revoked", Float),
    Column("seen", Float),
)
invitations = Table(
    "invitations",
    metadata,
    Column("token", Text, primary_key=True, comment="SHA-256 of the secret"),
    Column("name", Text),
    Column("role", Text),
    Column("expires", Float),
    Column("used", Float),
)
submitted = Table(
    "submitted",
    metadata,
    Column("run", Text, primary_key=True),
    Column("place", BigInteger, comment="in the order of submission"),
    Column("tables", Text, comment="JSON"),
    Column("submitter", Text),
    Column("at", Float),
    Column("status", Text),
    Column("reason", Text),
)
rosters = Table(
    "rosters",
    metadata,
    Column("run", Text, primary_key=True),
    Column("place", BigInteger, primary_key=True),
    Column("site", Text),
    Column("since", BigInteger, comment="the first round that it takes part in"),
)
calls = Table(
    "calls",
    metadata,
    Column("run", Text, primary_key=True),
    Column("round", BigInteger, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("place", BigInteger, comment="in the order of opening, within the run"),
    Column("asked", Text, comment="JSON: clients"),
    Column("message", Text, comment="JSON: digests"),
    Column("opened", Float),
)
entries = Table(
    "entries",
    metadata,
    Column("run", Text, primary_key=True),
    Column("round", BigInteger, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("what", Text, comment="accepted, failed, closed"),
    Column("client", Text),
    Column("now", Float, comment="seconds since the call was opened"),
    Column("data", Text, comment="JSON"),
)
documents = Table(
    "documents",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("run", Text, comment="that first had it"),
    Column("body", Text),
)
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True),
    Column("at", Float),
    Column("who", Text),
    Column("what", Text),
    Column("data", Text, comment="JSON"),
    Column("before", Text, comment="hash of the entry before it"),
    Column("hash", Text),
)
