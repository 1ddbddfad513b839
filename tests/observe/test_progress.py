"""The progress bar: what is on the terminal, and what is left of it elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.core import events
from insitu.data import Clients
from insitu.learners.numpy import LogisticLearner
from insitu.observe.progress import SHOWN, Progress

STARTED = events.RunStarted("r1", 0, "inline", 10, 100, {"engine": "inline", "lanes": 4})


def committed(round, clients=10, seconds=0.5):
    return events.RoundCommitted("r1", round, clients, 0, seconds, {"loss": 1.5}, 10, 20)


def shown(*happened, terminal=True):
    """What is written, without colours and cursor movements."""
    stream = io.StringIO()
    with Progress(Console(file=stream, force_terminal=terminal, width=120)) as progress:
        for event in happened:
            progress(event)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_the_bar_says_rounds_metrics_speed_and_what_was_chosen():
    text = shown(STARTED, committed(1), committed(2))
    assert "run r1: 100 clients, 10 rounds, engine inline (lanes 4)" in text
    assert re.search(r"2/10 .*train loss 1\.5000 20\.0 clients/s", text)


def test_the_metrics_that_say_most_are_shown():
    central = events.Evaluated("r1", 1, "central", {"accuracy": 0.5})
    own = events.Evaluated("r1", 1, "clients", {"accuracy": 0.25})
    assert "clients' accuracy 0.2500" in shown(STARTED, committed(1), own)
    assert shown(STARTED, committed(1), central, own).rstrip().count("accuracy 0.2500") == 0


def test_a_resumed_run_begins_where_it_was():
    text = shown(events.RunStarted("r1", 7, "inline", 10, 100, {}, True))
    assert "resumed after round 7" in text
    assert "7/10" in text


def test_notices_and_void_rounds_are_above_the_bar():
    text = shown(STARTED, events.Notice("r1", 1, "a slower path"), events.RoundDiscarded("r1", 1, "no quorum"))
    assert "a slower path\n" in text
    assert "round 1 is void: no quorum\n" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_many_failures_are_counted(terminal):
    failed = [events.ClientFailed("r1", 1, f"c{i}", "ValueError: bad [data]") for i in range(SHOWN + 3)]
    text = shown(STARTED, *failed, events.RunFinished("r1", 10, 1.0), terminal=terminal)
    assert text.count("failed: ValueError: bad [data]") == SHOWN
    assert "and 3 more failures of clients" in text


def test_without_a_terminal_there_are_plain_lines():
    text = shown(STARTED, committed(1), events.RunStopped("r1", 1, "interrupted"), terminal=False)
    assert text == "insitu r1: 100 clients, 10 rounds, engine inline (lanes 4)\ninsitu r1: interrupted\n"


def test_the_reason_of_a_stop_is_said():
    assert "interrupted after round 3" in shown(STARTED, events.RunStopped("r1", 3, "interrupted after round 3"))


def test_an_error_leaves_the_terminal_as_it_was():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)

    def fail():
        with Progress(console) as progress:
            progress(STARTED)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - nothing else could
        fail()
    hidden, visible = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().rindex(visible) > stream.getvalue().rindex(hidden)


def test_one_observer_may_see_several_runs():
    text = shown(STARTED, committed(1), events.RunFinished("r1", 10, 1.0), STARTED, committed(2))
    assert "1/10" in text
    assert "2/10" in text


def test_a_run_with_it(tmp_path):
    clients = Clients.from_arrays([[0.0], [1.0], [0.2], [0.9]], [0, 1, 0, 1], [[0, 1], [2, 3]])
    stream = io.StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=120)) as progress:
        insitu.run(
            insitu.Plan(FedAvg(), learner=LogisticLearner()), clients, rounds=3, store=None, observers=[progress]
        )
    assert "3/3" in stream.getvalue()
