"""The line of blocks: each is handed out once, and what is kept for one worker keeps no other waiting."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from insitu.core.types import Task
from insitu.engines.processes.line import Line, places, told
from insitu.engines.processes.orders import Done


def tasks(blocks):
    return (Task("run", 1, 0, "train", str(i), {}, 0, i, 100 + i, i) for i in range(blocks))


def test_a_worker_gets_what_was_kept_for_it_and_others_what_comes_after():
    line = Line(tasks(5), count(1), most=8)
    assert [line.next(who).number for who in "ab"] == [1, 2]
    assert [places(line.keep(who)) for who in "ab"] == [[102], [103]]
    assert line.keep("a").number == 3  # said again
    assert line.next("b").number == 4
    assert line.next("b").number == 5  # nothing was kept for it any more
    assert line.next("b").number == 3  # and now nothing else is left
    assert line.next("a") is None
    assert places(line.keep("a")) == []


def test_what_is_kept_counts_as_on_its_way():
    line = Line(tasks(9), count(1), most=2)
    assert line.next("a").number == 1
    assert line.keep("a").number == 2
    assert line.next("b").number == 2  # no room for more, so it takes what was kept
    assert line.next("a") is None


@given(st.integers(0, 12), st.integers(1, 9), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_every_block_is_handed_out_once_and_told_in_order(blocks, most, steps):
    line, given, heard = Line(tasks(blocks), count(1), most), [], []
    for who, done in [*steps, *[("a", True)] * 3 * blocks]:
        if done and given and (block := given[-1]).done is None:
            line.take(block.number, Done([], {}), 0)
        if (block := line.next(who)) is not None:
            given.append(block)
            line.keep(who)
        for block in given:
            if who == "a" and block.done is None:
                line.take(block.number, Done([], {}), 0)
        while first := line.first():
            heard.append(first.number)
            assert list(told(first)) == []
    assert line.over() or not blocks
    assert sorted(block.number for block in given) == heard == list(range(1, blocks + 1))
