"""Wall clocks that jump, and machines that are put to sleep, while real processes are in the midst of a round."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from processes import SITES
from test_coordinators import other_port, second_folder
from test_killed import stopped

from insitu.core import failpoints
from insitu.federation.standby import LEASE, RENEW

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
HOUR, DAY = 3600.0, 86400.0
PATIENT = """
[policy]
deadline = "00:20:00"
gone = "00:10:00"
"""
"""Both would be over by far, if they went by the wall clock."""


def patient(federation, policy: str = PATIENT) -> None:
    with (federation.folder / "plan.toml").open("a", encoding="utf-8") as file:
        file.write(policy)


def clock(federation, name: str) -> dict[str, str]:
    """The environment of a process whose wall clock ``jump`` sets."""
    paths = [str(Path(__file__).parent / "clock"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        "INSITU_TEST_CLOCK": str(federation.folder / f"{name}.clock"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def jump(federation, seconds: float, *names: str) -> None:
    for name in names:
        new = federation.folder / f"{name}.new"
        new.write_text(str(seconds))
        new.replace(federation.folder / f"{name}.clock")


def told(federation, name: str) -> list[dict]:
    """The lines of a coordinator's log."""
    lines = (federation.folder / f"{name}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def audited(federation) -> list[dict]:
    return [
        json.loads(line)
        for line in federation.call("federation", "audit", "--json", "--federation", "study").splitlines()
    ]


def undisturbed_rounds(federation, run: str) -> None:
    """Every round was committed at its first attempt, by everybody."""
    with federation.operator() as operator:
        events = operator.events(run, 0, 0.0)[0]
    assert [e for e in events if e["event"] in ("RoundDiscarded", "ClientFailed")] == []
    assert [e["round"] for e in events if e["event"] == "RoundCommitted"] == [1, 2, 3, 4]


def test_wall_clocks_jump_in_the_middle_of_rounds(federation):
    """All of them an hour ahead in round 2, and an hour back of the right time in round 3."""
    patient(federation)
    everybody = ("coordinator", *SITES)
    federation.coordinator(**clock(federation, "coordinator"))
    federation.site(
        "berlin", **clock(federation, "berlin"), **{failpoints.VARIABLE: "site.trained:2=pause,site.sent:3=pause"}
    )
    federation.site("paris", **clock(federation, "paris"))
    run = federation.submit()
    berlin = federation.running["berlin"]
    at: list[float] = []
    for seconds in (HOUR, -HOUR):
        federation.until(lambda: stopped(berlin), "berlin stands still in a round", 90)
        jump(federation, seconds, *everybody)
        at.append(time.time())
        time.sleep(2 * RENEW)
        assert federation.status(run) == "running"
        berlin.send_signal(signal.SIGCONT)
        federation.until(lambda: not stopped(berlin), "berlin goes on")
    federation.finishes(run, 120)
    undisturbed_rounds(federation, run)
    events = [line["event"] for line in told(federation, "coordinator")]
    assert events.count("this coordinator leads") == 1
    assert "this coordinator leads no more" not in events
    assert "none changed" in federation.call("federation", "audit", "--verify", "--federation", "study")
    federation.until(lambda: [e["what"] for e in audited(federation)].count("round") == 4, "the log of all rounds")
    times = [entry["at"] for entry in audited(federation)]
    assert max(times) - at[0] > HOUR - 120  # it was believed, where it is only written down
    assert times[-1] - time.time() < -HOUR + 120


@pytest.mark.parametrize("whose", ["coordinator", "berlin"])
def test_one_clock_alone_jumps(federation, whose):
    patient(federation)
    federation.coordinator(**clock(federation, "coordinator"))
    federation.site("berlin", **clock(federation, "berlin"), **{failpoints.VARIABLE: "site.trained:2=pause"})
    federation.site("paris")
    run = federation.submit()
    federation.until(lambda: stopped(federation.running["berlin"]), "berlin stands still", 90)
    jump(federation, -HOUR, whose)
    time.sleep(RENEW)
    federation.running["berlin"].send_signal(signal.SIGCONT)
    federation.finishes(run, 120)
    undisturbed_rounds(federation, run)


def test_a_standby_on_the_same_file_does_not_take_a_jump_for_the_leaders_end(federation):
    """The lease is by the database's clock, which jumps as well; that the leader renews it is seen by another one."""
    other = second_folder(federation)
    federation.coordinator(**clock(federation, "coordinator"))
    federation.start("standby", "coordinator", other, **clock(federation, "standby"))
    federation.until(
        lambda: "coordinator started" in (federation.folder / "standby.log").read_text(), "it stands by", 60
    )
    time.sleep(2 * RENEW)
    for seconds in (HOUR, -HOUR):
        jump(federation, seconds, "coordinator", "standby")
        time.sleep(LEASE + RENEW)
        with federation.operator() as operator:
            assert operator.get("/v1/status")["leader"].endswith(str(federation.port))
    federation.kill("coordinator")
    federation.until(lambda: '"this coordinator leads"' in (federation.folder / "standby.log").read_text(), "it leads")
    assert other_port(other) in (federation.folder / "standby.log").read_text()


def test_a_clock_beyond_the_certificates_is_named_and_may_be_set_right(federation):
    federation.coordinator()
    federation.site("berlin", **clock(federation, "berlin"))
    federation.site("paris")
    jump(federation, 800 * DAY, "berlin")
    federation.kill("coordinator")  # so that berlin has to show and to see certificates again
    federation.coordinator()
    log = federation.folder / "berlin.log"
    federation.until(lambda: "set the clock" in log.read_text(), "berlin says what is wrong", 90)
    year = time.gmtime(time.time() + 800 * DAY).tm_year
    assert f"this machine's clock says {year}-" in log.read_text()
    run = federation.submit()
    time.sleep(2)
    assert federation.status(run) == "running" or federation.status(run) == "queued"
    jump(federation, 0.0, "berlin")
    federation.finishes(run, 120)
    undisturbed_rounds(federation, run)


def test_a_coordinators_clock_beyond_the_certificates_is_told_to_the_sites(federation):
    federation.coordinator(**clock(federation, "coordinator"))
    federation.site("paris")
    federation.until(lambda: "paris" in federation.call("status", "--federation", "study"), "paris is there", 60)
    jump(federation, 800 * DAY, "coordinator")
    federation.site("berlin")
    log = federation.folder / "berlin.log"
    federation.until(lambda: "the coordinator refused" in log.read_text(), "berlin says what is wrong", 90)
    assert "this machine's clock says" in log.read_text()
    jump(federation, 0.0, "coordinator")
    run = federation.submit()
    federation.finishes(run, 120)


def test_both_sides_are_put_to_sleep_for_longer_than_any_lease(federation):
    """Nobody could be heard meanwhile, so that nobody's silence counts."""
    settings = federation.folder / "study" / "federation.toml"
    settings.write_text(settings.read_text() + "\n[sites]\nlease = 2.0\n")
    patient(federation, '\n[policy]\ngone = "00:00:05"\nretries = 0\n')
    federation.coordinator()
    federation.site("berlin", **{failpoints.VARIABLE: "site.trained:2=pause"})
    federation.site("paris")
    run = federation.submit()
    federation.until(lambda: stopped(federation.running["berlin"]), "berlin stands still in a round", 90)
    everybody = [federation.running[name] for name in ("coordinator", "paris", "berlin")]
    for process in everybody:
        process.send_signal(signal.SIGSTOP)
    time.sleep(LEASE + 2 * RENEW)
    for process in everybody:
        process.send_signal(signal.SIGCONT)
    federation.finishes(run, 120)
    undisturbed_rounds(federation, run)
    assert [line["event"] for line in told(federation, "coordinator")].count("this coordinator leads") == 1
