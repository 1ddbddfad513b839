"""Who may write: one coordinator at a time, known by an epoch that grows with each new one.

Two rows: ``leader`` (epoch, holder), which every write reads and locks in its own transaction, and ``lease`` (until
when), so that renewing it never waits for a large write of the leader's own. A new leader changes the first, so it
waits for writes that are under way, and those that come after it see that their epoch is over.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, select, update

from insitu.core.errors import Fenced
from insitu.store.database.base import Database
from insitu.store.ledger.tables import leader, lease


class _Seen(NamedTuple):
    """Another one's lease: until when, what was left of it when it was first seen, and when, by a clock that is steady.

    alive  whether it was good then, or had been renewed since the last look
    """

    expires: float
    left: float
    at: float
    alive: bool


class Leadership:
    """One process's claim. It leads while ``epoch`` is the database's, even past its lease if nobody has taken over."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.epoch: int | None = None
        """The last one that was this process's own; None where it never led."""
        self._seen: _Seen | None = None

    def check(self, connection: Connection) -> None:
        """Raises Fenced, in the transaction that is about to write, where somebody else leads."""
        row = connection.execute(select(leader.c.epoch, leader.c.holder).with_for_update(read=True)).one()
        if self.epoch is None:
            left = self._left(connection) if row.holder else 0.0
            if left > 0:
                raise Fenced(f"{self._database.place} is led by {row.holder!r} for {left:.0f} s more: ask it instead")
        elif row.epoch != self.epoch:
            who = f"{row.holder!r} leads it now" if row.holder else "this process has resigned"
            raise Fenced(f"{self._database.place}: {who}, and nothing was written: end this process or let it stand by")

    def take(self, connection: Connection, holder: str, seconds: float) -> int | None:
        """The epoch that ``holder`` leads in for so many seconds from now; None while another one does.

        A process that starts under its predecessor's name takes over at once; one that has lost to another waits
        for the end of the other's lease, whatever its name.
        """
        mine = connection.execute(select(leader).with_for_update(read=True)).one()  # as writes that are under way do
        if mine.epoch == self.epoch and mine.holder:
            return self._lease(connection, int(mine.epoch), seconds)
        successor = self.epoch is None and mine.holder == holder
        if mine.holder and not successor and self._lives(connection, seconds):
            return None
        epoch = connection.execute(select(leader.c.epoch).with_for_update()).scalar_one() + 1
        connection.execute(update(leader).values(epoch=epoch, holder=holder))
        return self._lease(connection, epoch, seconds)

    def give_up(self, connection: Connection) -> None:
        """Ends this process's own epoch, so that the next one need not wait; another one's stays."""
        row = connection.execute(select(leader).with_for_update()).one()
        if row.epoch == self.epoch:
            connection.execute(update(leader).values(epoch=row.epoch + 1, holder=""))
            connection.execute(update(lease).values(expires=0.0))

    def who(self, connection: Connection) -> tuple[str, float] | None:
        """Who leads, and for how many seconds more; None where nobody does, or the lease is over."""
        holder = connection.execute(select(leader.c.holder)).scalar_one()
        left = self._left(connection)
        return (holder, left) if holder and left > 0 else None

    def _lease(self, connection: Connection, epoch: int, seconds: float) -> int:
        connection.execute(update(lease).values(expires=self._database.now(connection) + seconds))
        return epoch

    def _lives(self, connection: Connection, seconds: float) -> bool:
        """Whether another one's lease is not over, by the database's clock and, as that may jump, by this process's.

        A lease that was seen to be renewed is over only when it has stayed as it is for half of one, and is over, too,
        when what was left of it has passed here, however far the database's clock was set back meanwhile.
        """
        expires, now = connection.execute(select(lease.c.expires)).scalar_one(), self._database.steady()
        left = float(expires) - self._database.now(connection)
        before = self._seen
        if before is None or before.expires != expires:
            self._seen = _Seen(expires, left, now, alive=left > 0 or before is not None)
            return self._seen.alive
        if left > 0:
            return now - before.at < before.left
        return before.alive and now - before.at < seconds / 2

    def _left(self, connection: Connection) -> float:
        expires = connection.execute(select(lease.c.expires)).scalar_one()
        return float(expires) - self._database.now(connection)
