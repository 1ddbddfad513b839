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
from insitu.core.types import Answer, Failure, Task, Update
from insitu.engines.spmd.desk import packed, unpacked

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
    """It is one of two, and the run is over long before it has done its half."""
    found = told(out, "a_slow_rank")
    counts = sorted(sum(row[0] == client for row in found["rows"]) for client in "01")
    assert sum(counts) == ROUNDS
    assert counts[0] < ROUNDS / 3
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
    task = Task("run", 3, 2, "train", "b", {}, 1, index=7, place=4, block=7)
    answer = Answer(task, Update({"shared": {"w": np.arange(3.0)}}, {"shared": 2.0}, {"loss": 1.5}), {"algorithm": {}})
    back = unpacked(wire.decode(wire.encode(packed(answer))), task)
    assert back.task is task
    assert back.update.weight == {"shared": 2.0}
    assert back.update.metrics == {"loss": 1.5}
    assert back.memory == {"algorithm": {}}
    np.testing.assert_array_equal(back.update.value["shared"]["w"], np.arange(3.0))
    failed = Failure("b", 7, 7, "OSError: gone", "trace")
    assert unpacked(wire.decode(wire.encode(packed(failed))), task) == failed
