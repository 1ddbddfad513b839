"""Which chunks are needed, by whom, and which may go: counts on top of ``core.federation.Blobs``.

A chunk may be in several messages and updates at once, and may be wanted again at the very moment when it is removed.
So every use is counted, whoever brings bytes says so before, and nothing is removed that is used or being brought.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from insitu.core.federation import Blobs


class Shelf:
    """All methods may be called from any thread; none but ``clear`` and ``packing`` waits for a disk."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._changed = threading.Condition()
        self._uses: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()
        self._packers = self._apart = 0
        self._rubbish: set[str] = set()
        self._going: set[str] = set()

    def use(self, digests: Iterable[str]) -> None:
        """One more user of each of these."""
        with self._changed:
            self._uses.update(set(digests))

    def drop(self, digests: Iterable[str], *, rubbish: bool = True) -> None:
        """One user less; those without any go with the next ``clear``, where they are ``rubbish`` then."""
        with self._changed:
            for digest in set(digests):
                self._uses[digest] -= 1
                if self._uses[digest] <= 0:
                    del self._uses[digest]
                    self._rubbish |= {digest} if rubbish else set()

    def used(self) -> set[str]:
        """Every chunk that somebody needs: what a sweep must keep."""
        with self._changed:
            return set(self._uses) | set(self._coming)

    def begin(self, digest: str) -> bool:
        """A chunk is about to come; False where it is just being removed, so that it has to wait a moment."""
        with self._changed:
            if digest in self._going:
                return False
            self._coming[digest] += 1
            return True

    def end(self, digest: str) -> None:
        """It has come, or will not. Whoever needs it has called ``use`` before."""
        with self._changed:
            self._coming[digest] -= 1
            if self._coming[digest] <= 0:
                del self._coming[digest]
                if digest not in self._uses:
                    self._rubbish.add(digest)

    @contextmanager
    def packing(self) -> Iterator[None]:
        """While chunks are made whose digests are not known before, nothing is removed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._going and not self._apart)
            self._packers += 1
        try:
            yield
        finally:
            with self._changed:
                self._packers -= 1

    @contextmanager
    def apart(self) -> Iterator[bool]:
        """Whether nobody packs. If so nobody begins to: what no call names now is not about to be named."""
        with self._changed:
            free = not self._packers
            self._apart += free
        try:
            yield free
        finally:
            with self._changed:
                self._apart -= free
                self._changed.notify_all()

    def clear(self) -> int:
        """Removes rubbish that nobody wants by now; how many chunks. What cannot go now goes another time."""
        with self._changed:
            if self._packers or self._going:
                return 0
            going = {d for d in self._rubbish if d not in self._uses and d not in self._coming}
            self._going, self._rubbish = going, self._rubbish - going - set(self._uses)
        try:
            self.blobs.remove(going)
        except BaseException:
            with self._changed:
                self._rubbish |= going
            raise
        finally:
            with self._changed:
                self._going = set()
                self._changed.notify_all()
        return len(going)
