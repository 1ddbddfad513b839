"""Was anything changed since? A run's sealed rounds link by link, and, where updates are still kept, folded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from insitu.core import audit, wire
from insitu.core.errors import BlobError, Refusal, ResumeError, StoreError, WireError
from insitu.core.events import RoundSealed
from insitu.core.federation import Call, Submitted
from insitu.federation.folder import Folder
from insitu.federation.keeping import Kept
from insitu.federation.refolding import CannotFold, Papers, folded

PASSES = 5
"""Times that a run which is at work is read, where what was read does not fit together."""


@dataclass
class Verdict:
    """What was found: sentences about what holds, and the first link that is broken; empty where none is."""

    run: str
    holds: list[str] = field(default_factory=list)
    broken: str = ""


class Broken(Exception):
    """A link that does not fit."""


def verified(kept: Kept, folder: Folder, run: str) -> Verdict:
    """Checks a run, by its id, the beginning of it, or ``last``. Only reads. Raises ResumeError where there is none."""
    submitted = _found(kept, run)
    for _ in range(PASSES):
        before, verdict = _progress(kept, submitted.run), Verdict(submitted.run)
        try:
            _verify(kept, folder, submitted, verdict)
            return verdict
        except Broken as error:
            verdict.broken = str(error)
        # What was read first may be older than what was read last, where a round was committed in between.
        if _progress(kept, submitted.run) == before:
            return verdict
    verdict.broken += (
        f"; but the run went on each of the {PASSES} times that this was read, and it may be no more than that:"
        f" `insitu pause {submitted.run}`, and verify it again"
    )
    return verdict


def _progress(kept: Kept, run: str) -> Any:
    """What changes as soon as a run that is at work commits a round, opens a call, or lets go of updates."""
    rounds = [one["rounds"] for one in kept.store.runs() if one["id"] == run]
    return rounds, {call.key for call in _calls(kept, run)}


def _found(kept: Kept, run: str) -> Submitted:
    runs: list[Submitted] = kept.ledger.submitted()
    found = runs[-1:] if run == "last" else [one for one in runs if run and one.run.startswith(run)]
    if len(found) != 1:
        why = f"{len(found)} runs begin with it" if found else "see `insitu runs --federation FOLDER`"
        raise ResumeError(f"there is no run {run!r} here: {why}")
    return found[0]


def _verify(kept: Kept, folder: Folder, run: Submitted, verdict: Verdict) -> None:
    noted = _noted(kept, run.run)
    seals = _seals(kept, run.run)
    if not seals:
        verdict.holds.append(
            "no round is committed yet, so that there is nothing to check but the audit log: it is whole"
        )
        return
    _check_chain(seals, noted)
    last = seals[-1]
    both = sum(seal.round in noted for seal in seals)
    verdict.holds.append(
        f"{_rounds([seal.round for seal in seals])} sealed in a chain that nobody has changed; the last seal is"
        f" {last.digest()}"
    )
    verdict.holds.append(f"the audit log is whole, and names the same seals ({both} of {len(seals)})")
    _check_model(kept, run.run, last)
    verdict.holds.append(f"the model after round {last.round} is the one that was sealed")
    _check_kept(kept, folder, run, seals, verdict)


# ------------------------------------------------------------ seals


def _noted(kept: Kept, run: str) -> dict[int, set[str]]:
    """By round the seals that the audit log names; a round that was sealed again after a crash has several."""
    noted: dict[int, set[str]] = {}

    def entries() -> Iterator[dict[str, Any]]:
        after = 0
        while found := kept.ledger.audited(after):
            for entry in found:
                data = entry["data"]
                if entry["what"] == "round" and isinstance(data, Mapping) and data.get("run") == run:
                    noted.setdefault(int(data["round"]), set()).add(str(data["seal"]))
                yield entry
            after = int(found[-1]["seq"])

    try:
        wrong = audit.verify(entries())
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(f"the audit log: an entry cannot be read: {error}") from error
    if wrong is not None:
        raise Broken(f"the audit log: {wrong.why}")
    return noted


def _seals(kept: Kept, run: str) -> list[RoundSealed]:
    """The seals of all committed rounds, in order."""
    known = [one for one in kept.store.runs() if one["id"] == run]
    if not known:
        return []
    try:
        told = kept.store.events(run, kinds=["RoundSealed"])
        seals = [RoundSealed(**{key: value for key, value in one.items() if key != "event"}) for one in told]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken(f"the events of run {run}: a seal cannot be read: {error}") from error
    for round, seal in enumerate(seals, 1):
        if seal.round != round:
            raise Broken(f"round {round}: its seal is not there; the next one is that of round {seal.round}")
    if len(seals) != known[0]["rounds"]:
        raise Broken(f"round {len(seals) + 1}: its seal is not there, and {known[0]['rounds']} rounds are committed")
    return seals


def _check_chain(seals: Sequence[RoundSealed], noted: Mapping[int, set[str]]) -> None:
    before: RoundSealed | None = None
    for seal in seals:
        own, told = seal.digest(), noted.get(seal.round)
        if told and own not in told:
            raise Broken(
                f"round {seal.round}: the event with its seal was changed: what it says has the digest {own}, and the"
                f" audit log names {', '.join(sorted(told))}"
            )
        previous, base = (before.digest(), before.model) if before else ("", seal.base)
        if seal.previous != previous:
            raise Broken(
                f"round {seal.round}: its seal stands on {seal.previous or 'none'}, and the one before it has the"
                f" digest {previous or 'none'}: one of the two events was changed"
            )
        if seal.base != base:
            raise Broken(
                f"round {seal.round}: it began with the state {seal.base}, and round {seal.round - 1} left {base}"
            )
        before = seal


def _check_model(kept: Kept, run: str, last: RoundSealed) -> None:
    try:
        checkpoint = kept.store.load(run)
    except StoreError as error:
        raise Broken(f"the model after round {last.round} cannot be read: {error}") from error
    if checkpoint is None or checkpoint.round != last.round:
        there = "none" if checkpoint is None else f"that of round {checkpoint.round}"
        raise Broken(f"the model after round {last.round} is not there: the store has {there}")
    try:
        own = wire.digest({"state": checkpoint.state, "stages": checkpoint.stages["stages"]})
    except (WireError, KeyError, TypeError) as error:
        raise Broken(f"the model after round {last.round} cannot be read: {error}") from error
    if own != last.model:
        what = f"the model after round {last.round} was changed"
        raise Broken(f"{what}: its digest is {own}, and that of the sealed one {last.model}")


# ------------------------------------------------------------ updates


def _check_kept(kept: Kept, folder: Folder, run: Submitted, seals: Sequence[RoundSealed], verdict: Verdict) -> None:
    """Updates that are still on the disk: are they what the ledger, and the seals, say, and give the sealed models?"""
    sealed = {seal.round: seal for seal in seals}
    rounds: dict[int, list[Papers]] = {}
    for call in _calls(kept, run.run):
        try:
            rounds.setdefault(call.key.round, []).append(_papers(kept, call))
        except Broken:
            # A coordinator that is at work may have let go of it meanwhile.
            if any(one.key == call.key for one in _calls(kept, run.run)):
                raise
    for round, papers in sorted(rounds.items()):
        papers.sort(key=lambda one: one.call.key.number)
        count = sum(len(one.updates) for one in papers)
        if round not in sealed:
            verdict.holds.append(f"round {round} is under way: {_updates(count)} kept, none changed")
            continue
        _check_accepted(sealed[round], papers)
        try:
            model = folded(kept, folder.code, run, sealed[round], papers)
        except CannotFold as error:
            verdict.holds.append(
                f"round {round}: {_updates(count)} kept, none changed; they were not folded again: {error}"
            )
            continue
        except (Refusal, BlobError) as error:
            raise Broken(f"round {round}: an update cannot be read: {error}") from error
        if model != sealed[round].model:
            raise Broken(
                f"round {round}: folded again, its updates give {model}, and the model that was sealed is"
                f" {sealed[round].model}: other versions of libraries, or something else was changed"
            )
        verdict.holds.append(
            f"round {round}: {_updates(count)} kept, none changed; folded again they give the sealed model, bit for bit"
        )
    gone = [round for round in sealed if round not in rounds]
    if gone:
        verdict.holds.append(f"{_rounds(gone)} checked by the chain alone: the updates are no longer kept")


def _calls(kept: Kept, run: str) -> list[Call]:
    return [call for call in kept.ledger.calls(run) if call.key.kind == "train"]


def _papers(kept: Kept, call: Call) -> Papers:
    """What a call's sites were told and have told, every byte of it compared with its digest."""
    where = f"round {call.key.round}"
    messages = {digest: _document(kept, f"{where}: the message", digest, None) for digest in set(call.message.values())}
    for message in messages.values():
        _check_chunks(kept, f"{where}: the message", message)
    updates = {}
    for entry in call.entries:
        if entry.kind == "accepted":
            what = f"{where}: the update of {entry.client}"
            manifest = _document(kept, what, str(entry.data.get("manifest")), entry.data.get("text"))
            _check_chunks(kept, what, manifest)
            updates[entry.client] = manifest
    first = call.message[call.asked[0]] if call.asked else ""
    return Papers(call, updates, messages.get(first, {}))


