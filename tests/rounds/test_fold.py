"""Any order of arrival gives the same bits, blocks folded elsewhere or here."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu import Plan
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.gossip import Gossip
from insitu.core import wire
from insitu.core.types import Answer, Context, Failure, Folded, Task, Update
from insitu.engines.https.wire.packing import left_there, pack
from insitu.learners.numpy import LinearLearner
from insitu.rounds.fold import Fold, fold_in

BLOCK = 3


def answer(i: int) -> Answer:
    """Values over twelve orders of magnitude: another order of addition has other bits."""
    rng = np.random.default_rng(i)
    value = {"shared": {"w": rng.normal(size=4).astype("float32") * np.float32(10.0) ** rng.integers(-6, 6)}}
    task = Task("run", 1, 0, "train", f"c{i}", {}, 0, i, i, i // BLOCK)
    return Answer(task, Update(value, {"shared": float(rng.integers(1, 50))}, {"examples": float(i)}), {"own": i})


def folded(plan: Plan, places) -> Folded:
    accumulator, reports = plan.reduce.zero(), []
    for i in places:
        accumulator = fold_in(plan, accumulator, answer(i))
        reports.append(answer(i).report())
    return Folded(places[0] // BLOCK, accumulator, reports)


def taken(plan, items):
    fold = Fold(plan)
    for item in items:
        fold.take(item)
    accumulator = fold.finish()
    total = plan.reduce.finish(accumulator, Context(1, 99, [f"c{i}" for i in range(30)]))
    return wire.encode([dict(total.value), total.weight, total.clients]), fold


PLANS = {
    "mean": Plan(FedAvg(), LinearLearner(4)),
    "neighbours": Plan(Gossip(), LinearLearner(4)),
}


@st.composite
def rounds(draw):
    """A round of up to ten clients: which failed or were never heard of, and which blocks come whole."""
    n = draw(st.integers(1, 10))
    fate = draw(st.lists(st.sampled_from(["told", "told", "told", "failed", "silent"]), min_size=n, max_size=n))
    whole = draw(st.lists(st.booleans(), min_size=4, max_size=4))
    return fate, whole


def items_of(plan, fate, whole):
    items = [Failure(f"c{i}", i, i // BLOCK, "E: x") for i, f in enumerate(fate) if f == "failed"]
    for block, places in itertools.groupby((i for i, f in enumerate(fate) if f == "told"), key=lambda i: i // BLOCK):
        places = list(places)
        items += [folded(plan, places)] if whole[block] else [answer(i) for i in places]
    return items


@pytest.mark.parametrize("reduce", PLANS)
@settings(deadline=None)
@given(round=rounds(), data=st.data())
def test_any_order_of_arrival_gives_the_same_bits(reduce, round, data):
    plan, (fate, whole) = PLANS[reduce], round
    items = items_of(plan, fate, whole)
    expected, first = taken(plan, items)
    # An accumulator is its receiver's and may be changed: each fold gets its own.
    fresh = items_of(plan, fate, whole)
    order = data.draw(st.permutations(range(len(items))))
    bits, fold = taken(plan, [fresh[k] for k in order])
    assert bits == expected
    assert [r.index for r in fold.reports] == [i for i, f in enumerate(fate) if f == "told"]
    assert [f.index for f in fold.failures] == [i for i, f in enumerate(fate) if f == "failed"]
    assert [r.memory for r in fold.reports] == [r.memory for r in first.reports]


@settings(deadline=None)
@given(rounds())
def test_a_block_folded_elsewhere_has_the_bits_of_one_folded_here(round):
    plan, (fate, whole) = PLANS["mean"], round
    assert taken(plan, items_of(plan, fate, whole))[0] == taken(plan, items_of(plan, fate, [not w for w in whole]))[0]


def test_it_is_the_sum_of_blocks_in_order_by_hand():
    plan = PLANS["mean"]
    total = np.zeros(4, "float32")
    for start in (0, 3, 6):
        block = None
        for i in range(start, start + 3):
            a = answer(i)
            product = a.update.value["shared"]["w"] * np.float32(a.update.weight["shared"])
            block = product if block is None else block + product
        total = block if start == 0 else total + block
    fold = Fold(plan)
    for i in (8, 2, 1, 0, 5, 4, 3, 7, 6):
        fold.take(answer(i))
    np.testing.assert_array_equal(fold.finish()["value"]["shared"]["w"], total)


def test_what_comes_in_order_is_folded_at_once():
    """Memory is one accumulator: an update that has been folded is let go."""
    fold = Fold(PLANS["mean"])
    for i in range(9):
        fold.take(answer(i))
        assert not fold._waiting
    fold.take(answer(11))
    assert list(fold._waiting) == [11]


def test_evaluation_answers_are_counted_and_not_summed():
    fold = Fold(PLANS["mean"])
    task = Task("run", 1, 1, "evaluate", "c0", {}, 0)
    fold.take(Answer(task, Update({}, {}, {"examples": 4.0, "loss": 2.0})))
    assert fold.finish()["clients"] == 0
    assert fold.reports[0].metrics == {"examples": 4.0, "loss": 2.0}


def shelf():
    """Chunks by their digest, and how one is put there."""
    chunks: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        chunks[name := hashlib.sha256(data).hexdigest()] = data
        return name

    return chunks, keep


def reading(chunks):
    """Puts bytes of these chunks into a room."""

    def fill(digest: str, offset: int, room: memoryview) -> int:
        room[:] = chunks[digest][offset : offset + len(room)]
        return len(room)

    return fill


def test_answers_that_lie_on_a_disk_are_folded_a_block_at_a_time():
    plan, (chunks, keep) = PLANS["mean"], shelf()

    def lying(i: int) -> Answer:
        here = answer(i)
        manifest = pack(here.update.value, "update", keep)
        value = left_there(manifest, reading(chunks))
        return replace(here, update=replace(here.update, value=value), stored=True)

    n, lost = 8, 4
    items = [Failure(f"c{i}", i, i // BLOCK, "away") if i == lost else answer(i) for i in range(n)]
    expected, one = taken(plan, items)
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 2, 4, 0, 6, 1, 5, 3]):
        found, other = taken(plan, [items[i] if i == lost else lying(i) for i in order])
        assert found == expected
        assert other.reports == one.reports


def test_an_answer_on_a_disk_with_another_shape_is_a_failure_of_its_client():
    plan, (chunks, keep) = PLANS["mean"], shelf()

    def lying(i: int, n: int) -> Answer:
        value = {"shared": {"w": np.ones(n)}}
        manifest = pack(value, "update", keep)
        there = left_there(manifest, reading(chunks))
        return replace(answer(i), update=Update(there, {"shared": 1.0}), stored=True)

    fold = Fold(plan)
    for i, n in enumerate([4, 5, 4]):
        fold.take(lying(i, n))
    total = fold.finish()
    assert total["clients"] == 2
    assert [r.client for r in fold.reports] == ["c0", "c2"]
    assert [f.client for f in fold.failures] == ["c1"]
    assert "[5]" in fold.failures[0].error
