"""The view ``client_metrics``: what single clients told, as rows, in the words of each dialect."""

from __future__ import annotations

# What single clients told, a row for each of their metrics: a view into the events' JSON. As rows of a table the same
# numbers took eight times the space and most of the writing time. Lists are walked from the outside in (CROSS JOIN),
# since SQLite reads a list's text anew for each row of what stands before it.
_STANDS = """NOT EXISTS (SELECT 1 FROM events AS later
    WHERE later.run = e.run AND later.round = e.round AND later.seq > e.seq AND later.kind = 'RoundDiscarded')"""
SQLITE = f"""CREATE VIEW client_metrics (run, round, client, kind, name, value) AS
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

# The same, in PostgreSQL's words. CASE keeps other events' JSON from being taken apart.
POSTGRES = f"""CREATE VIEW client_metrics (run, round, client, kind, name, value) AS
SELECT e.run, e.round, r.value ->> 0, 'train', 'examples', (r.value ->> 1)::double precision
FROM events AS e CROSS JOIN LATERAL
     json_array_elements(CASE WHEN e.kind = 'UpdatesArrived' THEN e.data::json -> 'rows' END) AS r (value)
WHERE e.kind = 'UpdatesArrived' AND {_STANDS}
UNION ALL
SELECT e.run, e.round, r.value ->> 0, 'train', m.value, (r.value ->> (m.place::int + 2))::double precision
FROM events AS e CROSS JOIN LATERAL
     json_array_elements_text(CASE WHEN e.kind = 'UpdatesArrived' THEN e.data::json -> 'metrics' END)
     WITH ORDINALITY AS m (value, place) CROSS JOIN LATERAL
     json_array_elements(CASE WHEN e.kind = 'UpdatesArrived' THEN e.data::json -> 'rows' END) AS r (value)
WHERE e.kind = 'UpdatesArrived' AND {_STANDS}
UNION ALL
SELECT e.run, e.round, c.key, e.data::json ->> 'where', m.key, (m.value #>> '{{}}')::double precision
FROM events AS e CROSS JOIN LATERAL
     json_each(CASE WHEN e.kind = 'Evaluated' THEN e.data::json -> 'clients' END) AS c (key, value) CROSS JOIN LATERAL
     json_each(c.value) AS m (key, value)
WHERE e.kind = 'Evaluated' AND {_STANDS}"""

CLIENT_METRICS = {"sqlite": SQLITE, "postgresql": POSTGRES}
"""By SQLAlchemy's name of the dialect."""
