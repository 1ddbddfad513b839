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
RUNS = 64
"""Runs whose memories are kept; nobody tells a site that a run will never go on."""


class SiteMemories:
    """Memories by run and task."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def open(self, run: str, named: str | None, task: str, forget: bool = True) -> Tree | None:
        """The memory of the task that is ``named``, None where none is.

        forget  all others but ``task``'s own go: they are of rounds that have not counted, or of earlier ones

        Raises Refusal MEMORY_LOST where it is not there, or damaged.
        """
        folder = _folder(run)
        found = None if named is None else self._read(run, named)
        for other in self._disk.list(FOLDER, folder) if forget else ():
            if other not in (named, task):
                self._disk.remove(FOLDER, folder, other)
        return found

    def keep(self, run: str, task: str, memory: Tree) -> None:
        """Durable on return. The runs that were longest at rest are forgotten where there are more than RUNS."""
        data = wire.encode(memory)
        for other in list(self._disk.list(FOLDER))[:-RUNS]:
            if other != _folder(run):
                self._disk.remove(FOLDER, other)
        failpoints.hit("site.memory.before")
        self._disk.write(data, FOLDER, _folder(run), task)
        failpoints.hit("site.memory.after")

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
