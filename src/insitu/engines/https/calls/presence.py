"""Who is there: when each site was last heard of, and what it said that it is doing."""

from __future__ import annotations

from typing import Any


class Presence:
    """By site. Times are a loop's; contacts may be read from any thread."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._polling: dict[str, int] = {}
        self._now = 0.0

    def polls(self, site: str, now: float) -> None:
        """A site begins to wait for work."""
        self._polling[site] = self._polling.get(site, 0) + 1
        self.heard(site, now, "waiting")

    def left(self, site: str, now: float) -> None:
        """Its question has been answered, or broken off."""
        self._polling[site] = max(0, self._polling.get(site, 1) - 1)
        self._heard[site] = self._now = max(now, self._now)

    def heard(self, site: str, now: float, doing: str) -> None:
        """A site has said something."""
        self._now = max(now, self._now)
        self._heard[site], self._doing[site] = now, doing

    def goes(self, site: str) -> None:
        """A site has left."""
        self._heard.pop(site, None)
        self._doing.pop(site, None)

    def ticks(self, now: float) -> None:
        """Time has passed."""
        self._now = max(now, self._now)

    def since(self, site: str) -> float | None:
        """Seconds since it was heard of; None: never."""
        if self._polling.get(site):
            return 0.0
        return None if site not in self._heard else max(0.0, self._now - self._heard[site])

    def doing(self, site: str) -> str:
        """In its own word."""
        return self._doing.get(site, "")

    def contacts(self, lease: float) -> dict[str, dict[str, Any]]:
        """Of all that were heard of since this process started."""
        found = {}
        for site in list(self._heard):
            since = self.since(site)
            connected = since is not None and since <= lease
            found[site] = {"last_contact": since, "doing": self.doing(site), "connected": connected}
        return found
