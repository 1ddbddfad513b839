"""Commands that are typed right after `insitu coordinator`: they wait for it a little, and not for ever."""

from __future__ import annotations

import time

import pytest
from processes import Federation, free_port

from insitu.core.errors import ConfigError, EngineError, Refusal
from insitu.federation import house, operator
from insitu.federation.operator import Operator
from insitu.store.opened import open_ledger


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.close()


def test_a_coordinator_that_was_killed_and_starts_again_is_waited_for(federation):
    """Its predecessor's lease is not over, and nobody listens yet."""
    federation.coordinator()
    federation.kill("coordinator")
    federation.start("coordinator", "coordinator", "study")
    assert federation.call("federation", "invite", "berlin", "--federation", "study").startswith("insitu1.")
    with open_ledger(federation.folder / "study" / "federation.db") as ledger:
        assert {one.name for one in ledger.invitations()} == {"berlin"}


@pytest.mark.long
@pytest.mark.parametrize("command", [("status",), ("submit", "plan.toml"), ("runs",)])
def test_a_coordinator_that_is_started_for_the_first_time_is_waited_for(federation, command, monkeypatch):
    monkeypatch.setattr(operator, "STARTING", 60.0)  # this machine may be busy
    federation.start("coordinator", "coordinator", "study")
    federation.call(*command, "--federation", "study")


def test_one_that_leads_and_never_answers_is_said_to(federation, monkeypatch):
    monkeypatch.setattr(house, "STARTING", 0.5)
    with open_ledger(federation.folder / "study" / "federation.db") as ledger:
        assert ledger.lead("elsewhere:1", 60.0)
        began = time.monotonic()
        leads = r"leads this federation, and cannot be reached: .*is led by 'elsewhere:1'"
        with pytest.raises(ConfigError, match=leads):
            house.house_of(federation.folder / "study")
        assert time.monotonic() - began >= 0.5
        ledger.resign()
    with house.house_of(federation.folder / "study") as found:  # at once, in the folder
        assert found.members()


class Answers:
    """A transport that gives these answers, one after another."""

    def __init__(self, *answers):
        self.left, self.asked = list(answers), 0

    async def request(self, *given, **named):
        self.asked += 1
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    async def close(self):
        pass


class Says:
    def __init__(self, refusal=None):
        self.refusal = refusal

    def checked(self):
        if self.refusal is not None:
            raise self.refusal
        return self

    def value(self):
        return {"ok": True}


def refused():
    """As the transport says it: what the system said is behind it."""
    error = ConnectionError("https://localhost:1: no connection to localhost: Connect call failed")
    error.__cause__ = ConnectionRefusedError(111, "Connect call failed")
    return error


def one_address(federation):
    told = federation.folder / "study" / "operator" / "operator.toml"
    told.write_text('name = "operator"\nurls = ["https://localhost:1"]\n')


BUSY = Says(Refusal("BUSY", "the members are not read yet: come back in a moment", 1.0))
NOT_LEADER = Says(Refusal("NOT_LEADER", "another coordinator leads, or will in a moment", 2.0))


def test_the_first_answer_is_waited_for_and_no_other(federation, monkeypatch):
    monkeypatch.setattr(operator, "STARTING", 5.0)
    one_address(federation)
    transport = Answers(refused(), NOT_LEADER, BUSY, refused(), Says())
    with Operator(federation.folder / "study", lambda one: transport) as asked:
        assert asked.get("/v1/runs") == {"ok": True}
        assert transport.asked == 5
        transport.left = [refused(), Says()]
        with pytest.raises(EngineError, match="cannot be reached"):  # it was there, and is not any more
            asked.get("/v1/runs")


def test_where_there_are_several_each_question_waits_for_one_to_take_over(federation, monkeypatch):
    monkeypatch.setattr(operator, "STARTING", 5.0)
    told = federation.folder / "study" / "operator" / "operator.toml"
    told.write_text('name = "operator"\nurls = ["https://localhost:1", "https://localhost:2"]\n')
    transport = Answers(Says())
    with Operator(federation.folder / "study", lambda one: transport) as asked:
        asked.get("/v1/runs")
        transport.left, transport.asked = [refused(), NOT_LEADER, refused(), Says()], 0
        assert asked.get("/v1/runs") == {"ok": True}
        assert transport.asked == 4


@pytest.mark.parametrize(
    ("answer", "kind", "asked"),
    [
        (ConnectionResetError("cut off"), EngineError, 1),  # who knows what has come of it
        (TimeoutError(), EngineError, 1),
        (Says(Refusal("FORBIDDEN", "a viewer may not")), Refusal, 1),
        (NOT_LEADER, Refusal, 2),
        (refused(), EngineError, 2),
    ],
)
def test_what_is_no_start_is_told_at_once(federation, monkeypatch, answer, kind, asked):
    monkeypatch.setattr(operator, "STARTING", 0.3)
    transport = Answers(answer)
    with Operator(federation.folder / "study", lambda one: transport) as one, pytest.raises(kind):
        one.post("/v1/runs")
    assert transport.asked >= asked
    assert transport.asked == 1 or asked == 2


def test_an_operator_without_the_federations_folder_waits_as_well(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(house, "STARTING", 0.5)
    folder = federation.folder / "study" / "operator"
    text = (folder / "operator.toml").read_text()
    (folder / "operator.toml").write_text(text.replace(str(federation.port), str(free_port())))
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"cannot be reached at .*: is `insitu coordinator` running"):
        house.house_of(folder)
    assert time.monotonic() - began >= 0.5
