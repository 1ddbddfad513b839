"""A run's rounds are verified: one that nobody touched is whole, and what is changed by a byte is found and named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from dataclasses import replace

import pytest
from processes import PLAN, SITES, Federation
from typer.testing import CliRunner

from insitu.cli.main import app
from insitu.core.errors import BlobError
from insitu.federation import keeping, verifying
from insitu.federation.folder import Folder
from insitu.federation.verifying import verified

SCAFFOLD = PLAN.replace('"fedavg"', '"scaffold"').format(rounds=2)
SERVER = PLAN.format(rounds=2) + 'server = { name = "momentum" }\n'

OF_PARIS = "WHERE run = ? AND client = 'paris' AND kind = 'train'"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs that are finished, and a coordinator that has ended; what was said while it was at work."""
    federation = Federation(tmp_path_factory.mktemp("made"), rounds=3)
    try:
        federation.coordinator()
        for part, name in enumerate(SITES):
            federation.join(part, name)
            federation.site(name)
        (federation.folder / "scaffold.toml").write_text(SCAFFOLD, encoding="utf-8")
        (federation.folder / "server.toml").write_text(SERVER, encoding="utf-8")
        runs = [
            federation.call("submit", plan, "--federation", "study").strip()
            for plan in ("plan.toml", "scaffold.toml", "server.toml")
        ]
        with federation.operator() as operator:
            for run in runs:
                federation.until(lambda run=run: operator.run(run)["status"] == "finished", "it is finished", 120)
        federation.alive = federation.try_call("federation", "verify", runs[0], "--federation", "study")
        federation.kill("coordinator", signal.SIGTERM)
        federation.runs = runs
        yield federation
    finally:
        federation.close()


@pytest.fixture
def study(made, tmp_path):
    """A copy of the federation's folder, to be meddled with."""
    shutil.copytree(made.folder / "study", tmp_path / "study")
    return tmp_path / "study"


def verify(study, run="last"):
    return CliRunner().invoke(app, ["federation", "verify", run, "--federation", str(study)])


def change(study, statement, *values):
    with sqlite3.connect(study / "federation.db") as connection:
        found = connection.execute(statement, values)
        assert found.rowcount == 1, statement
    connection.close()


def look(study, statement, *values):
    connection = sqlite3.connect(study / "federation.db")
    found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def other(text, at):
    """The text with one hexadecimal digit of it changed."""
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


def chunk_of(study, run, site):
    """The path of a chunk of a site's last update."""
    ((data,),) = look(study, "SELECT data FROM entries WHERE run = ? AND client = ? AND kind = 'train'", run, site)
    ((digest, _), *_) = json.loads(json.loads(data)["text"])["chunks"]
    (path,) = (study / "blobs").rglob(digest)
    return path


def test_an_undisturbed_run_is_whole(made, study):
    done = verify(study, made.runs[0])
    assert done.exit_code == 0, done.output
    assert "rounds 1 to 3 are sealed in a chain that nobody has changed" in done.stdout
    assert "names the same seals (3 of 3)" in done.stdout
    assert "the model after round 3 is the one that was sealed" in done.stdout
    assert "round 3: 2 updates are kept, none changed; folded again they give the sealed model" in done.stdout
    assert "rounds 1 to 2 are checked by the chain alone: the updates are no longer kept" in done.stdout
    assert "broken" not in done.output
    assert made.alive.exit_code == 0  # and so it was while the coordinator was at work
    assert "none changed; folded again" in made.alive.stdout


def test_where_sites_are_told_all_of_the_state_any_method_is_folded_again(made, study):
    done = verify(study, made.runs[1])
    assert "round 2: 2 updates are kept, none changed; folded again they give the sealed model" in done.stdout


def test_a_state_that_sites_are_not_told_is_not_there_to_fold_on(made, study):
    done = verify(study)  # the last run
    assert done.exit_code == 0, done.output
    assert "they were not folded again: what sites were asked does not hold all of the state before it" in done.stdout


def test_a_changed_seal_is_found_by_the_audit_log_and_without_it_by_the_next_one(made, study):
    run = made.runs[0]
    ((seq, text),) = look(
        study, "SELECT seq, data FROM events WHERE run = ? AND kind = 'RoundSealed' AND round = 2", run
    )
    data = json.loads(text)
    data["accepted"][0][1] = other(data["accepted"][0][1], 5)
    change(study, "UPDATE events SET data = ? WHERE run = ? AND seq = ?", json.dumps(data), run, seq)
    done = verify(study, run)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 2: the event with its seal was changed")
    connection = sqlite3.connect(study / "federation.db")
    connection.execute("DELETE FROM audit")
    connection.commit()
    connection.close()
    done = verify(study, run)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 3: its seal stands on ")


