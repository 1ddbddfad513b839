"""Spans: own times by hand on a clock of our own, what is booked where, threads, and nothing while nobody records."""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import copy_context

import pytest

from insitu.core import spans


class Clock:
    """Stands for the module ``time``: moves when told to; CPU at half the speed."""

    def __init__(self):
        self.now = 0

    def perf_counter_ns(self):
        return self.now

    def process_time_ns(self):
        return self.now // 2

    def thread_time_ns(self):
        return self.now // 2


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(spans, "time", clock)
    return clock


def spend(clock, nanoseconds):
    clock.now += nanoseconds


def walls(recorder):
    return {phase: spent.wall for phase, spent in recorder.totals.items()}


def test_time_is_booked_once(clock):
    with spans.recording(spans.Recorder()) as recorder:
        with spans.span("other", "round"):
            spend(clock, 10)
            with spans.span("train", "steps"):
                spend(clock, 100)
                with spans.span("data", "gather"):
                    spend(clock, 20)
                spend(clock, 200)
                with spans.span("data", "gather"):
                    spend(clock, 40)
            spend(clock, 2)
        spend(clock, 1000)
        with spans.span("data", "clients"):
            spend(clock, 4)
    assert walls(recorder) == {"data": 64, "train": 300, "other": 12}
    assert {phase: spent.cpu for phase, spent in recorder.totals.items()} == {"data": 32, "train": 150, "other": 6}
    assert recorder.totals["data"].spans == 3
    assert [(s.name, s.began, s.took) for s in recorder.spans] == [
        ("gather", 110, 20), ("gather", 330, 40), ("steps", 10, 360), ("round", 0, 372), ("clients", 1372, 4)
    ]  # fmt: skip


@pytest.mark.parametrize("whole", sorted(spans.WHOLE))
def test_a_whole_phase_takes_what_is_inside_it(clock, whole):
    with spans.recording(spans.Recorder()) as recorder, spans.span(whole, "all"):
        spend(clock, 1)
        with spans.span("fold", "take"):
            spend(clock, 2)
            with spans.span("data", "clients"):
                spend(clock, 4)
    assert walls(recorder) == {whole: 7}


def test_an_error_ends_its_spans(clock):
    with spans.recording(spans.Recorder()) as recorder:
        with suppress(ValueError), spans.span("other", "round"), spans.span("train", "steps"):
            spend(clock, 5)
            raise ValueError
        with spans.span("fold", "take"):
            spend(clock, 3)
    assert walls(recorder) == {"train": 5, "other": 0, "fold": 3}


def test_nobody_records():
    before = spans.Recorder()
    with spans.span("train", "steps") as entered:
        assert spans.recorder() is None
    assert entered is None
    assert spans.span("train", "steps") is spans.span("data", "gather")
    assert (before.totals, before.spans, before.counts) == ({}, [], {})


def test_other_threads_count_where_they_have_the_context():
    def write():
        with spans.span("store", "write behind"):
            sum(range(200_000))

    with spans.recording(spans.Recorder()) as recorder:
        for target, args in ((write, ()), (copy_context().run, (write,))):
            thread = threading.Thread(target=target, args=args)
            thread.start()
            thread.join()
    (span,) = recorder.spans
    assert (span.phase, span.thread != recorder.thread) == ("store", True)
    spent = recorder.totals["store"]
    assert spent.wall == 0  # it passes beside the run's
    assert spent.cpu > 0


def test_spans_beyond_the_most_are_in_the_totals(clock, monkeypatch):
    monkeypatch.setattr(spans, "MOST", 3)
    with spans.recording(spans.Recorder()) as recorder:
        for _ in range(5):
            with spans.span("fold", "take"):
                spend(clock, 2)
    assert (len(recorder.spans), recorder.left_out, walls(recorder)) == (3, 2, {"fold": 10})


def test_counts_add_up():
    recorder = spans.Recorder()
    recorder.count(steps=2, slots=10)
    recorder.count(steps=3)
    assert recorder.counts == {"steps": 5, "slots": 10}
