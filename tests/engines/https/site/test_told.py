"""Whatever a coordinator says, a site takes it for what it is, and goes on."""

from __future__ import annotations

import errno
import math

import pytest
from scripted import HELLO, Coordinator, Site, refuses, run, says

from insitu.core.errors import Refusal
from insitu.engines.https.http import Reply
from insitu.engines.https.site.rules import Rules
from insitu.engines.https.site.told import Asked, between, table
from insitu.engines.https.wire import packing
from insitu.engines.https.wire.manifest import digest_of
from insitu.federation.building import build

TASK = {
    "task": "0" * 32, "run": "a-run", "round": 1, "version": 0, "kind": "train", "index": 0, "place": 0, "block": 0,
    "seed": 3, "discount": 1.0, "asked": 3, "description": "1" * 64, "message": "2" * 64, "memory": None,
}  # fmt: skip
TAKEN = says({"accepted": True, "duplicate": False})


def test_a_task_is_taken_as_it_is_asked():
    asked = Asked.of({**TASK, "memory": {"task": "3" * 32}, "unknown": 5})
    assert (asked.id, asked.run, asked.seed, asked.memory) == ("0" * 32, "a-run", 3, "3" * 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"round": "one"}, "round"), ({"round": -1}, "round"), ({"round": True}, "round"), ({"round": 2**63}, "round"),
        ({"run": ""}, "run"), ({"run": 5}, "run"), ({"run": "a\nb"}, "run"), ({"run": "a" * 201}, "run"),
        ({"memory": "../../etc"}, "memory"), ({"memory": {"task": "../x"}}, "memory"), ({"memory": {}}, "memory"),
        ({"discount": math.inf}, "discount"), ({"discount": "1"}, "discount"), ({"seed": None}, "seed"),
        ({"kind": ["train"]}, "kind"), ({"index": 0.5}, "index"), ({"message": "2" * 63}, "digests"),
    ],
)  # fmt: skip
def test_a_field_that_is_none_is_named(change, named):
    with pytest.raises(Refusal) as found:
        Asked.of({**TASK, **change})
    assert found.value.code == "SITE_REFUSED"
    assert named in str(found.value)
    assert len(str(found.value)) < 200


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"[1]", b"", b"{", b"\xff", b'{"a": 1, "a": 2}'])
def test_an_answer_that_is_none_is_asked_for_again(body):
    with pytest.raises(Refusal) as found:
        table(Reply(200, {}, body))
    assert found.value.code == "BROKEN"


@pytest.mark.parametrize(
    ("x", "is_then"), [(5, 5.0), (-1, 1.0), (99, 10.0), (math.nan, 7.0), ("5", 7.0), (None, 7.0), (True, 7.0)]
)
def test_numbers_are_sensible(x, is_then):
    assert between(x, 1.0, 10.0, 7.0) == is_then


@pytest.mark.parametrize("after", ["Wed, 21 Oct 2026 07:28:00 GMT", "-5", "nan", "1e400", ""])
def test_a_pause_that_is_no_number_of_seconds_is_none(after):
    with pytest.raises(Refusal) as found:
        refuses("BUSY", 503, **{"retry-after": after}).checked()
    assert found.value.retry_after is None


def test_a_site_goes_on_whatever_it_is_told(tmp_path):
    """Answers of proxies and broken coordinators; a task of none of ours; then one that it refuses."""
    odd = [
        says(b"<html>"), says([1]), refuses("NOT_FOUND", 404), refuses("BAD_REQUEST", 400), says({"task": "../x"}),
        says({**TASK, "round": "x"}), refuses("ROUND_CLOSED", 410),
    ]  # fmt: skip
    coordinator = Coordinator(failure=[TAKEN])
    coordinator.answers["next"] = [*odd, coordinator.nothing]
    site = Site(coordinator, tmp_path)
    run(site.agent.run(), 3600)
    assert coordinator.count("next") > len(odd)
    (failure,) = [body for what, body in coordinator.log if what == "failure"]
    assert failure["code"] == "SITE_REFUSED"
    assert "round" in failure["error"]
    assert [told["error"] for what, told in site.notes if what == "refused"] == [failure["error"]]


def test_a_coordinator_that_does_not_wait_is_not_asked_all_the_time(tmp_path):
    coordinator = Coordinator(next=[Reply(204, {}, b"")])
    run(Site(coordinator, tmp_path).agent.run(), 100)
    assert 50 < coordinator.count("next") < 500


def test_a_task_that_comes_again_and_again_is_answered_ever_more_slowly(tmp_path):
    coordinator = Coordinator(failure=[TAKEN], next=[says({**TASK, "asked": 1})])
    site = Site(coordinator, tmp_path)
    run(site.agent.run(), 600)
    assert 5 < coordinator.count("failure") < 50
    assert any("again" in text for text in site.said)


@pytest.mark.parametrize("code", ["REVOKED", "FORBIDDEN", "NO_CERTIFICATE", "VERSION"])
@pytest.mark.parametrize("where", ["hello", "next"])
def test_a_site_that_is_not_wanted_ends(tmp_path, where, code):
    coordinator = Coordinator(**{where: [refuses(code, 403)]})
    with pytest.raises(Refusal) as found:
        run(Site(coordinator, tmp_path).agent.run(), 100)
    assert found.value.code == code


def test_a_certificate_that_is_not_known_yet_is_shown_again(tmp_path):
    unknown = refuses("UNKNOWN_CERTIFICATE", 401)
    coordinator = Coordinator(hello=[unknown, unknown, unknown, says(HELLO)])
    run(Site(coordinator, tmp_path).agent.run(), 400)
    assert coordinator.count("next") > 3
    coordinator = Coordinator(hello=[unknown])
    with pytest.raises(Refusal, match="UNKNOWN_CERTIFICATE"):
        run(Site(coordinator, tmp_path).agent.run(), 1000)
    assert coordinator.count("hello") == 4


