"""One thread for a site's work, which does not keep its process from ending."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Runs functions one after another in a thread of its own: ``await worker(function)``.

    What is at work when the process ends, or when nobody waits for it any more, comes to nothing: a finished update is
    in the outbox, and anything less is done anew.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="site", daemon=True)
        self._thread.start()

    async def __call__(self, function: Callable[[], Any]) -> Any:
        """What the function gives or raises."""
        future = asyncio.get_running_loop().create_future()
        self._jobs.put((function, future))
        return await future

    def close(self) -> None:
        """The thread ends after what it is doing."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            if future.cancelled():
                continue
            value, error = None, None
            try:
                value = function()
            except BaseException as raised:  # whoever waits for it is told
                error = raised
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, value, error)
            except RuntimeError:  # the loop has been closed: nobody waits any more
                return
            del job, function, future, value, error


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # which no future takes
        future.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        future.set_exception(error)
