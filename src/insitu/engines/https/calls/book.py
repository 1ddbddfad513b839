"""All calls that are known here, by task and by site, with the messages and chunks that belong to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator

from insitu.core.errors import Refusal
from insitu.core.federation import CallKey
from insitu.engines.https.calls.open_call import OpenCall
from insitu.engines.https.calls.shelf import Shelf
from insitu.engines.https.calls.values import Message

REMEMBERED = 10_000
"""Tasks of rounds that are over, so that whoever comes so late is told that."""


class Book:
    """Everything that is asked of sites now, and of rounds whose calls may still be spoken of."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._calls: dict[CallKey, OpenCall] = {}
        self._tasks: dict[str, tuple[CallKey, str]] = {}
        self._of: dict[str, dict[CallKey, OpenCall]] = {}
        self._messages: dict[str, Message] = {}
        self._brought: dict[str, dict[CallKey, set[str]]] = {}
        self._over: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._calls

    def get(self, key: CallKey) -> OpenCall | None:
        """A call, where it is here."""
        return self._calls.get(key)

    def __getitem__(self, key: CallKey) -> OpenCall:
        return self._calls[key]

    def of_run(self, run: str) -> list[OpenCall]:
        """A run's calls, in the order in which they were opened."""
        return [call for key, call in self._calls.items() if key.run == run]

    def of_site(self, site: str) -> list[OpenCall]:
        """The calls in which a site is asked, in the order in which they were opened."""
        return list(self._of.get(site, {}).values())

    def add(self, call: OpenCall, messages: Iterable[Message]) -> None:
        """One more call, which needs these messages."""
        key = call.call.key
        for message in messages:
            self._messages[message.digest] = message
            self._shelf.use(message.chunks)
        self._calls[key] = call
        for site, task in call.tasks.items():
            self._tasks[task["task"]] = (key, site)
            self._of.setdefault(site, {})[key] = call
            self._over.pop(task["task"], None)

    def drop(self, key: CallKey, *, rubbish: bool = True) -> None:
        """Nobody speaks of this call any more; chunks that only it needed are ``rubbish`` then, or of unknown use."""
        call = self._calls.pop(key)
        call.end()
        for site, task in call.tasks.items():
            self._tasks.pop(task["task"], None)
            self._over[task["task"]] = None
            self._of[site].pop(key)
            self._shelf.drop(self._brought.get(site, {}).pop(key, ()), rubbish=rubbish)
        while len(self._over) > REMEMBERED:
            self._over.popitem(last=False)
        used = {digest for other in self._calls.values() for digest in other.call.message.values()}
        for digest in set(call.call.message.values()):
            self._shelf.drop(self._messages[digest].chunks, rubbish=rubbish)
            if digest not in used:
                del self._messages[digest]

    def call_of(self, site: str, task: str) -> OpenCall:
        """The call that a site's task belongs to. Raises Refusal STALE_ROUND or UNKNOWN_TASK."""
        key, client = self._tasks.get(task, (None, ""))
        if key is not None and client == site:
            return self._calls[key]
        if task in self._over:
            raise Refusal("STALE_ROUND", f"the round of task {task} is over: ask for the next task")
        raise Refusal("UNKNOWN_TASK", f"there is no task {task[:40]!r} of yours: ask for the next task")

    def message(self, digest: str) -> Message | None:
        """A message that a call needs."""
        return self._messages.get(digest)

    def message_of(self, call: OpenCall, site: str) -> Message:
        """What a site is told in a call."""
        return self._messages[call.call.message[site]]

    def may_read(self, site: str, digest: str) -> bool:
        """Whether a chunk belongs to a message that this site is asked with."""
        return any(digest in self.message_of(call, site).chunks for call in self._of.get(site, {}).values())

    def is_its_own(self, site: str, digest: str) -> bool:
        """Whether a site may know that a chunk is there: it has sent it itself, or was given it."""
        return any(digest in here for here in self._brought.get(site, {}).values()) or self.may_read(site, digest)

    def brings(self, call: OpenCall, site: str, chunks: Iterable[str]) -> None:
        """Chunks that this site's answer to this call needs: each is counted once."""
        if call.call.key not in self._calls:
            return  # forgotten while they were on their way: nobody will ever say that they are not needed
        here = self._brought.setdefault(site, {}).setdefault(call.call.key, set())
        new = set(chunks) - here
        self._shelf.use(new)
        here |= new

    def brought(self, call: OpenCall, site: str) -> Collection[str]:
        """What it has brought for this call so far."""
        return self._brought.get(site, {}).get(call.call.key, ())

    def __iter__(self) -> Iterator[OpenCall]:
        return iter(list(self._calls.values()))