def test_a_plan_of_a_version_far_away_fails_the_task_and_the_site_goes_on(tmp_path):
    message = packing.pack({}, "message", lambda chunk: "0" * 64)
    tables = {"algorithm": {"name": "fedavg", "lr": 0.1}, "learner": {"name": "logistic"}}
    description = {
        "run": "a-run", "tables": tables, "seed": 1, "plan": "0" * 64, "config": {}, "code": {},
        "schema": {"features": [1], "classes": [0, 1]}, "versions": {"insitu": "99.0.0"},
    }  # fmt: skip
    task = {**TASK, "description": digest_of(description), "message": digest_of(message)}
    coordinator = Coordinator(failure=[TAKEN])
    coordinator.answers["next"] = [says(task), coordinator.nothing]
    for document in (message, description):
        coordinator.answers[f"documents/{digest_of(document)}"] = [says(document)]
    site = Site(coordinator, tmp_path, build=lambda told: build(told, tmp_path, Rules()))
    run(site.agent.run(), 200)
    (failure,) = [body for what, body in coordinator.log if what == "failure"]
    assert "99.0.0" in failure["error"]
    assert coordinator.log[-1][0] == "next"


def test_a_disk_that_is_full_for_a_while_ends_nothing(tmp_path):
    """What cannot be noted is not done, and is done once it can be."""
    coordinator = Coordinator(failure=[TAKEN], next=[says({**TASK, "asked": 1})])
    full = [True] * 5

    def note(what, told):
        if full and full.pop():
            raise OSError(errno.ENOSPC, "no space left on device")

    site = Site(coordinator, tmp_path, note=note)
    run(site.agent.run(), 300)
    assert coordinator.log[0][0] == "hello"
    assert coordinator.count("failure") > 0
    assert sum("no space left" in text for text in site.said) == 5


def test_what_is_declared_is_noted_before_it_leaves(tmp_path):
    coordinator = Coordinator()
    coordinator.answers["hello"] = [ConnectionError("nobody there")]
    site = Site(coordinator, tmp_path)
    run(site.agent.run(), 100)
    assert site.notes == [("declared", {"examples": 2})]


def test_a_download_ends_when_its_round_does(tmp_path):
    """Even where what is asked for is broken, and would be asked for again for ever."""
    task = {**TASK, "task": "a" * 32}
    coordinator = Coordinator(alive=[says({"open": True, "reason": ""}), says({"open": False, "reason": "2 of 2"})])
    coordinator.answers["next"] = [says(task), coordinator.nothing]
    coordinator.answers[f"documents/{task['message']}"] = [refuses("BROKEN", 500)]
    site = Site(coordinator, tmp_path)
    run(site.agent.run(), 300)
    assert coordinator.log[-1][0] == "next"
    assert coordinator.count("failure") == 0
    assert site.agent.doing.done == {"answered": 0, "failed": 0, "late": 1}
    assert any(text.endswith("is over: 2 of 2") for text in site.said)


@pytest.mark.parametrize("code", ["ROUND_CLOSED", "STALE_ROUND", "UNKNOWN_TASK"])
def test_a_refused_sign_of_life_ends_it_too(tmp_path, code):
    coordinator = Coordinator(alive=[refuses("BUSY", 503), ConnectionError("gone"), refuses(code, 410)])
    coordinator.answers["next"] = [says(TASK), coordinator.nothing]
    coordinator.answers[f"documents/{TASK['message']}"] = [ConnectionError("broken off")]
    site = Site(coordinator, tmp_path)
    run(site.agent.run(), 300)
    assert site.agent.doing.done["late"] == 1
    assert coordinator.count("alive") == 3


@pytest.mark.parametrize("which", ["message", "description"])
def test_another_document_than_was_asked_for_is_not_believed(tmp_path, which):
    message = packing.pack({}, "message", lambda chunk: "0" * 64)
    task = {**TASK, "message": digest_of(message)}
    coordinator = Coordinator(failure=[TAKEN])
    coordinator.answers["next"] = [says(task), coordinator.nothing]
    shown = {**message, "length": 0} if which == "message" else message
    coordinator.answers[f"documents/{task['message']}"] = [says(shown)]
    coordinator.answers[f"documents/{task['description']}"] = [says({"run": "a-run"})]
    run(Site(coordinator, tmp_path).agent.run(), 200)
    (failure,) = [body for what, body in coordinator.log if what == "failure"]
    assert failure["code"] == "BAD_DIGEST"
    assert not any(what.startswith("chunks") or what == "update" for what, _ in coordinator.log)


def test_a_model_too_large_is_refused_before_anything_of_it_is_fetched(tmp_path):
    message = packing.pack({}, "message", lambda chunk: "0" * 64)
    task = {**TASK, "message": digest_of(message)}
    coordinator = Coordinator(failure=[TAKEN])
    coordinator.answers["next"] = [says(task), coordinator.nothing]
    coordinator.answers[f"documents/{task['message']}"] = [says(message)]
    run(Site(coordinator, tmp_path, Rules(largest_model=1)).agent.run(), 200)
    (failure,) = [body for what, body in coordinator.log if what == "failure"]
    assert failure["code"] == "SITE_REFUSED"
    assert "allow.largest_model" in failure["error"]
    assert [what for what, _ in coordinator.log if "/" in what] == [f"documents/{task['message']}"]
