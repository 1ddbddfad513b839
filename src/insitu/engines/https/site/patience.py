"""Trying again: with growing pauses, for as long as it may help, and never without a word."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from insitu.core.errors import Refusal
from insitu.engines.https.codes import RETRY

T = TypeVar("T")
SHORTEST, LONGEST = 0.5, 60.0
"""Seconds between attempts: from the first to the last."""
LATEST = 600.0
"""Seconds: a coordinator that asks for a longer pause is asked again after these."""


class Patience:
    """Exponential back-off with full jitter (each pause is drawn uniformly, so that sites do not come all at once).

    What ``until`` draws is at most a second, or as long as the trouble has lasted: of a thousand sites some draw one
    short pause after the other, and would be away for five times as long as the coordinator was.
    """

    def __init__(self, random: Random, say: Callable[[str], None], longest: float = LONGEST) -> None:
        self._random, self._say, self._longest = random, say, longest

    async def until(self, what: str, attempt: Callable[[], Awaitable[T]], progress: Callable[[], int] = lambda: 0) -> T:
        """What the attempt gives, once it does. Raises a Refusal that another attempt would not cure.

        Pauses grow only with attempts that ``progress`` (bytes, say) has not grown in.
        """
        tried, reached = 0, progress()
        clock = asyncio.get_running_loop().time
        since = math.inf
        while True:
            try:
                return await attempt()
            except OSError as error:
                why, least = f"{type(error).__name__}: {error}", 0.0
            except Refusal as refusal:
                if refusal.code not in RETRY:
                    raise
                why, least = f"{refusal.code}: {refusal}", refusal.retry_after or 0.0
            if progress() > reached:
                tried, since = 0, math.inf
            tried, since = tried + 1, min(since, clock())
            reached = progress()
            await self.pause(what, tried, why, least, clock() - since)

    async def pause(self, what: str, tried: int, why: str, least: float = 0.0, lasted: float = math.inf) -> None:
        """Waits after so many attempts in a row: ``least`` seconds, and some by chance on top of them.

        lasted  seconds since the first of these attempts failed, where that is known
        """
        least = least if 0 <= least <= LATEST else LATEST  # that it is no number is possible as well
        most = min(self._longest, SHORTEST * 2 ** min(tried, 16), max(2 * SHORTEST, lasted))
        seconds = least + self._random.uniform(0, most)
        if tried in (1, 3) or tried % 10 == 0:
            self._say(f"{what}: {why}; attempt {tried}, again in {seconds:.1f} s")
        await asyncio.sleep(seconds)
