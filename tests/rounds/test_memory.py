"""Memories: pending until the round commits, and what a checkpoint has to write."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from insitu.rounds.memory import Memories

clients = st.sampled_from(["a", "b", "c"])


class AgainstTwoDicts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.memories, self.current, self.pending, self.changed = Memories({"a": 0}), {"a": 0}, {}, set()

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
        assert self.memories.changed() == {client: self.current[client] for client in self.changed}
        self.changed = set()

    @invariant()
    def engines_read_what_was_committed(self):
        assert dict(self.memories) == self.current
        assert len(self.memories) == len(self.current)
        assert self.memories.get("nobody") is None


TestMemories = AgainstTwoDicts.TestCase
TestMemories.settings = settings(max_examples=50, deadline=None)


def test_what_was_given_is_not_changed():
    given = {"a": 1}
    memories = Memories(given)
    memories.pend("a", 2)
    memories.commit()
    assert given == {"a": 1}
    assert memories["a"] == 2
