"""Rounds in real time on three ranks: rank 0 serves, rank 1 is fast, rank 2 slow."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from real_time_rank import CASES, ROUNDS

from insitu.core import wire
from insitu.core.errors import EngineError
from insitu.core.protocols import Setting
from insitu.core.types import Answer, Failure, Task, Update
from insitu.engines.spmd.desk import Desk, packed, unpacked

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of what three ranks wrote, each of which has run all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "3"}
    base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    logs = [(folder / f"rank{rank}.log").open("w") for rank in range(3)]
    ranks = [
        subprocess.Popen(
            # Imported, so that its learner has the name that it has here: a replay is of the same plan.
            [sys.executable, "-c", f"import real_time_rank as r; r.main(r.Path({str(folder)!r}))"],
            env={**base, "RANK": str(rank)}, stdout=logs[rank], stderr=subprocess.STDOUT,
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        codes = [rank.wait(280) for rank in ranks]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            log.close()
    assert codes == [0] * 3, "\n".join((folder / f"rank{rank}.log").read_text()[-2000:] for rank in range(3))
    return folder


def told(out, case, rank=0):
    found = wire.decode((out / f"{case}.{rank}").read_bytes())
    assert "error" not in found, found["error"]
    return found


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_end_with_the_same(out, case):
    first, *others = (told(out, case, rank) for rank in range(3))
    for other in others:
        for name in ("id", "status", "state", "rounds", "lead", "wire", "loss"):
            assert other[name] == first[name], name
    assert first["status"] == ("stopped" if case == "stopped" else "finished")


def test_a_slow_rank_contributes_less(out):
    """It is one of two, each with a client of its own."""
    found = told(out, "a_slow_rank")
    (fast,), (slow,) = (told(out, "a_slow_rank", rank)["here"] for rank in (1, 2))
    counts = {client: sum(row[0] == client for row in found["rows"]) for client in "01"}
    assert sum(counts.values()) == ROUNDS
    assert counts[slow] < counts[fast]
    assert any("rank 0 serves, the other 2 ranks work" in text for text in found["said"])
    assert len(found["loss"]) == 3
    assert all(sent > 0 for sent in found["wire"])


def test_with_a_bound_the_fast_one_waits(out):
    found = told(out, "a_bound")
    counts = [sum(row[0] == client for row in found["rows"]) for client in "01"]
    assert max(found["lead"]) == 3
    assert abs(counts[0] - counts[1]) <= 3


@pytest.mark.parametrize("case", ["a_slow_rank", "a_bound"])
def test_a_replay_on_inline_has_the_same_bits(out, case):
    found = told(out, case)
    again = CASES[case](engine="inline", store=out / "runs.db", replay=found["id"])
    assert again["state"] == found["state"]
    assert sorted(again["rows"]) == sorted(found["rows"])


def test_all_answers_and_a_bound_of_zero_are_synchronous_to_the_bit(out):
    found, ordinary = told(out, "everyone"), CASES["everyone"](engine="inline", store=None, buffered=None)
    assert (found["state"], found["memories"]) == (ordinary["state"], ordinary["memories"])
    np.testing.assert_allclose(found["loss"], ordinary["loss"], rtol=1e-9)


def test_any_rank_can_stop_it(out):
    assert 0 < told(out, "stopped")["rounds"] < ROUNDS


def test_alone_it_is_inline(tmp_path):
    from insitu.engines.spmd import Spmd

    alone, expected = (CASES["everyone"](engine=engine, store=None) for engine in (Spmd(), "inline"))
    assert (alone["state"], alone["memories"]) == (expected["state"], expected["memories"])


# ------------------------------------------------------------ what travels


def test_an_answer_and_a_failure_survive():
    asked = Task("run", 3, 2, "train", "b", {}, 1, index=7, place=4, block=7)
    answer = Answer(asked, Update({"shared": {"w": np.arange(3.0)}}, {"shared": 2.0}, {"loss": 1.5}), {"algorithm": {}})
    back = unpacked(wire.decode(wire.encode(packed(answer))), asked)
    assert back.task is asked
    assert back.update.weight == {"shared": 2.0}
    assert back.update.metrics == {"loss": 1.5}
    assert back.memory == {"algorithm": {}}
    np.testing.assert_array_equal(back.update.value["shared"]["w"], np.arange(3.0))
    failed = Failure("b", 7, 7, "OSError: gone", "trace")
    assert unpacked(wire.decode(wire.encode(packed(failed))), asked) == failed


# ------------------------------------------------------------ the desk, with ranks that do what the test says


class Letters:
    """Rank 0's view of two others, whose letters come in the order that the test chooses."""

    def __init__(self, order=(), gone_at=None):
        self.rank, self.world, self.serving, self.stop_wanted = 0, 3, True, False
        self.order, self.gone_at = list(order), gone_at
        self.handed, self.down, self.met = [], [], 0

    def letter(self, doing):
        if not self.order:
            raise EngineError("rank 1 of 3 is missing")
        return self.order.pop(0)

    def take(self, sender, doing):
        return {"error": "E", "trace": "", "wanted": sender == 2, "said": [f"from {sender}"]}

    def hand(self, value, to, doing):
        if to == self.gone_at:
            raise EngineError(f"rank {to} of 3 is missing")
        self.handed.append((to, value["task"]["client"] if "task" in value else value["last"]))

    def turn_down(self, rank):
        self.down.append(rank)

    def meet(self, doing):
        self.met += 1


def opened(letters):
    said = []
    setting = Setting(None, None, {"b": {"x": 1}}, 1, 0, notify=said.append)
    return Desk(setting, letters), said


def task(client, index):
    return Task("run", 1, 0, "train", client, {}, 0, index, index)


def test_a_client_goes_back_to_the_rank_that_had_it():
    letters = Letters([1, 2])
    desk, said = opened(letters)
    for index, client in enumerate("abc"):
        desk.start(task(client, index))
    assert letters.handed == [(1, "a"), (2, "b")]  # c waits
    assert desk.arrived() == Failure("a", 0, 0, "E", "")
    assert letters.handed[-1] == (1, "c")
    assert not letters.stop_wanted
    assert desk.arrived().client == "b"
    assert letters.stop_wanted
    assert said[1:] == ["rank 1: from 1", "rank 2: from 2"]
    letters.order.append(1)
    assert desk.arrived().client == "c"
    desk.start(task("b", 4))
    desk.start(task("a", 5))
    assert letters.handed[-2:] == [(2, "b"), (1, "a")]


def test_at_the_end_nobody_is_wanted_any_more():
    letters = Letters([2, 1])
    desk, _ = opened(letters)
    for index, client in enumerate("ab"):
        desk.start(task(client, index))
    desk.dismiss("last")
    assert letters.down == [2, 1]
    assert letters.handed[-2:] == [(1, "last"), (2, "last")]
    assert letters.met == 1


@pytest.mark.parametrize("letters", [Letters([]), Letters([1, 2], gone_at=2)], ids=["at work", "being told"])
def test_a_rank_that_dies_at_the_end_takes_nothing_with_it(letters):
    desk, _ = opened(letters)
    desk.start(task("a", 0))
    desk.dismiss("last")
    assert letters.met == 0
