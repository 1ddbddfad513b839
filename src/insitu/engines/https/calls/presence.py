"""Who is there: when each site was last heard of, and what it said that it is doing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Presence:
    """By site, on the loop's clock. ``since``, ``doing`` and ``contacts`` may be called from any thread."""

    def __init__(self) -> None:
        self._clock: Callable[[], float] | None = None
        self._heard: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._polling: dict[str, int] = {}

    @contextmanager
    def polls(self, site: str) -> Iterator[None]:
        """While a site waits for work."""
        self.heard(site, "waiting")
        self._polling[site] = self._polling.get(site, 0) + 1
        try:
            yield
        finally:
            self._polling[site] -= 1
            self._heard[site] = self._now()

    def heard(self, site: str, doing: str | None = None) -> None:
        """A site has said something; what it is doing, where it said that."""
        self._heard[site] = self._now()
        self._doing[site] = self._doing.get(site, "") if doing is None else doing

    def goes(self, site: str) -> None:
        """A site has left."""
        self._heard.pop(site, None)
        self._doing.pop(site, None)

    def since(self, site: str) -> float | None:
        """Seconds since it was heard of; None: never, or it has left since."""
        heard = self._heard.get(site)
        if heard is None or self._clock is None:
            return None
        return 0.0 if self._polling.get(site) else max(0.0, self._clock() - heard)

    def doing(self, site: str) -> str:
        """In its own word."""
        return self._doing.get(site, "")

    def contacts(self, lease: float) -> dict[str, dict[str, Any]]:
        """Of all that were heard of since this process started; connected is who was heard within ``lease``."""
        found = {}
        for site in list(self._heard):
            since = self.since(site)
            connected = since is not None and since <= lease
            found[site] = {"last_contact": since, "doing": self.doing(site), "connected": connected}
        return found

    def _now(self) -> float:
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        return self._clock()
