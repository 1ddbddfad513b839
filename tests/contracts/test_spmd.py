"""The engine ``spmd`` on 2 and 3 ranks: for every method on disk what ``inline`` says, and the bits of one rank."""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spmd_cases import CASES, STEPS

from insitu.core import wire
from insitu.engines.inline import Inline
from insitu.engines.processes import Processes
from insitu.engines.spmd import Spmd
from insitu.engines.vectorized import Vectorized

HERE = Path(__file__).parent
WORLDS = (2, 3)
pytestmark = pytest.mark.timeout(600)  # the first test waits for all ranks to have run all cases
CLOSE = {"float64": 1e-12, "float32": 1e-6}


def started(world: int, out: Path) -> None:
    """All ranks, once: each runs all cases."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    base |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, str(HERE / "spmd_rank.py"), str(out)]
    logs = [(out / f"rank{rank}.log").open("w") for rank in range(world)]
    ranks = [
        subprocess.Popen(command, env={**base, "RANK": str(rank)}, stdout=logs[rank], stderr=subprocess.STDOUT)
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(500) for rank in ranks]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            log.close()
    said = "\n".join((out / f"rank{rank}.log").read_text()[-2000:] for rank in range(world))
    assert codes == [0] * world, said


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """``outputs(world)``: the folder of what all ranks wrote. Test processes beside this one share it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def of(world: int) -> Path:
        out = root / f"spmd-{world}"
        with (root / f"spmd-{world}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (out / "done").exists():
                out.mkdir(exist_ok=True)
                started(world, out)
                (out / "done").touch()
        return out

    return of


def told(out: Path, case: str, rank: int) -> dict[str, Any]:
    found = wire.decode((out / f"{case}.{rank}").read_bytes())
    assert "error" not in found, found["error"]
    return found


@functools.cache
def meant(case: str) -> dict[str, Any]:
    """What inline says."""
    return {**CASES, **STEPS}[case](Inline())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_it_says_what_inline_says(outputs, case, world):
    """The same on every rank, bit for bit, and to rounding what one process says, client after client."""
    ranks = [told(outputs(world), case, rank) for rank in range(world)]
    expected, found = meant(case), ranks[0]
    for other in ranks[1:]:
        assert other["state"] == found["state"]
        assert (other["rows"], other["losses"], other["wire"]) == (found["rows"], found["losses"], found["wire"])
        assert other["measured"] == found["measured"]
    assert found["sequential"] == ""
    assert found["rows"] == expected["rows"]
    close = CLOSE["float32" if found["flat"].dtype == np.float32 else "float64"]
    for a, b in zip(found["leaves"], expected["leaves"], strict=True):
        np.testing.assert_allclose(a, b, rtol=close * 10, atol=close)
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["measured"], expected["measured"], rtol=1e-5)
    assert all(len(row) == world and min(row) > 0 for row in found["wire"])


@pytest.mark.parametrize("case", ["bits", "drawn", "clipped", "over-selected", "as-many-clients-as-ranks"])
def test_any_number_of_ranks_has_the_same_bits(outputs, case):
    """Those of lanes in one process, and of worker processes."""
    found = {told(outputs(world), case, 0)["state"] for world in WORLDS}
    found |= {CASES[case](Vectorized(lanes=3, compile=False, device="cpu"))["state"]}
    if case == "bits":
        found |= {CASES[case](Processes(workers=2, lanes=3, compile=False))["state"]}
    assert len(found) == 1


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["drawn", "scaffold-float64"])
def test_every_client_remembers_somewhere(outputs, case, world):
    """All memories are there, the newest of each, to rounding inline's; of everyone's rounds, each at one rank only."""
    ranks = [told(outputs(world), case, rank)["memories"] for rank in range(world)]
    expected = meant(case)["memories"]
    assert {client for rank in ranks for client in rank} == set(expected)
    if case != "drawn":
        assert sum(map(len, ranks)) == len(expected)
    for client, memory in expected.items():
        own = [rank[client]["algorithm"]["method"] for rank in ranks if client in rank]
        wanted = memory["algorithm"]["method"]
        assert any(all(np.allclose(one[name], w, rtol=1e-9, atol=1e-12) for name, w in wanted.items()) for one in own)


@pytest.mark.parametrize("world", WORLDS)
def test_in_real_time_clients_compute_what_inline_computes(outputs, world):
    """To the bit, and rank 0 has all memories."""
    found, expected = told(outputs(world), "in-real-time", 0), meant("in-real-time")
    assert found["state"] == expected["state"]
    assert wire.digest(found["memories"]) == wire.digest(expected["memories"])
    assert told(outputs(world), "in-real-time", world - 1)["memories"] == {}


@pytest.mark.parametrize("world", WORLDS)
def test_the_sum_goes_once_up_and_once_down(outputs, world):
    """To the byte: 2000 features more are 16,000 bytes more, for ranks at the ends once and for others twice."""
    small, large = (told(outputs(world), f"wide-{n}", 0) for n in (1000, 3000))
    more = 2000 * 2 * 4
    expected = [more if rank in (0, world - 1) else 2 * more for rank in range(world)]
    # The second round: in the first, choices travel as well.
    assert [b - a for a, b in zip(small["wire"][1], large["wire"][1], strict=True)] == expected


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("case", "close"),
    [("steps-float64", 1e-12), ("steps-few", 1e-12), ("steps-float32", 1e-6), ("steps-fp16", 2e-3)],
)
def test_gradients_averaged_by_torch_are_those_averaged_by_us(outputs, case, close, world):
    """DistributedDataParallel's, the batch cut among ranks, against inline's, client by client."""
    ranks = [told(outputs(world), case, rank) for rank in range(world)]
    expected = meant(case)
    for found in ranks:
        assert found["gradient"] == "DistributedDataParallel"
        np.testing.assert_array_equal(found["flat"], ranks[0]["flat"])
        np.testing.assert_allclose(found["flat"], expected["flat"], rtol=close, atol=close)
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=max(close, 1e-6))
        np.testing.assert_allclose(found["measured"], expected["measured"], rtol=max(close, 1e-6))


@pytest.mark.parametrize("world", WORLDS)
def test_hooks_of_torch_make_gradients_smaller(outputs, world):
    """The bytes are those of a ring's all-reduce: 21 numbers a step, six steps, in four bytes, in two, or low rank."""
    sent = {}
    for hook in ("float32", "fp16", "powersgd"):
        found = told(outputs(world), f"steps-{hook}", 0)
        assert np.isfinite(found["flat"]).all()
        # Of two rounds after the first; what is exchanged beside gradients is the same for all.
        sent[hook] = found["rows"][1][2]
    assert sent["float32"] == world * 6 * 21 * 4
    assert sent["fp16"] == world * 6 * 21 * 2
    assert sent["powersgd"] == world * 6 * (3 + 36 + 3) * 4  # factors of [3, 36] at rank 1, and the bias


def test_on_one_rank_it_is_the_same(outputs):
    """Without others, the module is differentiated as it is: k ranks are one process with k times the batch."""
    alone = STEPS["steps-float64"](Spmd(lanes=3, compile=False))
    assert alone["gradient"] == "one module"
    for world in WORLDS:
        found = told(outputs(world), "steps-float64", 0)
        np.testing.assert_allclose(found["flat"], alone["flat"], rtol=1e-12, atol=1e-13)