def test_a_seal_that_was_taken_away_is_missed(made, study):
    change(study, "DELETE FROM events WHERE run = ? AND kind = 'RoundSealed' AND round = 2", made.runs[0])
    done = verify(study, made.runs[0])
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 2: its seal is not there")


def test_the_last_seal_that_was_taken_away_is_missed(made, study):
    change(study, "DELETE FROM events WHERE run = ? AND kind = 'RoundSealed' AND round = 3", made.runs[0])
    assert verify(study, made.runs[0]).stderr.startswith("broken: round 3: its seal is not there")


@pytest.mark.parametrize("where", [0.3, 0.9])
def test_a_byte_of_the_model_is_found(made, study, where):
    run = made.runs[0]
    ((blob,),) = look(study, "SELECT blob FROM checkpoints WHERE run = ?", run)
    at = int(len(blob) * where)
    changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
    change(study, "UPDATE checkpoints SET blob = ? WHERE run = ?", changed, run)
    done = verify(study, run)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: the model after round 3 ")


def test_a_model_of_another_run_is_not_this_ones(made, study):
    """Whole, with a good digest of its own: only the seal knows."""
    ((blob,),) = look(study, "SELECT blob FROM checkpoints WHERE run = ?", made.runs[1])
    connection = sqlite3.connect(study / "federation.db")
    connection.execute("UPDATE checkpoints SET blob = ? WHERE run = ?", (blob, made.runs[2]))
    connection.commit()
    connection.close()
    done = verify(study, made.runs[2])
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: the model after round 2 was changed: its digest is ")


def test_a_byte_of_an_update_is_found(made, study):
    path = chunk_of(study, made.runs[0], "berlin")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    done = verify(study, made.runs[0])
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 3: the update of berlin: ")
    assert path.name in done.stderr
    path.unlink()
    assert path.name in verify(study, made.runs[0]).stderr


def test_a_byte_of_a_manifest_is_found(made, study):
    run = made.runs[0]
    ((text,),) = look(study, f"SELECT data FROM entries {OF_PARIS}", run)
    data = json.loads(text)
    data["text"] = data["text"].replace('"weight":{"', '"weight":{"x', 1)
    change(study, f"UPDATE entries SET data = ? {OF_PARIS}", json.dumps(data), run)
    done = verify(study, run)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 3: the update of paris: its manifest was changed")


def test_an_update_in_the_place_of_another_is_found(made, study):
    """With a manifest and a digest that fit together: it is not the one that was sealed."""
    import hashlib

    run = made.runs[0]
    ((text,),) = look(study, f"SELECT data FROM entries {OF_PARIS}", run)
    data = json.loads(text)
    manifest = json.loads(data["text"])
    manifest["weight"] = {name: 2 * value for name, value in manifest["weight"].items()}
    data["text"] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    data["manifest"] = hashlib.sha256(data["text"].encode()).hexdigest()
    change(study, f"UPDATE entries SET data = ? {OF_PARIS}", json.dumps(data), run)
    done = verify(study, run)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: round 3: the update ")
    assert "of paris was sealed, and the ledger has another one" in done.stderr


def test_what_the_sites_were_told_is_looked_at_as_well(made, study):
    run = made.runs[0]
    ((text,),) = look(study, "SELECT message FROM calls WHERE run = ? AND kind = 'train'", run)
    digest = json.loads(text)["berlin"]
    change(study, "UPDATE documents SET body = body || ' ' WHERE digest = ?", digest)
    assert verify(study, run).stderr.startswith("broken: round 3: the message: its manifest was changed")
    change(study, "DELETE FROM documents WHERE digest = ?", digest)
    assert verify(study, run).stderr.startswith("broken: round 3: the message: its manifest ")


def test_a_changed_entry_of_the_audit_log_is_named(made, study):
    change(study, "UPDATE audit SET who = 'nobody' WHERE seq = 3")
    done = verify(study)
    assert done.exit_code == 1
    assert done.stderr.startswith("broken: the audit log: entry 3 was changed")


def test_other_code_by_now_is_no_broken_link(made, study):
    ((text,),) = look(study, "SELECT tables FROM submitted WHERE run = ?", made.runs[0])
    change(study, "UPDATE submitted SET tables = ? WHERE run = ?", text.replace("0.1", "0.2"), made.runs[0])
    done = verify(study, made.runs[0])
    assert done.exit_code == 0
    assert "they were not folded again: its plan is another one by now" in done.stdout


def test_which_run_and_which_folder(made, study):
    done = verify(study, "nonsense")
    assert done.exit_code == 2
    assert "there is no run 'nonsense' here" in done.stderr
    done = verify(study / "operator")
    assert done.exit_code == 2
    assert "is an operator's folder: what is verified are the database and the tensors" in done.stderr


