"""``kill -9`` at each failpoint of the real coordinator and of a real site: the run ends with the very same model."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from processes import SITES

from insitu.core import failpoints

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))
from test_failpoints import places

COORDINATOR = {
    # in the middle of the run, not where the process begins
    "ledger.commit.before": 12, "ledger.commit.after": 14, "store.commit.before": 3, "store.commit.after": 3,
    "blob.fsync.before": 4, "blob.fsync.after": 5, "blob.rename.before": 3, "blob.rename.after": 6,
    "blob.folder.after": 5, "call.packed": 2, "call.opened": 2, "call.written": 3, "call.unpacked": 3,
    "call.closed": 2, "call.closed_before_commit": 2, "chunk.written": 3, "chunk.before_finish": 3,
    "chunk.finished": 4, "update.before_entry": 3, "update.before_ack": 3,
}  # fmt: skip
SITE = {
    "site.fetched": 2, "site.trained": 2, "site.memory.before": 2, "site.memory.after": 2, "site.outbox.before": 2,
    "site.outbox.after": 2, "site.chunk": 2, "site.sent": 2, "site.acknowledged": 2,
}  # fmt: skip
QUICK = ("update.before_ack", "store.commit.after", "chunk.finished", "site.outbox.after", "site.acknowledged")
"""Those that are no long tests."""


def some(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


def killed_at(name: str, nth: int) -> dict[str, str]:
    return {failpoints.VARIABLE: f"{name}:{nth}"}


def test_every_failpoint_is_here() -> None:
    # Store and ledger have one class; old stores and buckets have tests of their own (tests/store).
    elsewhere = {"*.commit.before", "*.commit.after"}
    found = {name for name in places() if not name.startswith(("migration", "blob.upload"))} - elsewhere
    assert found <= {*COORDINATOR, *SITE}
    assert len(COORDINATOR) + len(SITE) >= 25


@pytest.mark.parametrize("name", some(COORDINATOR))
def test_a_coordinator_that_is_killed(federation, name):
    federation.coordinator(**killed_at(name, COORDINATOR[name]))
    for site in SITES:
        federation.site(site)
    run = federation.submit()
    assert federation.dies("coordinator") == -signal.SIGKILL
    federation.coordinator()
    federation.finishes(run)


@pytest.mark.parametrize("name", some(SITE))
def test_a_site_that_is_killed(federation, name):
    federation.coordinator()
    federation.site("berlin", **killed_at(name, SITE[name]))
    federation.site("paris")
    run = federation.submit()
    assert federation.dies("berlin") == -signal.SIGKILL
    federation.site("berlin")
    federation.finishes(run)


@pytest.mark.long
@pytest.mark.parametrize("name", ["site.trained", "site.sent"])
def test_a_site_that_stands_still(federation, name):
    federation.coordinator()
    federation.site("berlin", **{failpoints.VARIABLE: f"{name}:2=pause"})
    federation.site("paris")
    run = federation.submit()
    federation.until(lambda: stopped(federation.running["berlin"]), "berlin stands still")
    time.sleep(3)
    assert federation.status(run) == "running"
    federation.running["berlin"].send_signal(signal.SIGCONT)
    federation.finishes(run)


@pytest.mark.long
@pytest.mark.parametrize("name", ["update.before_ack", "store.commit.before"])
def test_a_coordinator_that_stands_still(federation, name):
    federation.coordinator(**{failpoints.VARIABLE: f"{name}:3=pause"})
    for site in SITES:
        federation.site(site)
    run = federation.submit()
    coordinator = federation.running["coordinator"]
    federation.until(lambda: stopped(coordinator), "the coordinator stands still")
    time.sleep(3)
    coordinator.send_signal(signal.SIGCONT)
    federation.finishes(run)


@pytest.mark.long
@pytest.mark.parametrize("name", ["blob.fsync.before", "site.outbox.before", "site.memory.before"])
def test_a_disk_that_is_full_once(federation, name):
    """A site that cannot keep its update has failed in that round; a coordinator is asked again."""
    where = {failpoints.VARIABLE: f"{name}:4=full"}
    federation.coordinator(**({} if name.startswith("site") else where))
    federation.site("berlin", **(where if name.startswith("site") else {}))
    federation.site("paris")
    run = federation.submit()
    if name.startswith("site"):
        federation.until(lambda: federation.status(run) == "finished", "the run is finished", 60)
    else:
        federation.finishes(run, 90)


def stopped(process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
