"""Federations under a virtual clock, network and disk: nothing that is done to them breaks what users rely on.

Each seed is one history of losses, cuts, partitions, full disks and deaths; what is checked after every event is in
``sim/checks.py``. A seed that fails is seen again with ``python -m tests.simulator --seed N --trace``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from sim.faults import Chances
from sim.network import Weather
from sim.world import simulate

from insitu.engines.https.calls.machine import Records
from insitu.engines.https.calls.open_call import OpenCall
from insitu.engines.https.session import HttpsSession
from insitu.store.blobs.folder import FolderBlobs, FolderPart

AGAIN = "see it again: python -m tests.simulator --seed {} --trace"
ROUGH = Chances(
    coordinator_dies=60, site_dies=60, at_failpoint=0.02, weather=Weather(lost_reply=0.1, doubled=0.3, cut=0.1),
    until=900,
)  # fmt: skip


@pytest.mark.parametrize("tens", range(10))
def test_a_hundred_seeds(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        result = simulate(seed)
        assert not result.trouble, f"seed {seed}: {result.trouble}; {AGAIN.format(seed)}"


@pytest.mark.parametrize("seed", [145, 804])
def test_seeds_that_have_found_something(seed: int) -> None:
    """145: a chunk that updates of two rounds had in common went with the older one, after a restart."""
    result = simulate(seed)
    assert not result.trouble, f"seed {seed}: {result.trouble}; {AGAIN.format(seed)}"


@pytest.mark.long
@pytest.mark.parametrize("hundreds", range(1, 11))
def test_a_thousand_seeds(hundreds: int) -> None:
    for seed in range(100 * hundreds, 100 * hundreds + 100):
        result = simulate(seed)
        assert not result.trouble, f"seed {seed}: {result.trouble}; {AGAIN.format(seed)}"


def test_the_same_seed_is_the_same_history_in_every_process() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom sim.world import simulate\nprint(simulate(8).trace)"
    told = {simulate(8).trace}
    for hashes in ("1", "2"):  # sets and dicts of text go another way in each process
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        told.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(told) == 1
    assert simulate(9).trace not in told


def test_where_nothing_goes_wrong_nobody_dies_and_everyone_is_in() -> None:
    result = simulate(0, chances=Chances(until=0.0))
    assert (result.trouble, result.deaths, result.excluded) == ("", 0, False)


def test_processes_die_at_failpoints_of_both_sides() -> None:
    hits: dict[str, int] = {}
    for seed in (1, 2, 3):
        hits |= simulate(seed, chances=ROUGH).hits
    assert {name.partition(".")[0] for name in hits} >= {"blob", "call", "chunk", "ledger", "site", "store", "update"}


# ------------------------------------------------------------ a simulator that finds nothing proves nothing


def found(seeds: int = 20) -> str:
    """The first thing that is wrong in some rough seeds."""
    for seed in range(seeds):
        if trouble := simulate(seed, chances=ROUGH).trouble:
            return trouble
    return ""


def test_it_finds_an_acknowledgement_that_comes_before_the_journal() -> None:
    async def early(self, event):
        from insitu.engines.https.calls import machine

        _, effects = machine.step(self.state, event, self.now())
        if any(isinstance(effect, Records) for effect in effects) and isinstance(event, machine.Arrives):
            self._inbox.put_nowait((event, self._loop.create_future()))
            return effects
        return await whole(self, event)

    whole = OpenCall.happen
    with patch.object(OpenCall, "happen", early):
        assert "told that its update counts" in found()


def test_it_finds_chunks_that_are_acknowledged_before_they_are_synced() -> None:
    def hasty(self):
        self._hash.update(b"")
        self._blobs._show(self._path, self._blobs._whole(self._key[1]))
        self._close()

    with patch.object(FolderPart, "finish", hasty), patch.object(FolderBlobs, "sync", lambda self: None):
        assert found()


def test_it_finds_an_update_that_counts_twice() -> None:
    def twice(self, key, tasks, wanted, replayed):
        for item in told(self, key, tasks, wanted, replayed):
            yield item
            if item.__class__.__name__ == "Answer" and key.kind == "train":
                yield item

    told = HttpsSession._told
    with patch.object(HttpsSession, "_told", twice):
        assert found(3)


def test_it_finds_a_round_that_forgets_an_acknowledged_update() -> None:
    def lossy(self, round, counted):
        return sealed(self, round, counted)[:-1]

    sealed = HttpsSession.seal
    with patch.object(HttpsSession, "seal", lossy):
        assert found(3)
