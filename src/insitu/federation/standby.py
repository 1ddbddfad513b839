"""Who leads: one coordinator works, another waits and takes over when the first one's lease has run out.

Every write is fenced in the database as well, so that what is here decides how soon a standby takes over, and never
whether two could write.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from insitu.core.errors import Fenced, StoreError
from insitu.core.federation import Ledger
from insitu.federation.logs import Tell

RENEW, LEASE = 2.0, 6.0
"""Seconds between two renewals, and that a lease lasts: a standby leads at most ``LEASE + RENEW`` after a death."""

State = Literal["waiting", "leading", "lost"]


class Lead:
    """Takes and keeps leadership, in a thread of its own.

    won   called once, in that thread, when this process leads
    lost  called once, when another one has taken over; this process has to end then
    """

    def __init__(
        self,
        ledger: Ledger,
        holder: str,
        tell: Tell,
        won: Callable[[], None],
        lost: Callable[[str], None],
        *,
        renew: float = RENEW,
        lease: float = LEASE,
    ) -> None:
        self._ledger, self.holder, self._tell = ledger, holder, tell
        self._won, self._lost, self._renew, self._lease = won, lost, renew, lease
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._hold, name="lead", daemon=True)
        self.state: State = "waiting"
        self.trouble = ""
        """Why the database could not be asked; empty where it could."""
        self.asked = time.monotonic()
        """When the database last answered, by the monotonic clock."""

    @property
    def leading(self) -> bool:
        """Whether this process leads, as far as it knows."""
        return self.state == "leading"

    def start(self) -> None:
        """Begins to ask for the lead."""
        self._thread.start()

    def stop(self, resign: bool = True) -> None:
        """Asks no more, and lets a standby take over at once."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(3 * self._lease)
        if resign and self.leading:
            with suppress(StoreError):  # then the standby waits for the end of the lease
                self._ledger.resign()
        self.state = "lost" if self.state == "lost" else "waiting"

    def quiet(self) -> float:
        """Seconds since the database last answered."""
        return time.monotonic() - self.asked

    def _hold(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            try:
                led = self._ledger.lead(self.holder, self._lease)
            except Fenced as error:
                self._lose(str(error))
                return
            except StoreError as error:
                if not self.trouble:
                    self._tell("error", "the lead cannot be renewed", error=str(error))
                self.trouble = str(error)
            else:
                self.trouble, self.asked = "", time.monotonic()
                if self.leading and not led:
                    self._lose("another coordinator has taken over")
                    return
                if led and not self.leading and not self._begin():
                    return
            self._end.wait(max(0.05, self._renew - (time.monotonic() - began)))

    def _begin(self) -> bool:
        self._tell("info", "this coordinator leads", holder=self.holder)
        self.state = "leading"
        try:
            self._won()
        except Fenced as error:
            self._lose(str(error))
            return False
        except Exception as error:  # whatever it is: a leader that cannot work must make room for one that can
            self._tell("error", "this coordinator cannot work", error=f"{type(error).__name__}: {error}")
            with suppress(StoreError):
                self._ledger.resign()
            self._lose(f"it cannot begin: {type(error).__name__}: {error}")
            return False
        return True

    def _lose(self, why: str) -> None:
        self.state = "lost"
        self._tell("error", "this coordinator leads no more", reason=why)
        self._lost(why)
