"""Calls that are given up after a while: what a client's loader may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

MOST = 8
"""Calls given up that may still be at work: Python cannot end a thread, so there must not be ever more of them."""


class Deadline:
    """``deadline(function, argument)`` is ``function(argument)``, in a thread of its own, or ``TimeoutError``.

    The thread is used again for the next call; one whose call was given up ends when that call does. They are daemons:
    none of them keeps the program from ending. Only ``seconds`` is pickled.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._idle: list[_Caller] = []
        self._late: list[_Caller] = []

    def __reduce__(self) -> Any:
        return Deadline, (self.seconds,)

    def __call__(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """What the function returns or raises. Raises TimeoutError after ``seconds``."""
        with self._lock:
            self._late = [caller for caller in self._late if caller.is_alive()]
            if len(self._late) >= MOST:
                raise TimeoutError(
                    f"{MOST} loads that took longer than timeout={self.seconds:g} s are still at work, so no other is"
                    " started until one of them ends"
                )
            caller = self._idle.pop() if self._idle else _Caller()
        call = _Call(function, argument)
        caller.inbox.put(call)
        if not call.done.wait(self.seconds):
            caller.inbox.put(None)
            with self._lock:
                self._late.append(caller)
            raise TimeoutError(f"loading took longer than timeout={self.seconds:g} s")
        with self._lock:
            self._idle.append(caller)
        if call.error is not None:
            raise call.error
        return call.value

    def __del__(self) -> None:
        for caller in self._idle:
            caller.inbox.put(None)


class _Call:
    """One call and what came of it."""

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self.function, self.argument = function, argument
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        try:
            self.value = self.function(self.argument)
        except BaseException as error:
            self.error = error
        self.done.set()


class _Caller(threading.Thread):
    """Makes one call after another, until it is told None."""

    def __init__(self) -> None:
        super().__init__(name="insitu load", daemon=True)
        self.inbox: SimpleQueue[_Call | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while (call := self.inbox.get()) is not None:
            call.make()
            del call  # else the last client's data would be kept until the next one's are asked for
