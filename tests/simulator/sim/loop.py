"""An asyncio loop whose time jumps to the next timer, and processes that can die between any two of its callbacks."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from asyncio import events as asyncio_events
from collections.abc import Callable, Coroutine
from typing import Any

from insitu.core import failpoints


TURN = 1e-6
"""Virtual seconds that a turn takes: time never stands still, or what waits for the rest of a rounding would for ever."""


class Died(BaseException):
    """The process that this is thrown through is dead: no ``except Exception`` holds it up."""


class Stuck(AssertionError):
    """Nothing will ever happen any more, and somebody still waits."""


class Process:
    """What dies together: all tasks that were started in it, and all that those have started."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop, self.name = loop, name
        self.alive, self.paused = True, False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.held: list[asyncio.Handle] = []
        self.ends: list[Callable[[], None]] = []
        """Called when it has died, in order: its disk loses what was not synced, its connections break."""
        self.fatal: int | None = None
        """How many more callbacks it lives for; None: for ever."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Starts a task in it."""
        context = contextvars.Context()
        context.run(CURRENT.set, self)
        return self.loop.create_task(coroutine, context=context, name=f"{self.name}: {name}")

    def check(self) -> None:
        """Raises Died where it is dead: what a dead process still tries to do does not happen."""
        if not self.alive:
            raise Died(self.name)

    def die(self) -> None:
        """From inside: marks it as dead and raises Died. What follows from it comes before anything else happens."""
        if self.alive:
            self.alive = False
            self.loop.reap(self)
        raise Died(self.name)

    def kill(self) -> None:
        """From outside, between two callbacks."""
        if self.alive:
            self.alive = False
            self.bury()

    def bury(self) -> None:
        """Its tasks are gone without another step; what their ``finally`` tries to do meets ``check``."""
        while self.tasks:
            task = next(iter(self.tasks))
            del self.tasks[task]
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            context = contextvars.Context()
            context.run(CURRENT.set, self)
            try:
                context.run(coroutine.close)
            except (RuntimeError, Died):
                continue  # it wanted to await something on its way out, or to write: the dead do not
        self.held = []
        ends, self.ends = self.ends, []
        for end in ends:
            end()

    def pause(self) -> None:
        """As by SIGSTOP."""
        self.paused = True

    def wake(self) -> None:
        """As by SIGCONT."""
        self.paused = False
        self.loop._ready.extend(self.held)
        self.held = []


CURRENT: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Future(asyncio.Future):  # type: ignore[type-arg]
    """A future that knows whose it is."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.process = CURRENT.get()


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task that does."""

    process: Process | None = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Callbacks run in the order in which they were made ready, timers in the order of their times; nothing waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._dead: list[Process] = []
        self.steps = 0
        self.after: Callable[[], None] = lambda: None
        """Called after every callback."""
        self.troubles: list[dict[str, Any]] = []
        """What asyncio complains of: exceptions that nobody has looked at."""
        self._begun: dict[int, Process | None] = {}
        """By generator the process that it runs in."""
        self.set_task_factory(_make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._on_trouble)

    def time(self) -> float:
        return self._now

    def reap(self, process: Process) -> None:
        """Buries it as soon as the present callback has ended."""
        self._dead.append(process)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise AssertionError(f"{func} was to run in a thread, whose time is not virtual: give it a way to be injected")

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def _on_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        future = context.get("future") or context.get("task")
        process = future.process if isinstance(future, (_Future, _Task)) else None
        if not isinstance(context.get("exception"), Died) and (process is None or process.alive):
            self.troubles.append(context)

    def _run_once(self) -> None:
        """One turn: all that is ready, or else whatever comes next in time."""
        ready, timers = self._ready, self._scheduled
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready and not self._stopping:
            if not timers:
                raise Stuck("nothing will ever happen any more, and somebody still waits")
            self._now = max(self._now, timers[0]._when)
        self._now += TURN
        while timers and timers[0]._when <= self._now:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(CURRENT)
            if process is not None:
                if not process.alive:
                    continue
                if process.paused:
                    process.held.append(handle)
                    continue
                if process.fatal is not None:
                    process.fatal -= 1
                    if process.fatal < 0:
                        process.kill()
                        continue
            self.steps += 1
            handle._run()
            while self._dead:
                self._dead.pop(0).bury()
            self.after()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers go when their time comes."""

    def _process_events(self, event_list: Any) -> None:
        raise AssertionError("there are no sockets here")

    def _write_to_self(self) -> None:
        raise AssertionError("there are no sockets here")

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc]
        self._begun[id(agen)] = CURRENT.get()

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """A generator that was left in the middle is closed by its own process, if that lives."""
        process = self._begun.pop(id(agen), None)
        self._asyncgens.discard(agen)
        if not self.is_closed() and (process is None or process.alive):
            self.create_task(agen.aclose())


def _make_task(loop: VirtualLoop, coroutine: Any, context: Any = None, **more: Any) -> asyncio.Task[Any]:
    process = context.get(CURRENT) if context is not None else CURRENT.get()
    if process is not None and not process.alive:
        coroutine.close()
        raise Died(process.name)
    task = _Task(coroutine, loop=loop, context=context, **more)
    task.process = process
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(lambda done: process.tasks.pop(done, None), context=contextvars.Context())
    return task


def run(loop: VirtualLoop, main: Coroutine[Any, Any, Any], strike: failpoints.Strike) -> Any:
    """Runs ``main`` to its end with failpoints that call ``strike``; the loop is closed then."""
    try:
        asyncio_events.set_event_loop(loop)
        with failpoints.armed({"*": strike}):
            return loop.run_until_complete(main)
    finally:
        asyncio_events.set_event_loop(None)
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            try:
                task.get_coro().close()  # type: ignore[union-attr]
            except (RuntimeError, Died):
                continue
        loop._ready.clear()
        loop._scheduled.clear()
        loop.close()
