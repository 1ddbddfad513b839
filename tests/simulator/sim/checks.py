"""What must hold after every event, whatever goes wrong; and what must hold in the end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insitu.core.events import RoundSealed
from insitu.core.types import Answer, Context, Task, Update
from insitu.engines.https.http import Response
from insitu.engines.https.wire.manifest import digest_of
from insitu.engines.https.wire.packing import unpack
from insitu.rounds.fold import Fold
from insitu.rounds.outcome import Model
from insitu.seals import digest
from sim.network import Sent
from sim.study import RUN, Study


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Said:
    """An update of which a site was told that it counts."""

    site: str
    task: str
    manifest: str


@dataclass
class Call:
    """A call as its rows say, and what was ever seen of its journal."""

    asked: list[str]
    entries: dict[int, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)

    def accepted(self) -> dict[str, str]:
        """By site the manifest's digest that is in the journal."""
        return {who: data["manifest"] for what, who, data in self.entries.values() if what == "accepted"}

    def closed(self) -> str | None:
        """Why it was closed; None where it was not."""
        reasons = [str(data.get("reason")) for what, _, data in self.entries.values() if what == "closed"]
        return reasons[0] if reasons else None


Key = tuple[int, str, int]


class Checks:
    """Looks at the database by a connection of its own, whenever somebody has written to it."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.calls: dict[Key, Call] = {}
        self.forgotten: list[tuple[Key, Call]] = []
        self.seals: list[RoundSealed] = []
        self.said: dict[Said, None] = {}
        """Answers to updates that said that they count."""
        self.manifests: dict[str, Mapping[str, Any]] = {}
        self.chunks: dict[str, bytes] = {}
        self.committed = 0
        self.revoked: set[str] = set()
        self._seen = -1
        self._entries = (-1, -1)
        self._database: sqlite3.Connection | None = None

    def watch(self, path: Path) -> None:
        """The database that the coordinator writes."""
        self._database = sqlite3.connect(path, isolation_level=None)

    def close(self) -> None:
        """Lets go of the database."""
        if self._database is not None:
            self._database.close()

    # ------------------------------------------------------------ after every event

    def look(self) -> bool:
        """Whether anything was written; and whether all of it holds. Raises Broken."""
        assert self._database is not None
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version == self._seen:
            return False
        self._seen = version
        self._database.execute("BEGIN")
        try:
            self._read_calls(self._database)
            self._read_entries(self._database)
            self._read_seals(self._database)
        finally:
            self._database.execute("COMMIT")
        return True

    def went(self, sent: Sent) -> None:
        """A request goes out: manifests are kept, to fold what they hold once more."""
        if sent.method == "POST" and sent.path.endswith("/update") and sent.body is not None:
            manifest = json.loads(sent.body)
            self.manifests[digest_of(manifest)] = manifest

    def arrived(self, digest: str, data: bytes) -> None:
        """A chunk is whole on the coordinator's disk."""
        self.chunks[digest] = data

    def shut_out(self, names: list[str]) -> None:
        """The coordinator has shut these out: nothing of theirs counts from here on."""
        self.look()
        self.revoked |= set(names)

    def answered(self, sent: Sent, response: Response) -> None:
        """An answer leaves the coordinator: what it acknowledges must be durable by now. Raises Broken."""
        if sent.method != "POST" or not sent.path.endswith("/update") or response.status != 200:
            return
        assert isinstance(response.body, bytes)
        assert sent.body is not None
        manifest = json.loads(sent.body)
        name = sent.peer.name if sent.peer else ""
        said = Said(name, sent.path.split("/")[3], digest_of(manifest))
        self.said[said] = None
        self.look()
        found = [key for key, call in self.calls.items() if call.accepted().get(name) == said.manifest]
        if not found:
            raise Broken(f"{name} was told that its update counts, and it is in no journal: {said}")
        lost = [chunk for chunk, _ in manifest["chunks"] if chunk not in self.chunks]
        if lost:
            raise Broken(f"{name} was told that its update counts, and the chunks {lost} have never been whole")

    def _read_calls(self, database: sqlite3.Connection) -> None:
        query = "SELECT round, kind, number, asked FROM calls WHERE run = ?"
        rows = database.execute(query, (RUN,)).fetchall()
        there = {(round, kind, number) for round, kind, number, _ in rows}
        for key in [key for key in self.calls if key[1] == "evaluate" and key not in there]:
            self.forgotten.append((key, self.calls.pop(key)))  # may be asked anew after a restart
        for round, kind, number, asked in rows:
            known = self.calls.get((round, kind, number))
            cohort = json.loads(asked)
            if known is not None and known.asked != cohort:
                raise Broken(f"round {round}: call {number} asked {known.asked}, and now {cohort}")
            if len(set(cohort)) < len(cohort):
                raise Broken(f"round {round}: call {number} asks somebody twice: {cohort}")
            self.calls.setdefault((round, kind, number), Call(cohort))

    def _read_entries(self, database: sqlite3.Connection) -> None:
        query = "SELECT round, kind, number, seq, what, client, data FROM entries WHERE run = ? ORDER BY seq"
        for round, kind, number, seq, what, client, data in database.execute(query, (RUN,)).fetchall():
            call = self.calls[round, kind, number]
            entry = (what, client, json.loads(data))
            known = call.entries.get(seq)
            if known is not None:
                if known != entry:
                    raise Broken(f"round {round}, call {number}, entry {seq} was {known}, and now is {entry}")
                continue
            if seq != len(call.entries):
                raise Broken(f"round {round}, call {number}: entry {seq} comes after {len(call.entries)} others")
            if what != "closed":
                if client not in call.asked:
                    raise Broken(f"round {round}, call {number}: {client!r} was not asked: {call.asked}")
                if any(who == client for _, who, _ in call.entries.values()):
                    raise Broken(f"round {round}, call {number}: {client!r} is in the journal twice")
            if what == "accepted" and client in self.revoked:
                raise Broken(f"round {round}: an update of {client!r} counts, which was shut out before")
            call.entries[seq] = entry

    def _read_seals(self, database: sqlite3.Connection) -> None:
        row = database.execute("SELECT rounds FROM runs WHERE id = ?", (RUN,)).fetchone()
        rounds = 0 if row is None else row[0]
        if rounds < self.committed:
            raise Broken(f"round {self.committed} was committed, and now the run is at {rounds}")
        query = "SELECT round, data FROM events WHERE run = ? AND kind = 'RoundSealed' AND round <= ? ORDER BY seq"
        found = [RoundSealed(RUN, round, **json.loads(data)) for round, data in database.execute(query, (RUN, rounds))]
        if [seal.round for seal in found] != list(range(1, rounds + 1)):
            raise Broken(f"{rounds} rounds are committed, and sealed are {[seal.round for seal in found]}")
        for known, seal in zip(self.seals, found, strict=False):
            if known != seal:
                raise Broken(f"round {seal.round} was sealed otherwise before: {known} and {seal}")
        for seal in found[len(self.seals) :]:
            self._check_seal(seal)
            self.seals.append(seal)
        self.committed = rounds

    def _check_seal(self, seal: RoundSealed) -> None:
        last = self.seals[-1] if self.seals else None
        if seal.previous != (last.digest() if last else ""):
            raise Broken(f"round {seal.round} does not follow round {seal.round - 1}: the chain forks")
        if last is not None and seal.base != last.model:
            raise Broken(f"round {seal.round} began with another model than the one that round {last.round} ended with")
        names = [name for name, _ in seal.accepted]
        if len(set(names)) < len(names):
            raise Broken(f"round {seal.round} counts somebody twice: {names}")
        if not names:
            raise Broken(f"round {seal.round} was committed with nobody in it")
        for name, manifest in seal.accepted:
            if not any(call.accepted().get(name) == manifest for call in self.calls.values()):
                raise Broken(f"round {seal.round} counts an update of {name!r} that is in no journal")

    # ------------------------------------------------------------ in the end

    def finish(self) -> None:
        """All rounds are committed; every acknowledged update is in one of them, or its call was void."""
        if self.committed != self.study.rounds:
            raise Broken(f"{self.committed} of {self.study.rounds} rounds are committed")
        for said in self.said:
            self._check_said(said)
        self._refold()

    def _check_said(self, said: Said) -> None:
        for (round, kind, _), call in [*self.calls.items(), *self.forgotten]:
            if call.accepted().get(said.site) != said.manifest:
                continue
            sealed = [list(one) for one in self.seals[round - 1].accepted]
            if kind != "train" or [said.site, said.manifest] in sealed:
                return
            reason = call.closed()
            if reason is not None and reason.startswith("void"):
                return
        raise Broken(f"an acknowledged update is in no round, and its round was not discarded: {said}")

    def excluded(self) -> bool:
        """Whether some round was made without somebody who takes part in it, or at a second attempt."""
        everyone = set(self.study.names)
        plain = not self.study.late and "cohort" not in self.study.tables
        return not plain or any({name for name, _ in seal.accepted} != everyone for seal in self.seals)

    def model(self) -> str:
        """The digest of the last round's model."""
        return self.seals[-1].model

    def _refold(self) -> None:
        """Each round's model again, by the real fold and algorithm, out of the updates that its seal names."""
        plan, seed = self.study.plan(), int(self.study.tables["run"]["seed"])
        plan = plan.resolve(self.study.clients.schema())
        state = plan.algorithm.init(plan.learner.init(seed))
        for seal in self.seals:
            call = self._call_of(seal)
            fold, block = Fold(plan), plan.block_size(len(call.asked))
            for name, manifest in seal.accepted:
                index = call.asked.index(name)
                task = Task(RUN, seal.round, seal.round - 1, "train", name, {}, seed, index, 0, index // block)
                told = self.manifests[manifest]
                value = unpack(told, self.chunks.__getitem__)
                fold.take(Answer(task, Update(value, dict(told["weight"]), dict(told["metrics"])), None))
            roster = len([name for name, since in self._roster() if since <= seal.round])
            total = plan.reduce.finish(fold.finish(), Context(seal.round, roster, call.asked, seed))
            state = plan.algorithm.tell(state, total, seal.round)
            if digest(Model(seal.round, state, {})) != seal.model:
                raise Broken(f"round {seal.round}: its accepted updates folded again give another model")

    def _call_of(self, seal: RoundSealed) -> Call:
        wanted = dict(map(tuple, seal.accepted))
        for (round, kind, _), call in self.calls.items():
            if round == seal.round and kind == "train" and wanted.items() <= call.accepted().items():
                return call
        raise Broken(f"round {seal.round} is made of updates that no single call has heard")

    def _roster(self) -> list[tuple[str, int]]:
        assert self._database is not None
        query = "SELECT site, since FROM rosters WHERE run = ? ORDER BY place"
        return self._database.execute(query, (RUN,)).fetchall()
