"""A run that never ends, for tests that kill it: ``python commit_forever.py FILE RUN SECONDS_BEHIND [ROUNDS]``.

Prints each round when ``commit`` has returned. What it commits is a function of the round, so that whoever finds
it can tell whether it is whole.
"""

import sys
from datetime import timedelta

import numpy as np

from insitu.core.events import RoundCommitted, RoundStarted, UpdatesArrived
from insitu.core.protocols import Checkpoint
from insitu.store.sqlite import SqliteStore


def state_at(round):
    return {"w": np.random.default_rng(round).normal(size=(200, 50)), "deep": {"round": round}}


def cohort(round):
    return [f"client-{(round * 7 + i * 3) % 20}" for i in range(5)]


def memory_at(round, client):
    return {"c": np.random.default_rng([round, int(client.split("-")[1])]).normal(size=500)}


def memories_after(round):
    last = {client: before for before in range(1, round + 1) for client in cohort(before)}
    return {client: memory_at(before, client) for client, before in last.items()}


def one_round(store, run, round):
    store.event(run, RoundStarted(run, round, 5))
    for client in cohort(round):
        store.event(run, UpdatesArrived(run, round, ["loss"], [[client, 10.0, 8, 1 / round]], 8))
    store.event(run, RoundCommitted(run, round, 5, 0, 0.01, {"loss": 1 / round}, 40, 40))
    memories = {client: memory_at(round, client) for client in cohort(round)}
    store.commit(run, Checkpoint(round, state_at(round), {}, memories))


def main(path, run, behind, rounds="1000000"):
    store = SqliteStore(path, behind=timedelta(seconds=float(behind)))
    if not any(known["id"] == run for known in store.runs()):
        store.create(run, {"seed": 0})
    last = store.load(run)
    done = last.round if last else 0
    store.rewind(run, done)
    for round in range(done + 1, int(rounds) + 1):
        one_round(store, run, round)
        print(round, flush=True)
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
