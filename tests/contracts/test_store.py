"""What every Store promises, tried with each class found in ``insitu.store``.

A store class takes one argument, the place where it keeps things: a ``path``, or the ``url`` of a server.
"""

import importlib
import inspect
import math
import pkgutil

import numpy as np
import pytest

import insitu.store
from insitu.core import wire
from insitu.core.errors import ResumeError, StoreError
from insitu.core.events import (
    ClientFailed,
    Evaluated,
    Notice,
    RoundCommitted,
    RoundDiscarded,
    RoundStarted,
    RunStarted,
    UpdatesArrived,
)
from insitu.core.protocols import Checkpoint, Store

VERBS = [name for name in vars(Store) if not name.startswith("_")]


def store_classes():
    """Those that say where things are kept: not what they have in common."""
    found = []
    for name in pkgutil.walk_packages(insitu.store.__path__, "insitu.store."):
        module = importlib.import_module(name.name)
        for _, one in inspect.getmembers(module, inspect.isclass):
            if one.__module__ == module.__name__ and all(hasattr(one, verb) for verb in VERBS):
                found.append(one)
    return [one for one in found if not any(issubclass(other, one) and other is not one for other in found)]


@pytest.fixture(params=store_classes(), ids=lambda one: one.__name__)
def open_store(request, tmp_path):
    """Opens the same store again each time it is called."""
    opened = []
    place = tmp_path / "new folder" / "store"
    if "url" in inspect.signature(request.param).parameters:
        place = request.getfixturevalue("postgres").fresh()

    def one():
        opened.append(request.param(place))
        return opened[-1]

    yield one
    for store in opened:
        store.close()


def started(round):
    return RoundStarted("a-run", round, 2)


def arrived(round, client, **metrics):
    return UpdatesArrived("a-run", round, list(metrics), [[client, 10.0, 100, *metrics.values()]], 200)


def committed(round, **metrics):
    return RoundCommitted("a-run", round, 2, 0, 0.5, metrics, 100, 200)


def play(store, round, run="a-run", **memories):
    """One round with its events and a state that tells the round."""
    store.event(run, started(round))
    for client in memories:
        store.event(run, arrived(round, client, loss=1 / round))
    store.event(run, committed(round, loss=1 / round))
    store.commit(run, Checkpoint(round, {"w": np.full(3, float(round))}, {}, memories))


def test_a_class_is_found():
    assert {one.__name__ for one in store_classes()} >= {"SqliteStore", "PostgresStore"}


def test_the_record_comes_back_with_id_status_and_start(open_store):
    store = open_store()
    record = {"seed": 7, "config": {"lr": np.float32(0.5), "bad": math.nan, 3: [np.int64(1), (True, None)]}}
    store.create("a-run", record)
    for seen in (store.record("a-run"), open_store().record("a-run")):
        assert seen["seed"] == 7
        assert seen["config"] == {"lr": 0.5, "bad": None, "3": [1, [True, None]]}
        assert (seen["id"], seen["status"]) == ("a-run", "running")
        assert seen["started"].startswith("20")


def test_update_changes_the_named_fields_alone(open_store):
    store = open_store()
    store.create("a-run", {"seed": 7, "choices": {}})
    store.update("a-run", status="finished", choices={"lanes": np.int64(4)})
    seen = open_store().record("a-run")
    assert (seen["seed"], seen["status"], seen["choices"]) == (7, "finished", {"lanes": 4})


def test_an_id_is_taken_once(open_store):
    open_store().create("a-run", {"seed": 1})
    with pytest.raises(StoreError, match="'a-run' already"):
        open_store().create("a-run", {"seed": 2})
    assert open_store().record("a-run")["seed"] == 1


def test_the_beginning_of_an_id_will_do_and_a_wrong_one_names_the_nearest(open_store):
    store = open_store()
    with pytest.raises(ResumeError, match="nor any other"):
        store.record("a-run")
    for run in ("blue-whale", "blue-wolf", "blue", "green%"):
        store.create(run, {"name": run})
    assert store.record("blue")["name"] == "blue"
    assert store.record("blue-wh")["id"] == "blue-whale"
    assert store.load("green") is None
    with pytest.raises(ResumeError, match=r"2 runs that begin with 'blue-w'.*blue-whale, blue-wolf"):
        store.record("blue-w")
    for wrong in ("bleu-wolf", "Blue-Wolf", "%ue-wolf"):
        with pytest.raises(ResumeError, match="nearest of its 4 is 'blue-wolf'"):
            store.load(wrong)
    for verb in (store.record, store.load, store.events, store.update):
        with pytest.raises(ResumeError):
            verb("")
    for verb, argument in ((store.event, started(1)), (store.commit, Checkpoint(1, {}, {}, {}))):
        with pytest.raises(ResumeError):
            verb("nobody", argument)


