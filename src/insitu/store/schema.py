"""The tables, as users may query them: ``docs/store-and-resume.md`` explains each to them.

Whatever changes here changes ``VERSION``, so that an older insitu refuses the file instead of misreading it.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text

VERSION = 2
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

# What single clients told, a row for each of their metrics: a view into the events' JSON. As rows of a table the same
# numbers took eight times the space and most of the writing time. Lists are walked from the outside in (CROSS JOIN),
# since SQLite reads a list's text anew for each row of what stands before it.
_STANDS = """NOT EXISTS (SELECT 1 FROM events AS later
    WHERE later.run = e.run AND later.round = e.round AND later.seq > e.seq AND later.kind = 'RoundDiscarded')"""
CLIENT_METRICS = f"""CREATE VIEW client_metrics (run, round, client, kind, name, value) AS
SELECT e.run, e.round, json_extract(r.value, '$[0]'), 'train', 'examples', json_extract(r.value, '$[1]')
FROM events AS e CROSS JOIN json_each(e.data, '$.rows') AS r
WHERE e.kind = 'UpdatesArrived' AND {_STANDS}
UNION ALL
SELECT e.run, e.round, json_extract(r.value, '$[0]'), 'train', m.value,
       json_extract(r.value, '$[' || (m.key + 3) || ']')
FROM events AS e CROSS JOIN json_each(e.data, '$.metrics') AS m CROSS JOIN json_each(e.data, '$.rows') AS r
WHERE e.kind = 'UpdatesArrived' AND {_STANDS}
UNION ALL
SELECT e.run, e.round, c.key, json_extract(e.data, '$.where'), m.key, m.value
FROM events AS e CROSS JOIN json_each(e.data, '$.clients') AS c CROSS JOIN json_each(c.value) AS m
WHERE e.kind = 'Evaluated' AND {_STANDS}"""