def _document(kept: Kept, what: str, digest: str, text: str | None) -> dict[str, Any]:
    """A manifest that stands in the journal itself, or among the documents."""
    text = kept.ledger.document(digest) if text is None else text
    if text is None:
        raise Broken(f"{what}: its manifest {digest} is lost")
    own = hashlib.sha256(text.encode()).hexdigest()
    if own != digest:
        raise Broken(f"{what}: its manifest was changed: it has the digest {own}, and its name is {digest}")
    return dict(json.loads(text))


def _check_chunks(kept: Kept, what: str, manifest: Mapping[str, Any]) -> None:
    for digest, length in manifest["chunks"]:
        try:
            data = kept.blobs.read(digest)
        except BlobError as error:
            raise Broken(f"{what}: {error}") from error
        if len(data) != length or hashlib.sha256(data).hexdigest() != digest:
            raise Broken(f"{what}: the chunk {digest} was changed")


def _check_accepted(seal: RoundSealed, papers: Sequence[Papers]) -> None:
    there = {
        (e.client, str(e.data.get("manifest"))) for one in papers for e in one.call.entries if e.kind == "accepted"
    }
    for client, manifest in seal.accepted:
        if (client, manifest) not in there:
            raise Broken(
                f"round {seal.round}: the update {manifest} of {client} was sealed, and the ledger has another one"
            )


def _rounds(rounds: Sequence[int]) -> str:
    """``round 3 is``, ``rounds 1 to 4 are``, ``rounds 1, 3 are``."""
    if len(rounds) == 1:
        return f"round {rounds[0]} is"
    if list(rounds) == list(range(rounds[0], rounds[-1] + 1)):
        return f"rounds {rounds[0]} to {rounds[-1]} are"
    return f"rounds {', '.join(map(str, rounds))} are"


def _updates(count: int) -> str:
    return f"{count} update is" if count == 1 else f"{count} updates are"
