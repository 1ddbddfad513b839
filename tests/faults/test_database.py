"""A PostgreSQL server that is stopped and started again under a real coordinator: what was acknowledged counts once."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
from copies import PLAN, Copy
from processes import ENV, SITES, Federation, command
from test_coordinators import leader, operator_urls, other_port, second_folder
from test_killed import stopped

from insitu.core import failpoints

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
AWAY = 15.0
"""Seconds: longer than the lead's lease, and than it takes until `insitu status` knows."""


class OnPostgres(Copy):
    """Made from the beginning, with its store in a database of the server ``postgres``."""

    def __init__(self, folder, postgres) -> None:
        Federation.__init__(self, folder)
        (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
        self.url = postgres.fresh()
        settings = folder / "study" / "federation.toml"
        settings.write_text(settings.read_text().replace('url = "federation.db"', f'url = "{self.url}"'))


@pytest.fixture
def federation(tmp_path, postgres):
    made = OnPostgres(tmp_path, postgres)
    yield made
    for process in made.running.values():
        process.send_signal(signal.SIGCONT)
    made.close()


@pytest.fixture
def away(postgres):
    """Stops the server as an administrator does (SIGINT: sessions are ended, and it goes), and starts it again."""
    gone = []

    def stop():
        postgres.stop("fast")
        gone.append(True)

    def start():
        gone.clear()
        postgres.start()

    yield stop, start
    if gone:
        postgres.start()


def in_the_middle_of_round_2(federation):
    """A run in which paris has answered, or will, and berlin's process stands still: its id, and that process."""
    federation.site("berlin", **{failpoints.VARIABLE: "site.trained:2=pause"})
    federation.site("paris")
    run = federation.submit()
    berlin = federation.running["berlin"]
    federation.until(lambda: stopped(berlin), "berlin stands still in round 2", 90)
    return run, berlin


def once_each(federation, postgres, run):
    """Every round is in the events once, nothing was void, and every site's update is in the seals once."""
    events = [(kind, json.loads(data)) for kind, data in postgres.sql(
        federation.url, f"SELECT kind, data FROM events WHERE run = '{run}' ORDER BY seq"
    )]  # fmt: skip
    assert [kind for kind, _ in events if kind in ("RoundDiscarded", "ClientFailed")] == []
    assert sum(kind == "RoundCommitted" for kind, _ in events) == 4
    sealed = [data for kind, data in events if kind == "RoundSealed"]
    assert [[site for site, _ in one["accepted"]] for one in sealed] == [list(SITES)] * 4
    assert "none changed" in federation.call("federation", "audit", "--verify", "--federation", "study")


def test_the_server_is_restarted_in_the_middle_of_a_round(federation, postgres, away):
    stop, start = away
    federation.coordinator()
    for part, name in enumerate(SITES):
        federation.join(part, name)
    run, berlin = in_the_middle_of_round_2(federation)
    stop()
    berlin.send_signal(signal.SIGCONT)  # its update comes while nothing can be written down
    until = time.monotonic() + AWAY
    said = []
    while time.monotonic() < until:
        began = time.monotonic()
        done = federation.try_call("status", "--federation", "study")
        assert done.exit_code == 0, done.output
        assert time.monotonic() - began < 10  # it does not wait for the database
        said.append(done.stdout)
        time.sleep(1)
    assert "not ready: database: " in said[-1]
    assert f"run {run}: running, 1 of 4 rounds" in said[-1]
    assert "because: it has not answered" in said[-1] or "cannot be" in said[-1]
    assert "no site is enrolled" not in said[-1]
    start()
    federation.finishes(run, 120)
    once_each(federation, postgres, run)
    told = federation.call("status", "--federation", "study")
    assert "not ready" not in told
    assert "has no database" not in told
    assert "led by" in told


def test_the_leader_dies_with_the_server_and_the_standby_takes_over(federation, postgres, away):
    stop, start = away
    other = second_folder(federation)
    federation.coordinator()
    federation.start("standby", "coordinator", other)
    federation.until(lambda: "coordinator started" in (federation.folder / "standby.log").read_text(), "it waits", 60)
    for part, name in enumerate(SITES):
        federation.join(part, name)
        identity = federation.folder / name / "identity.toml"
        urls = str(operator_urls(federation)).replace("'", '"')
        identity.write_text(identity.read_text().replace(f'["https://localhost:{federation.port}"]', urls))
    run, berlin = in_the_middle_of_round_2(federation)
    stop()
    federation.kill("coordinator")
    berlin.send_signal(signal.SIGCONT)
    time.sleep(3)
    start()
    with federation.operator() as operator:
        federation.until(lambda: leader(operator).endswith(other_port(other)), "the standby leads", 60)
    federation.finishes(run, 120)
    once_each(federation, postgres, run)


def test_a_coordinator_that_starts_without_its_server_says_so(federation, postgres, away):
    """It waits a little, as for a server that is starting too, and ends with what is wrong and what to do."""
    stop, start = away
    settings = federation.folder / "study" / "federation.toml"
    settings.write_text(settings.read_text().replace("insitu@127", "insitu:s3cret@127"))
    stop()
    began = time.monotonic()
    done = subprocess.run(
        command("coordinator", "study"), cwd=federation.folder, env=ENV, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 2
    assert time.monotonic() - began > 9
    last = done.stderr.strip().splitlines()[-1]
    assert f"127.0.0.1:{postgres.port}/" in last
    assert "cannot be opened" in last
    assert "is it up, and the URL right?" in last
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
    federation.start("coordinator", "coordinator", "study")
    time.sleep(3)  # and where the server comes within these seconds, it goes on as if nothing had been
    start()
    federation.until(
        lambda: federation.try_call("status", "--federation", "study").exit_code == 0, "the coordinator leads", 60
    )
