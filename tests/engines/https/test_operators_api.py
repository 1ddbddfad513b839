"""What operators and viewers ask, without a socket: requests as values against a real ledger."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from insitu.core.errors import Refusal, StoreError
from insitu.core.federation import Member
from insitu.engines.https.api import status as status_api
from insitu.engines.https.api.members import MembersApi
from insitu.engines.https.api.runs import RunsApi
from insitu.engines.https.api.status import StatusApi
from insitu.engines.https.api.table import Table
from insitu.engines.https.authority import Token
from insitu.engines.https.authority.tokens import digest_of
from insitu.engines.https.http import Peer, Request
from insitu.store.opened import open_ledger

NOW = 1_000_000.0
PEOPLE = {"op": ("anna", "operator"), "look": ("vera", "viewer"), "site": ("berlin", "site")}


class Runs:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked, self.told, self.over, self.waits = [], [], False, 0

    def submit(self, tables, name, by):
        self.asked.append((tables, name, by))
        return "r1"

    def listing(self):
        return [{"run": "r1"}]

    def status(self, run):
        if run != "r1":
            raise Refusal("NOT_FOUND", f"there is no run {run}")
        return {"run": run, "status": "running"}

    def events(self, run, after):
        return self.told[after:], len(self.told)

    def ended(self, run):
        return self.over

    def order(self, run, order, by):
        self.asked.append((run, order, by))
        return "paused"

    def model(self, run):
        return b"bytes"

    async def changed(self, wait):
        self.waits += 1
        await asyncio.sleep(min(wait, 0.01))
        if self.waits == 3:
            self.told.append({"event": "RoundCommitted"})

    def ending(self):
        return False


class House:
    def __init__(self, ledger):
        self.ledger, self.runs, self.cut = ledger, Runs(), []
        self.wrong = {}
        tokens = lambda name, role: Token.new(["https://localhost:8443"], "0" * 64, name, role)  # noqa: E731
        contacts = lambda: {"berlin": {"connected": True, "last_contact": 2.0, "doing": "training"}}  # noqa: E731
        apis = [
            MembersApi(ledger, tokens, contacts, self.cut.append, lambda: NOW),
            RunsApi(self.runs),
            StatusApi(lambda: self.wrong, lambda: "x 1\n", lambda: {"leader": "here"}),
        ]
        self.table = Table([route for api in apis for route in api.routes()], self.identify)

    def identify(self, serial, name):
        who, role = PEOPLE[serial]
        return Peer(who, role, serial)

    def ask(self, who, method, path, body=None, **query):
        async def pieces():
            yield json.dumps(body).encode()

        peer = Peer(PEOPLE[who][0], PEOPLE[who][1], who)
        request = Request(method, path, peer, {k: str(v) for k, v in query.items()}, {}, pieces() if body else None)
        response = asyncio.run(self.table.handle(request))
        text = bytes(response.body)
        is_json = response.headers.get("content-type") == "application/json"
        return response.status, json.loads(text) if is_json else text


@pytest.fixture
def house(tmp_path):
    with open_ledger(tmp_path / "federation.db") as ledger:
        for serial, (name, role) in PEOPLE.items():
            ledger.add_member(Member(name, role, serial, 1.0))
        yield House(ledger)


def test_a_federation_whose_database_does_not_answer_is_told_as_it_is_remembered(house, monkeypatch):
    monkeypatch.setattr(status_api, "SLOW", 0.05)
    back = threading.Event()

    def whole():
        assert back.wait(10)
        return {"leader": "here"}

    api = StatusApi(dict, str, whole, lambda wrong: {"leader": None, "wrong": dict(wrong)})
    house.table = Table(api.routes(), house.identify)

    async def asked():
        peer = Peer(PEOPLE["op"][0], PEOPLE["op"][1], "op")
        response = await house.table.handle(Request("GET", "/v1/status", peer, {}, {}, None))
        back.set()
        return json.loads(response.body)

    assert asyncio.run(asked()) == {"leader": None, "wrong": {}}
    monkeypatch.setattr(status_api, "SLOW", 30.0)
    assert asyncio.run(asked()) == {"leader": "here"}


def test_a_database_that_does_not_answer_costs_one_thread_and_no_time(house, monkeypatch):
    """However often it is asked for: the whole is asked for once at a time, in threads of its own."""
    monkeypatch.setattr(status_api, "SLOW", 0.2)
    back, threads, began = threading.Event(), [], threading.Event()

    def whole():
        threads.append(threading.current_thread().name)
        began.set()
        assert back.wait(30)
        return {"leader": "here"}

    api = StatusApi(dict, str, whole, lambda wrong: {"leader": None})
    table, peer = Table(api.routes(), house.identify), Peer(PEOPLE["op"][0], PEOPLE["op"][1], "op")

    async def asked(path="/v1/status"):
        response = await table.handle(Request("GET", path, peer, {}, {}, None))
        return json.loads(response.body)

    async def often():
        first = await asked()
        before = time.monotonic()
        found = [await asked() for _ in range(50)]
        found += await asyncio.gather(*(asked() for _ in range(50)))
        took = time.monotonic() - before
        ready = await asked("/v1/ready")
        back.set()
        monkeypatch.setattr(status_api, "SLOW", 30.0)
        while (last := await asked()) == first:
            await asyncio.sleep(0.01)
        return [first, *found], took, ready, last

    found, took, ready, last = asyncio.run(asyncio.wait_for(often(), 60))
    assert found == [{"leader": None}] * 101
    assert took < 100 * 0.2 / 2  # and not until it is slow, each time
    assert ready["ready"]
    assert last == {"leader": "here"}
    assert len(threads) == 2
    assert all(name.startswith("status") for name in threads)


def test_what_is_told_is_never_older_than_the_question(house):
    """Whoever asks while another is being answered gets what was read after it had asked."""
    state, going, reads = ["queued"], threading.Event(), []

    def whole():
        reads.append(state[0])
        found = {"status": state[0]}
        assert going.wait(30)
        return found

    api = StatusApi(dict, str, whole, lambda wrong: {})
    table, peer = Table(api.routes(), house.identify), Peer(PEOPLE["op"][0], PEOPLE["op"][1], "op")

    async def asked():
        return json.loads((await table.handle(Request("GET", "/v1/status", peer, {}, {}, None))).body)

    async def several():
        first = asyncio.create_task(asked())
        while not reads:
            await asyncio.sleep(0.001)
        state[0] = "stopped"
        others = [asyncio.create_task(asked()) for _ in range(5)]
        await asyncio.sleep(0.05)
        going.set()
        return [one["status"] for one in await asyncio.gather(first, *others)]

    assert asyncio.run(asyncio.wait_for(several(), 60)) == ["queued", *["stopped"] * 5]
    assert reads == ["queued", "stopped"]


def test_a_whole_that_fails_is_an_error_and_not_the_end(house):
    answers = [StoreError("the disk is gone"), {"leader": "here"}]

    def whole():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    api = StatusApi(dict, str, whole, lambda wrong: {})
    request = Request("GET", "/v1/status", Peer(PEOPLE["op"][0], PEOPLE["op"][1], "op"), {}, {}, None)
    with pytest.raises(StoreError, match="the disk is gone"):
        asyncio.run(api.status(request))
    assert json.loads(asyncio.run(api.status(request)).body) == {"leader": "here"}


def test_an_invitation_is_a_token_whose_digest_is_kept(house):
    status, told = house.ask("op", "POST", "/v1/invitations", {"name": "paris", "role": "site", "seconds": 3600})
    assert (status, told["expires"]) == (200, NOW + 3600)
    token = Token.parse(told["token"])
    assert (token.name, token.role) == ("paris", "site")
    (kept,) = house.ledger.invitations()
    assert (kept.token, kept.name, kept.expires) == (digest_of(token.secret), "paris", NOW + 3600)
    (entry,) = house.ledger.audited()
    assert (entry["who"], entry["what"], entry["data"]["name"]) == ("anna", "invite", "paris")
    assert token.secret not in json.dumps(house.ledger.audited())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "../x"}, "BAD_REQUEST"),
        ({"name": "A"}, "BAD_REQUEST"),
        ({"name": 3}, "BAD_REQUEST"),
        ({"role": "site"}, "BAD_REQUEST"),
        ({"name": "rome", "role": "king"}, "BAD_REQUEST"),
        ({"name": "rome", "seconds": 1}, "BAD_REQUEST"),
        ({"name": "rome", "seconds": 1e9}, "BAD_REQUEST"),
        ({"name": "rome", "seconds": "soon"}, "BAD_REQUEST"),
        ({"name": "rome", "seconds": True}, "BAD_REQUEST"),
        ({"name": "berlin"}, "NAME_TAKEN"),
        ([1], "BAD_REQUEST"),
    ],
)
def test_a_bad_invitation_is_refused(house, body, code):
    status, told = house.ask("op", "POST", "/v1/invitations", body)
    assert told["error"] == code
    assert status in (400, 409)
    assert house.ledger.invitations() == []


def test_who_is_revoked_is_cut_off(house):
    assert house.ask("op", "POST", "/v1/members/berlin/revoke")[0] == 200
    assert house.cut == ["berlin"]
    assert [m.revoked for m in house.ledger.members() if m.name == "berlin"] == [NOW]
    assert house.ask("op", "POST", "/v1/members/berlin/revoke")[1]["error"] == "NOT_FOUND"
    assert house.ask("op", "POST", "/v1/members/anna/revoke")[1]["error"] == "BAD_STATE"
    assert [entry["what"] for entry in house.ask("look", "GET", "/v1/audit")[1]["entries"]] == ["revoke"]
    assert house.ask("look", "GET", "/v1/audit", after=1)[1]["entries"] == []


def test_members_are_told_with_what_they_are_doing(house):
    _, told = house.ask("look", "GET", "/v1/sites")
    berlin = next(one for one in told["sites"] if one["name"] == "berlin")
    assert (berlin["connected"], berlin["last_contact"], berlin["doing"]) == (True, 2.0, "training")
    assert [one["connected"] for one in told["sites"] if one["name"] != "berlin"] == [False, False]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/runs"),
        ("POST", "/v1/runs/r1/stop"),
        ("POST", "/v1/runs/r1/pause"),
        ("POST", "/v1/runs/r1/resume"),
        ("GET", "/v1/runs/r1/model"),
        ("POST", "/v1/invitations"),
        ("POST", "/v1/members/berlin/revoke"),
    ],
)
def test_viewers_only_look_and_sites_not_even_that(house, method, path):
    for who in ("look", "site"):
        assert house.ask(who, method, path, {"name": "x"} if method == "POST" else None)[1]["error"] == "FORBIDDEN"
    assert house.runs.asked == []
    for path in ("/v1/runs", "/v1/sites", "/v1/audit", "/v1/status", "/v1/metrics"):
        assert house.ask("look", "GET", path)[0] == 200
        assert house.ask("site", "GET", path)[1]["error"] == "FORBIDDEN"


def test_runs_are_submitted_and_ordered_in_the_callers_name(house):
    body = {"tables": {"run": {"rounds": 3}}, "name": "a try"}
    assert house.ask("op", "POST", "/v1/runs", body) == (200, {"run": "r1"})
    assert house.ask("op", "POST", "/v1/runs/r1/pause") == (200, {"status": "paused"})
    assert house.runs.asked == [({"run": {"rounds": 3}}, "a try", "anna"), ("r1", "pause", "anna")]
    assert house.ask("op", "GET", "/v1/runs/r1/model") == (200, b"bytes")
    assert house.ask("op", "GET", "/v1/runs/r2")[0] == 404
    for wrong in ({"tables": 3}, {"tables": {}, "name": "a\nb"}, {"tables": {}, "name": "x" * 101}, {}):
        assert house.ask("op", "POST", "/v1/runs", wrong or {"x": 1})[1]["error"] == "BAD_REQUEST"


def test_news_of_a_run_are_waited_for(house):
    assert house.ask("look", "GET", "/v1/runs/r1/events", after=0, wait=5)[1] == {
        "events": [{"event": "RoundCommitted"}], "last": 1,
    }  # fmt: skip
    assert house.runs.waits == 3
    assert house.ask("look", "GET", "/v1/runs/r1/events", after=1)[1] == {"events": [], "last": 1}
    house.runs.over = True
    assert house.ask("look", "GET", "/v1/runs/r1/events", after=1, wait=30)[1]["events"] == []
    assert house.runs.waits == 3
    for wrong in ({"after": "-1"}, {"after": "x"}, {"wait": "nan"}, {"wait": "-3"}, {"after": "٣"}):
        assert house.ask("look", "GET", "/v1/runs/r1/events", **wrong)[1]["error"] == "BAD_REQUEST"


def test_readiness_says_what_is_wrong(house):
    assert house.ask("look", "GET", "/v1/health") == (200, {"status": "alive"})
    assert house.ask("look", "GET", "/v1/ready") == (200, {"ready": True, "wrong": {}})
    house.wrong = {"disk": "full"}
    assert house.ask("look", "GET", "/v1/ready") == (503, {"ready": False, "wrong": {"disk": "full"}})
    assert house.ask("look", "GET", "/v1/metrics") == (200, b"x 1\n")
