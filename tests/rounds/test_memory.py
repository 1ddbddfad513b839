"""Memories: pending until the round commits, and what a checkpoint has to write."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import insitu
from insitu.algorithms.scaffold import Scaffold
from insitu.core import tree
from insitu.core.checks import size
from insitu.core.errors import PlanError, WireError
from insitu.data.clients import Clients
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.memory import Memories
from insitu.rounds.spill import GRAIN, Spill

clients = st.sampled_from(["a", "b", "c"])


class AgainstTwoDicts(RuleBasedStateMachine):
    budget: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.memories, self.current, self.pending, self.changed = Memories({"a": 0}, self.budget), {"a": 0}, {}, set()

    @rule(client=clients, memory=st.none() | st.integers(1, 100))
    def pend(self, client, memory):
        self.memories.pend(client, memory)
        if memory is not None:
            self.pending[client] = memory

    @rule()
    def commit(self):
        self.memories.commit()
        self.current |= self.pending
        self.changed |= set(self.pending)
        self.pending = {}

    @rule()
    def discard(self):
        self.memories.discard()
        self.pending = {}

    @rule()
    def write(self):
        assert dict(self.memories.changed()) == {client: self.current[client] for client in self.changed}
        self.changed = set()

    @invariant()
    def engines_read_what_was_committed(self):
        assert dict(self.memories) == self.current
        assert len(self.memories) == len(self.current)
        assert self.memories.get("nobody") is None


TestMemories = AgainstTwoDicts.TestCase
TestMemories.settings = settings(max_examples=50, deadline=None)


class OnDisk(AgainstTwoDicts):
    budget = 0


class OneHeld(AgainstTwoDicts):
    budget = 1500


TestMemoriesOnDisk, TestOneMemoryHeld = OnDisk.TestCase, OneHeld.TestCase
TestMemoriesOnDisk.settings = TestOneMemoryHeld.settings = settings(max_examples=30, deadline=None)


def test_what_was_given_is_not_changed():
    given = {"a": 1}
    memories = Memories(given)
    memories.pend("a", 2)
    memories.commit()
    assert given == {"a": 1}
    assert memories["a"] == 2


def variate(value):
    return {"algorithm": {"c": np.full(1000, value)}}


def test_no_more_is_held_than_the_budget_and_the_file_does_not_grow_with_rounds():
    memories, ends = Memories(budget=50_000), []
    for round in range(5):
        for client in range(40):
            memories.pend(str(client), variate(float(round)))
            assert memories.held <= 50_000
        memories.commit()
        memories.changed()
        ends.append(memories._file.end)
    assert ends[1] == ends[-1]
    assert {memories[str(client)]["algorithm"]["c"][7] for client in range(40)} == {4.0}
    assert memories.held <= 50_000


def test_the_least_recently_used_goes_first():
    memories = Memories(budget=2 * 9100)
    for client in "abc":
        memories.pend(client, variate(1.0))
        memories.commit()
        memories.get("a")
    held = set(memories._recent.values())
    assert held == {"a", "c"}


def test_a_checkpoint_reads_what_its_round_left_whatever_came_after():
    memories = Memories(budget=0)
    memories.pend("a", variate(1.0))
    memories.commit()
    first = memories.changed()
    for value in (2.0, 3.0):
        memories.pend("a", variate(value))
        memories.commit()
    assert first["a"]["algorithm"]["c"][0] == 1.0
    assert memories["a"]["algorithm"]["c"][0] == 3.0


def test_of_two_answers_in_a_round_the_later_one_counts_and_refused_ones_do_not():
    memories = Memories()
    memories.pend("a", 1, index=5)
    memories.pend("a", 2, index=3)
    memories.pend("b", 3, index=4)
    memories.commit(counted={5})
    assert dict(memories) == {"a": 1}


def test_what_cannot_be_written_names_the_client():
    memories = Memories(budget=0)
    with pytest.raises(WireError) as caught:
        memories.pend("va", {"algorithm": object()})
    assert "client 'va'" in caught.value.__notes__[0]


def test_a_copy_by_pickle_holds_the_same():
    memories = Memories({"a": variate(1.0)}, budget=0)
    there = pickle.loads(pickle.dumps(memories))
    assert np.array_equal(there["a"]["algorithm"]["c"], memories["a"]["algorithm"]["c"])


def test_room_that_was_let_go_is_taken_again():
    file = Spill()
    first, second = file.write(b"a" * 10), file.write(b"b" * (GRAIN + 1))
    file.release(first)
    third = file.write(b"c" * 20)
    assert (third.offset, file.end) == (first.offset, 3 * GRAIN)
    assert file.read(second) == b"b" * (GRAIN + 1)
    assert file.read(third) == b"c" * 20


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_a_run_has_the_same_bits_with_any_budget(tmp_path, engine):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(120, 30)), random.integers(0, 3, 120)
    people = Clients.from_arrays(x, y, [range(i * 10, i * 10 + 10) for i in range(12)])
    plan = insitu.Plan(
        Scaffold(lr=0.1, batch_size=4), learner=LogisticLearner(), cohort=insitu.Uniform(6), evaluate_every=0
    )

    def go(budget, name, rounds=4, **more):
        return insitu.run(
            plan,
            people,
            rounds=rounds,
            engine=engine,
            store=tmp_path / name,
            observers=[],
            memory_budget=budget,
            **more,
        )

    held = go("1GB", "held.db")
    tight = go(0, "tight.db", rounds=2)
    resumed = go(2000, "tight.db", resume=tight.id)
    assert tree.not_finite(held.params) is None
    for name, value in held.params.items():
        assert np.array_equal(value, resumed.params[name])
    assert set(held.memories) == set(resumed.memories)
    for client in held.memories:
        pairs = zip(tree.leaves(held.memories[client]), tree.leaves(resumed.memories[client]), strict=True)
        assert all(a == b and np.array_equal(u, v) for (a, u), (b, v) in pairs)


@pytest.mark.parametrize(("text", "size_in_bytes"), [(5, 5), ("512MB", 512_000_000), ("1.5 GiB", 3 * 2**29), ("7", 7)])
def test_sizes(text, size_in_bytes):
    assert size(memory_budget=text) == size_in_bytes


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "12 parsecs", "", "-3MB"])
def test_what_is_no_size(wrong):
    with pytest.raises(PlanError, match="memory_budget="):
        size(memory_budget=wrong)
