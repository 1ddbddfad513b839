"""Something that trains a federation's runs in this process, and can be held up, halted and seen waiting."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from insitu.core.errors import Halted
from insitu.core.protocols import Engine
from insitu.data import Clients, sets
from insitu.data.partition.iid import iid
from insitu.engines.inline import attempt
from insitu.rounds.client import failure

SITES = ("berlin", "paris", "rome")


def clients(names=SITES):
    found = sets.load("iris")
    return Clients.from_arrays(found.x, found.y, iid(found.y, clients=len(names), seed=0), ids=names)


@dataclass
class Rooms:
    """A backend whose sites are in this process: a task is done when ``go`` lets it."""

    names: tuple = SITES
    go: threading.Event = field(default_factory=threading.Event)
    halted: dict = field(default_factory=dict)
    at_work: threading.Event = field(default_factory=threading.Event)
    done: list = field(default_factory=list)
    trouble: list = field(default_factory=list)
    over: list = field(default_factory=list)
    fails: bool = False

    def population(self, run):
        return clients(self.names)

    def engine(self, run, tables):
        return Local(self, run)

    def status(self, run):
        waiting = [{"site": name, "since": 3.0, "phase": "training", "last_contact": 1.0} for name in self.names]
        return {"phase": "waiting for sites", "asked": 3, "accepted": 0, "failed": 0, "waiting_for": waiting}

    def halt(self, run, why):
        self.halted[run] = why

    def release(self, run):
        self.halted.pop(run, None)

    def finished(self, run):
        self.over.append(run)


@dataclass(frozen=True)
class Local(Engine):
    rooms: Rooms
    run: str

    def config(self):
        return {"name": "inline"}

    def refuses(self, plan):
        return "it has a world: leave [world] out" if plan.world is not None else None

    def open(self, setting):
        return LocalSession(self.rooms, self.run, setting)


class LocalSession:
    def __init__(self, rooms, run, setting):
        self.rooms, self.run_id, self.setting, self.choices = rooms, run, setting, {}

    def run(self, work):
        for task in work:
            self.rooms.at_work.set()
            while not self.rooms.go.wait(0.01):
                if self.run_id in self.rooms.halted:
                    raise Halted(self.rooms.halted[self.run_id])
            if self.rooms.trouble:
                raise self.rooms.trouble.pop()
            self.rooms.done.append((task.round, task.client))
            yield failure(task, RuntimeError("it is broken")) if self.rooms.fails else attempt(self.setting, task)

    def close(self):
        pass
