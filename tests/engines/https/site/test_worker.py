"""One thread for a site's work."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from insitu.engines.https.site.worker import Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def test_work_is_done_in_one_other_thread_in_turn(worker):
    async def all_of_it():
        return await asyncio.gather(*(worker(lambda i=i: (i, threading.get_ident())) for i in range(5)))

    found = asyncio.run(all_of_it())
    assert [i for i, _ in found] == list(range(5))
    (thread,) = {thread for _, thread in found}
    assert thread != threading.get_ident()


@pytest.mark.parametrize(("error", "is_then"), [(KeyError("x"), KeyError), (StopIteration(), RuntimeError)])
def test_what_goes_wrong_is_told_and_the_next_one_done(worker, error, is_then):
    def fail():
        raise error

    async def both():
        with pytest.raises(is_then):
            await worker(fail)
        return await worker(lambda: 5)

    assert asyncio.run(both()) == 5


def test_what_nobody_waits_for_any_more_is_not_begun(worker):
    done, go = [], threading.Event()

    async def some():
        first = asyncio.ensure_future(worker(lambda: go.wait(10)))
        second = asyncio.ensure_future(worker(lambda: done.append("second")))
        await asyncio.sleep(0.01)
        second.cancel()
        go.set()
        await first
        await worker(lambda: done.append("third"))

    asyncio.run(some())
    assert done == ["third"]


def test_a_process_ends_whatever_is_at_work():
    code = (
        "import asyncio, time\n"
        "from insitu.engines.https.site.worker import Worker\n"
        "async def main():\n"
        "    asyncio.ensure_future(Worker()(lambda: time.sleep(100)))\n"
        "    await asyncio.sleep(0.05)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
