"""What a client keeps between rounds stays on its site. A task names the one it starts from: that of an earlier task.

Whether a round has counted is known to the coordinator alone. So a new memory lies beside the old one until a later
task names either; then the others go.
"""

from __future__ import annotations

import hashlib

from insitu.core import failpoints, wire
from insitu.core.errors import Refusal, WireError
from insitu.core.tree import Tree
from insitu.engines.https.site.disk import Disk

FOLDER = "memory"


class SiteMemories:
    """Memories by run and task."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def open(self, run: str, named: str | None, task: str) -> Tree | None:
        """The memory of the task that is ``named``, None where none is; others than ``task``'s own are forgotten.

        Raises Refusal MEMORY_LOST where it is not there, or damaged.
        """
        folder = _folder(run)
        found = None if named is None else self._read(run, named)
        for other in self._disk.list(FOLDER, folder):
            if other not in (named, task):
                self._disk.remove(FOLDER, folder, other)
        return found

    def keep(self, run: str, task: str, memory: Tree) -> None:
        """Durable on return."""
        data = wire.encode(memory)
        failpoints.hit("site.memory.before")
        self._disk.write(data, FOLDER, _folder(run), task)
        failpoints.hit("site.memory.after")

    def forget(self, run: str) -> None:
        """All that is kept of a run."""
        self._disk.remove(FOLDER, _folder(run))

    def _read(self, run: str, named: str) -> Tree:
        try:
            found: Tree = wire.decode(self._disk.read(FOLDER, _folder(run), named))
            return found
        except FileNotFoundError:
            why = "it is not there"
        except WireError as error:
            why = str(error)
        raise Refusal(
            "MEMORY_LOST",
            f"what this site kept of run {run!r} after task {named} cannot be used: {why}. Start a new run",
        )


def _folder(run: str) -> str:
    """A run's id may be anything; a folder's name may not."""
    return hashlib.sha256(run.encode()).hexdigest()[:32]