def test_before_the_first_round_there_is_no_checkpoint(open_store):
    store = open_store()
    store.create("a-run", {})
    store.event("a-run", RunStarted("a-run", 0, "inline", 3, 2))
    assert store.load("a-run") is None


def test_a_checkpoint_comes_back_bit_for_bit(open_store):
    torch = pytest.importorskip("torch")
    state = {
        "w": {"z/1": torch.arange(4).bfloat16(), "a.2": np.array([math.nan, -0.0])},
        "round": 3,
        "none": None,
    }
    stages = {"0": {"clip": np.float32(0.1)}}
    memories = {"b": {"algorithm": {"c": np.ones(2)}, "stages": {}}, "a": None}
    store = open_store()
    store.create("a-run", {})
    store.commit("a-run", Checkpoint(3, state, stages, memories, finished=True))
    store.close()
    seen = open_store().load("a-run")
    assert (seen.round, seen.finished) == (3, True)
    for kept, given in ((seen.state, state), (seen.stages, stages), (dict(seen.memories), memories)):
        assert wire.digest(kept) == wire.digest(given)
    assert list(seen.state) == list(state)  # sums over a state go in its order
    assert isinstance(seen.state["w"]["z/1"], torch.Tensor)


def test_only_the_newest_checkpoint_is_kept_and_memories_change_one_by_one(open_store):
    store = open_store()
    store.create("a-run", {})
    play(store, 1, a={"n": 1}, b={"n": 1})
    play(store, 2, b={"n": 2})
    store.flush()
    play(store, 3, c={"n": 3})
    store.close()
    seen = open_store().load("a-run")
    assert seen.round == 3
    assert seen.state["w"].tolist() == [3, 3, 3]
    assert dict(seen.memories) == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}


def test_events_come_back_in_order_as_plain_data(open_store):
    told = [
        RunStarted("a-run", 0, "inline", 2, 2, {"lanes": 4}),
        started(1),
        arrived(1, "ward/7 'ä'; drop table runs", loss=0.5),
        ClientFailed("a-run", 1, "b", "ValueError: \x1b[31m\nno"),
        committed(1, loss=0.5),
        Evaluated("a-run", 1, "clients", {"loss": 0.5}, {"a": {"loss": 0.5}}, {"loss": {"p10": 0.4}}),
        Notice("a-run", 2, "slower"),
    ]
    store = open_store()
    store.create("a-run", {})
    for event in told:
        store.event("a-run", event)
    assert store.events("a-run") == [event.plain() for event in told]
    assert open_store().events("a-run", until_round=1) == [event.plain() for event in told[:-1]]
    assert open_store().events("a-run", until_round=0) == [told[0].plain()]


def test_events_of_some_kinds_come_back_alone(open_store):
    store = open_store()
    store.create("a-run", {})
    for round in (1, 2, 3):
        play(store, round, a={"n": round})
        store.event("a-run", Evaluated("a-run", round, "central", {"accuracy": 0.5}))
    for seen in (store, open_store()):
        found = seen.events("a-run", kinds=("RoundCommitted", "Evaluated"))
        assert found == [e for e in seen.events("a-run") if e["event"] in ("RoundCommitted", "Evaluated")]
        assert len(found) == 6
        last = seen.events("a-run", kinds={"Evaluated"}, until_round=2)
        assert [(event["event"], event["round"]) for event in last] == [("Evaluated", 1), ("Evaluated", 2)]
        assert seen.events("a-run", kinds=()) == []


def test_numbers_that_are_not_finite_come_back_as_nan_and_numpy_ones_as_plain(open_store):
    store = open_store()
    store.create("a-run", {})
    store.event("a-run", arrived(1, "a", loss=math.inf, error=np.float32(0.5), count=np.int64(3)))
    store.event("a-run", Evaluated("a-run", 1, "clients", {"loss": -math.inf}, {"a": {"loss": math.nan}}))
    first, second = open_store().events("a-run") or store.events("a-run")
    assert first["metrics"] == ["loss", "error", "count"]
    ((client, examples, bytes_up, loss, error, count),) = first["rows"]
    assert math.isnan(loss)
    assert (client, examples, bytes_up, error, count) == ("a", 10.0, 100, 0.5, 3)
    assert math.isnan(second["metrics"]["loss"])
    assert math.isnan(second["clients"]["a"]["loss"])