class Meanwhile:
    """A store, ledger or folder of blobs whose answers some functions change, as they were before something happened.

    ``then``: by method what it makes of the true answer, or raises.
    """

    def __init__(self, inner, **then):
        self._inner, self._then = inner, then

    def __getattr__(self, name):
        method, then = getattr(self._inner, name), self._then.get(name)
        return method if then is None else lambda *args, **named: then(method(*args, **named))


@pytest.fixture
def opened(study):
    folder = Folder(study)
    kept = keeping.opened(folder, folder.settings())
    with kept.ledger, kept.store:
        yield kept, folder


def two_rounds(runs):
    return [{**one, "rounds": 2} for one in runs]


@pytest.mark.parametrize("at", ["between its events and its model", "before its events"])
def test_a_round_that_is_committed_meanwhile_breaks_nothing(made, opened, at):
    kept, folder = opened
    asked = []

    def runs(found):
        """Two rounds, until their number was asked for twice: before the pass, and for its seals."""
        asked.append("runs")
        return two_rounds(found) if len(asked) <= 2 else found

    def events(found):
        return [one for one in found if one["round"] <= 2] if at.startswith("between") and len(asked) <= 2 else found

    verdict = verified(replace(kept, store=Meanwhile(kept.store, runs=runs, events=events)), folder, made.runs[0])
    assert verdict.broken == ""
    assert verdict.holds[0].startswith("rounds 1 to 3 are sealed")
    assert len(verdict.holds) == len(set(verdict.holds)) == 5
    assert len(asked) == 5  # before and after the pass that did not fit, and the one that did


def test_updates_that_are_let_go_while_they_are_folded_break_nothing(made, opened, monkeypatch):
    kept, folder = opened
    gone = []

    def folded(*args):
        gone.append(True)
        raise BlobError("the chunk is not there")

    monkeypatch.setattr(verifying, "folded", folded)
    ledger = Meanwhile(kept.ledger, calls=lambda found: [] if gone else found)
    verdict = verified(replace(kept, ledger=ledger), folder, made.runs[0])
    assert (verdict.broken, gone) == ("", [True])
    assert verdict.holds[-1].startswith("rounds 1 to 3 are checked by the chain alone")
    gone.clear()
    verdict = verified(kept, folder, made.runs[0])  # they are still there, and one of them is not to be read
    assert verdict.broken == "round 3: an update cannot be read: the chunk is not there"
    assert gone == [True]


def test_a_run_that_never_stands_still_is_not_read_for_ever(made, opened):
    kept, folder = opened
    asked = []

    def runs(found):
        asked.append("runs")
        return [{**one, "rounds": 100 + len(asked)} for one in found]

    verdict = verified(replace(kept, store=Meanwhile(kept.store, runs=runs)), folder, made.runs[0])
    assert verdict.broken.startswith(
        "round 4: its seal is not there, and 114 rounds are committed; but the run went on"
    )
    assert verdict.broken.endswith(f"may be no more than that: `insitu pause {made.runs[0]}`, and verify it again")
    assert len(asked) == 3 * verifying.PASSES


def test_what_a_run_that_was_long_over_has_left_is_cleared(made, study):
    """The updates of the last round, and every document: what stays is the result, and the chain."""
    import asyncio
    import time

    from insitu.federation.exchanging import OLD, Exchanging

    assert len(look(study, "SELECT * FROM calls")) == 3  # of each run the last round's
    assert len(look(study, "SELECT * FROM documents")) == 6  # what was told in these, and a description of each run
    folder = Folder(study)
    kept = keeping.opened(folder, folder.settings())

    async def swept(later):
        exchange = Exchanging(kept, folder.settings(), folder.code, lambda *told, **more: None)
        exchange.exchange.wall = lambda: time.time() + later
        await exchange.sweep()
        await exchange.stop()

    with kept.ledger, kept.store:
        asyncio.run(swept(OLD / 2))
        assert len(look(study, "SELECT * FROM calls")) == 3
        assert verify(study, made.runs[0]).exit_code == 0
        for path in (study / "blobs").rglob("?" * 64):
            os.utime(path, (time.time() - OLD - 60,) * 2)
        asyncio.run(swept(OLD + 60))
    for table in ("calls", "entries", "documents"):
        assert look(study, f"SELECT * FROM {table}") == []
    assert list((study / "blobs" / "blobs").rglob("?" * 64)) == []
    done = verify(study, made.runs[0])
    assert done.exit_code == 0
    assert "rounds 1 to 3 are checked by the chain alone" in done.stdout
