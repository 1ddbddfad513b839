"""A blocking function beside the loop, in lock step: one of the two goes at a time, so that chance has no part in it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from sim.loop import CURRENT, Died, Process


class Baton:
    """Runs ``body(call)`` in a thread of its own, where ``call`` runs a coroutine on the loop to its end.

    While the body goes, the loop stands still. Where its process dies, ``call`` raises Died, now and ever after.
    """

    def __init__(self, process: Process, body: Callable[[Callable[[Coroutine[Any, Any, Any]], Any]], Any]) -> None:
        self._process, self._body = process, body
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._wanted: Coroutine[Any, Any, Any] | None = None
        self._given: tuple[Any, BaseException | None] = (None, None)
        self._ended: tuple[Any, BaseException | None] | None = None

    async def run(self) -> Any:
        """What the body returns. Raises what it raises."""
        context = contextvars.Context()
        context.run(CURRENT.set, self._process)
        thread = threading.Thread(target=context.run, args=(self._go,), daemon=True)
        thread.start()
        try:
            self._mine.acquire()
            while self._ended is None:
                coroutine, self._wanted = self._wanted, None
                assert coroutine is not None
                try:
                    self._given = (await coroutine, None)
                except (GeneratorExit, Died):
                    raise
                except BaseException as error:
                    self._given = (None, error)
                self._switch()
        finally:
            if self._ended is None:  # dead: the thread unwinds, and cannot do anything any more
                self._given = (None, Died(self._process.name))
                self._switch()
            thread.join()
        value, error = self._ended
        if error is not None:
            raise error
        return value

    def _switch(self) -> None:
        """The thread's turn, until it wants something or ends."""
        self._theirs.release()
        self._mine.acquire()

    def _go(self) -> None:
        try:
            self._ended = (self._body(self._call), None)
        except BaseException as error:
            self._ended = (None, error)
        self._mine.release()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not self._process.alive:
            coroutine.close()
            raise Died(self._process.name)
        self._wanted = coroutine
        self._mine.release()
        self._theirs.acquire()
        value, error = self._given
        if error is not None:
            raise error
        return value