def test_rewind_forgets_later_rounds_and_the_run_goes_on(open_store):
    store = open_store()
    store.create("a-run", {})
    for round in (1, 2):
        play(store, round, a={"n": round})
    store.event("a-run", started(3))
    store.event("a-run", arrived(3, "a", loss=9.0))
    store.close()
    again = open_store()
    assert again.load("a-run").round == 2
    again.rewind("a-r", 2)
    assert [event["round"] for event in again.events("a-run")] == [1, 1, 1, 2, 2, 2]
    play(again, 3, a={"n": 3})
    again.close()
    last = open_store()
    assert last.load("a-run").memories["a"] == {"n": 3}
    assert [event["round"] for event in last.events("a-run")] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_rewind_to_zero_starts_afresh_and_to_a_lost_round_is_refused(open_store):
    store = open_store()
    store.create("a-run", {})
    for round in (1, 2, 3):
        play(store, round, a={"n": round})
    with pytest.raises(StoreError, match="at round 3 and cannot go back to 2"):
        store.rewind("a-run", 2)
    assert store.load("a-run").round == 3
    store.rewind("a-run", 0)
    assert store.load("a-run") is None
    assert store.events("a-run") == []
    assert store.runs()[0]["rounds"] == 0
    play(store, 1)
    assert dict(store.load("a-run").memories) == {}


def test_runs_are_listed_newest_first_with_their_last_metrics(open_store):
    store = open_store()
    store.create("old", {"config": {"lr": 1}})
    store.create("a-run", {"config": {"lr": 2}})
    for round in (1, 2, 3):
        play(store, round)
        if round == 2:
            store.event("a-run", Evaluated("a-run", round, "central", {"accuracy": 0.9}))
    store.update("a-run", status="finished")
    new, old = open_store().runs()
    assert (new["id"], new["status"], new["rounds"], new["config"]) == ("a-run", "finished", 3, {"lr": 2})
    assert new["metrics"] == {"train": {"loss": 1 / 3}, "central": {"accuracy": 0.9}}
    assert (old["id"], old["status"], old["rounds"], old["metrics"]) == ("old", "running", 0, {})
    assert new["started"] >= old["started"]


def test_a_run_resumed_elsewhere_is_not_written_by_who_had_it(open_store):
    stale = open_store()
    stale.create("a-run", {})
    play(stale, 1)
    stale.flush()
    now = open_store()
    now.rewind("a-run", now.load("a-run").round)
    play(stale, 2)
    with pytest.raises(StoreError, match="resumed by another process"):
        stale.flush()
    with pytest.raises(StoreError, match="resumed by another process"):
        play(stale, 3)
    with pytest.raises(StoreError, match="resumed by another process"):
        stale.update("a-run", status="failed")
    play(now, 2)
    now.flush()
    seen = open_store()
    assert seen.load("a-run").round == 2
    assert len(seen.events("a-run")) == 4
    assert seen.record("a-run")["status"] == "running"


def test_a_state_that_is_no_tree_is_named_and_the_run_stays_where_it_was(open_store):
    store = open_store()
    store.create("a-run", {})
    play(store, 1, a={"n": 1})
    store.flush()
    store.commit("a-run", Checkpoint(2, {"shared": {"w": object()}}, {}, {"a": {"n": 2}}))
    store.event("a-run", RoundDiscarded("a-run", 2, "no tree"))
    with pytest.raises(StoreError, match=r"'a-run' cannot be stored after round 1: state/shared/w is a .*object"):
        store.flush()
    store.flush()
    seen = open_store().load("a-run")
    assert (seen.round, seen.memories["a"]) == (1, {"n": 1})
    play(store, 2)
    store.flush()
    assert open_store().load("a-run").memories["a"] == {"n": 2}


def test_closing_twice_and_reading_after_it_do_no_harm(open_store):
    store = open_store()
    store.create("a-run", {})
    play(store, 1)
    store.close()
    store.close()
    assert store.load("a-run").round == 1
