PRAGMA application_id = 1768846185 ;
PRAGMA user_version = 2 ;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
	run TEXT NOT NULL, 
	part INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	blob BLOB NOT NULL, 
	PRIMARY KEY (run, part)
);
INSERT INTO "checkpoints" VALUES('20260101-old',0,2,X'8C696E736974750A01000000CE000000000000007B2274726565223A7B2264696374223A7B22726F756E64223A322C227374617465223A7B2264696374223A7B2277223A7B2274656E736F72223A307D7D7D2C22737461676573223A7B2264696374223A7B7D7D2C2266696E6973686564223A66616C73657D7D2C2274656E736F7273223A5B7B2270617468223A5B227374617465222C2277225D2C226474797065223A22666C6F61743634222C227368617065223A5B335D2C226F6666736574223A302C226E6279746573223A32342C226B696E64223A226E756D7079227D5D7D0000000000000040000000000000004000000000000000403E9CE5E49BAE864355599DAFCEDDC1D6DC80B67C0CEE67BE51E63464836554FF');
CREATE TABLE events (
	run TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	data TEXT NOT NULL, 
	PRIMARY KEY (run, seq)
);
INSERT INTO "events" VALUES('20260101-old',1,1,'UpdatesArrived','{"metrics": ["loss"], "rows": [["a", 10.0, 100, 0.5], ["b", 5.0, 100, 1.5]], "bytes_down": 200}');
INSERT INTO "events" VALUES('20260101-old',2,1,'RoundCommitted','{"clients": 2, "failed": 0, "seconds": 0.5, "metrics": {"loss": 1.0}, "bytes_up": 200, "bytes_down": 10, "measures": {}}');
INSERT INTO "events" VALUES('20260101-old',3,1,'Evaluated','{"where": "clients", "metrics": {"accuracy": 0.25}, "clients": {"a": {"accuracy": 0.25}}, "spread": {}}');
INSERT INTO "events" VALUES('20260101-old',4,2,'UpdatesArrived','{"metrics": ["loss"], "rows": [["a", 10.0, 100, 0.5], ["b", 5.0, 100, 1.5]], "bytes_down": 200}');
INSERT INTO "events" VALUES('20260101-old',5,2,'RoundCommitted','{"clients": 2, "failed": 0, "seconds": 0.5, "metrics": {"loss": 0.5}, "bytes_up": 200, "bytes_down": 10, "measures": {}}');
INSERT INTO "events" VALUES('20260101-old',6,2,'Evaluated','{"where": "clients", "metrics": {"accuracy": 0.25}, "clients": {"a": {"accuracy": 0.25}}, "spread": {}}');
CREATE TABLE memories (
	run TEXT NOT NULL, 
	client TEXT NOT NULL, 
	part INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	blob BLOB NOT NULL, 
	PRIMARY KEY (run, client, part)
);
INSERT INTO "memories" VALUES('20260101-old','a',0,2,X'8C696E736974750A0100000026000000000000007B2274726565223A7B2264696374223A7B226E223A327D7D2C2274656E736F7273223A5B5D7D23DC3E291F7BECF13C5DC7BE08E0FB71E61D7FF715876416B9F8B319321C01E0');
CREATE TABLE round_metrics (
	run TEXT NOT NULL, 
	round INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	name TEXT NOT NULL, 
	value FLOAT, 
	PRIMARY KEY (run, round, kind, name)
)
 WITHOUT ROWID

;
INSERT INTO "round_metrics" VALUES('20260101-old',1,'clients','accuracy',0.25);
INSERT INTO "round_metrics" VALUES('20260101-old',1,'train','loss',1.0);
INSERT INTO "round_metrics" VALUES('20260101-old',2,'clients','accuracy',0.25);
INSERT INTO "round_metrics" VALUES('20260101-old',2,'train','loss',0.5);
CREATE TABLE runs (
	id TEXT NOT NULL, 
	created TEXT NOT NULL, 
	status TEXT NOT NULL, 
	rounds INTEGER NOT NULL, 
	record TEXT NOT NULL, 
	writer TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "runs" VALUES('20260101-old','2026-11-26T22:15:58.555430+00:00','running',2,'{"seed": 7, "config": {"algorithm": {"lr": 0.5}}}','03783506d2ee4e0fb7ae9a0ac4a972d3');
CREATE INDEX events_by_round ON events (run, round);
CREATE VIEW client_metrics (run, round, client, kind, name, value) AS
SELECT e.run, e.round, json_extract(r.value, '$[0]'), 'train', 'examples', json_extract(r.value, '$[1]')
FROM events AS e CROSS JOIN json_each(e.data, '$.rows') AS r
WHERE e.kind = 'UpdatesArrived' AND NOT EXISTS (SELECT 1 FROM events AS later
    WHERE later.run = e.run AND later.round = e.round AND later.seq > e.seq AND later.kind = 'RoundDiscarded')
UNION ALL
SELECT e.run, e.round, json_extract(r.value, '$[0]'), 'train', m.value,
       json_extract(r.value, '$[' || (m.key + 3) || ']')
FROM events AS e CROSS JOIN json_each(e.data, '$.metrics') AS m CROSS JOIN json_each(e.data, '$.rows') AS r
WHERE e.kind = 'UpdatesArrived' AND NOT EXISTS (SELECT 1 FROM events AS later
    WHERE later.run = e.run AND later.round = e.round AND later.seq > e.seq AND later.kind = 'RoundDiscarded')
UNION ALL
SELECT e.run, e.round, c.key, json_extract(e.data, '$.where'), m.key, m.value
FROM events AS e CROSS JOIN json_each(e.data, '$.clients') AS c CROSS JOIN json_each(c.value) AS m
WHERE e.kind = 'Evaluated' AND NOT EXISTS (SELECT 1 FROM events AS later
    WHERE later.run = e.run AND later.round = e.round AND later.seq > e.seq AND later.kind = 'RoundDiscarded');
COMMIT;
