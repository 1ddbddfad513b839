"""Pauses between attempts."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from random import Random

import pytest
from scripted import run

from insitu.core.errors import Refusal
from insitu.engines.https.site.patience import LATEST, LONGEST, Patience


def pauses(errors, progress=lambda: 0):
    """Seconds between attempts that fail like this, and then succeed."""
    times, left = [], list(errors)

    async def attempt():
        times.append(asyncio.get_running_loop().time())
        if left:
            raise left.pop(0)
        return "done"

    said = []
    found, _ = run(Patience(Random(4), said.append).until("chunk", attempt, progress))
    assert found == "done"
    return between(times), said


def between(times):
    return [after - before for before, after in pairwise(times)]


def test_pauses_grow_up_to_a_minute_and_are_told():
    found, said = pauses([ConnectionError("no route")] * 200)
    assert found[0] <= 1.0
    assert max(found) <= LONGEST
    assert sum(found[20:]) / 180 == pytest.approx(LONGEST / 2, rel=0.15)  # drawn uniformly from 0 on
    assert said[0].startswith("chunk: ConnectionError: no route; attempt 1, again in ")
    assert len(said) == 22


def test_a_short_absence_is_not_made_a_long_one():
    """However unlucky its draws are, a site is back soon after the coordinator is: by then its next attempt is due."""
    random, latest = Random(0), 0.0
    for _ in range(300):
        absent, now = 5.0, []

        async def attempt(absent=absent, now=now):
            now.append(asyncio.get_running_loop().time())
            if now[-1] < now[0] + absent:
                raise ConnectionError("away")

        run(Patience(random, lambda text: None).until("hello", attempt))
        latest = max(latest, now[-1] - now[0])
        assert all(pause <= max(1.0, before - now[0]) for before, pause in zip(now, between(now), strict=False))
    assert 5.0 <= latest <= 2 * 5.0


def test_what_a_coordinator_asks_for_is_kept_to_with_some_chance_on_top():
    busy = [Refusal("BUSY", "later", 30.0)] * 5
    found, _ = pauses(busy)
    assert all(30 < pause <= 30 + 0.5 * 2**5 for pause in found)
    assert len(set(found)) == 5


@pytest.mark.parametrize("after", [math.nan, math.inf, -1.0, 1e9])
def test_but_not_for_ever(after):
    (pause,), _ = pauses([Refusal("BUSY", "later", after)])
    assert LATEST <= pause <= LATEST + 1


def test_pauses_do_not_grow_while_something_arrives():
    arrived = iter(range(1000))
    found, _ = pauses([ConnectionError()] * 100, lambda: next(arrived))
    assert max(found) <= 1.0


def test_what_time_does_not_cure_is_raised():
    async def attempt():
        raise Refusal("BAD_UPDATE", "no")

    with pytest.raises(Refusal, match="no"):
        run(Patience(Random(4), print).until("update", attempt))
