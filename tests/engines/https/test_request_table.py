"""The one table of who may ask what: every route and role against a table written down here, and tricks with paths."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core.errors import Fenced, Refusal, StoreError, TokenError
from insitu.core.federation import ROLES
from insitu.engines.https.api.table import MAX_PATH, Table, plain
from insitu.engines.https.http import MAX_JSON, Gone, Peer, Reply, Request, Response, Route, parsed

MEMBERS = {role: Peer(f"a-{role}", role, f"{i:x}0") for i, role in enumerate(ROLES, 1)}


def or_code(function, argument):
    """What it returns, or the code of its refusal."""
    try:
        return function(argument)
    except Refusal as refusal:
        return refusal.code


def identify(serial, name):
    for peer in MEMBERS.values():
        if (peer.serial, peer.name) == (serial, name):
            return peer
    raise Refusal("REVOKED" if serial == "dead" else "UNKNOWN_CERTIFICATE", "nobody")


async def fine(request):
    return Response.json({"arguments": dict(request.arguments), "by": request.peer and request.peer.name})


def raising(error):
    async def handler(request):
        raise error

    return handler


def asked(table, method, path, peer=None, headers=None, body=None, local=False):
    async def pieces():
        yield body

    request = Request(
        method, path, peer, headers=headers or {}, body=None if body is None else pieces(), address="1.2.3.4"
    )
    response = asyncio.run(table.handle(request, local=local))
    told = json.loads(response.body) if response.body else {}
    return response.status, told.get("error", "OK"), told


def one(handler=fine, roles=ROLES, **more):
    return Table([Route("GET", "/v1/it", roles, handler), Route("POST", "/v1/enrol", (), fine)], identify, **more)


ROUTES = {
    ("POST", "/v1/enrol"): (),
    ("GET", "/v1/next"): ("site",),
    ("PUT", "/v1/tasks/{task}/chunks/{digest}"): ("site",),
    ("POST", "/v1/runs"): ("operator",),
    ("GET", "/v1/runs"): ("operator", "viewer"),
    ("GET", "/v1/health"): ROLES,
}


@pytest.mark.parametrize(("route", "who"), [*product(ROUTES, [*ROLES, "stranger", "unknown", "revoked"])])
def test_every_route_and_role(route, who):
    table = Table([Route(method, path, roles, fine) for (method, path), roles in ROUTES.items()], identify)
    method, path = route
    peer = {"stranger": None, "unknown": Peer("x", "operator", "77"), "revoked": Peer("x", "operator", "dead")}.get(
        who, MEMBERS.get(who)
    )
    status, code, _ = asked(table, method, path.replace("{task}", "ab").replace("{digest}", "cd"), peer)
    if who == "stranger":
        expected = (200, "OK") if path == "/v1/enrol" else (401, "NO_CERTIFICATE")
    elif who == "unknown":
        expected = (401, "UNKNOWN_CERTIFICATE")
    elif who == "revoked":
        expected = (403, "REVOKED")
    else:
        expected = (200, "OK") if not ROUTES[route] or who in ROUTES[route] else (403, "FORBIDDEN")
    assert (status, code) == expected


def test_a_role_that_a_certificate_claims_does_not_count():
    claimed = Peer("a-site", "operator", MEMBERS["site"].serial)
    assert asked(one(roles=("operator",)), "GET", "/v1/it", claimed)[1] == "FORBIDDEN"
    assert asked(one(), "GET", "/v1/it", claimed)[2]["by"] == "a-site"


def test_what_is_not_there_is_told_to_members_only():
    table = one()
    assert asked(table, "GET", "/v1/none", MEMBERS["site"])[:2] == (404, "NOT_FOUND")
    assert asked(table, "DELETE", "/v1/it", MEMBERS["site"])[:2] == (405, "BAD_METHOD")
    strangers = {
        json.dumps(asked(table, method, path))
        for method, path in (
            ("GET", "/v1/it"),
            ("GET", "/v1/none"),
            ("X", "/v1/it"),
            ("GET", "/v1/enrol"),
            ("GET", "//"),
        )
    }
    assert len(strangers) == 1


@pytest.mark.parametrize(
    "path",
    [
        "", "v1/it", "/v1/../v1/it", "/v1/./it", "/v1//it", "/v1/it/", "/v1/%2e%2e/it", "/v1/%2E%2E/v1/it", "/v1%2fit",
        "/v1/it%00", "/v1/it%0a", "/v1/it\n", "/v1/it\x7f", "/v1/i%74%", "/v1/%ff", "/v1/%252e%252e", "/v1\\it",
        "/v1/it;x", "/v1/it%3fx", "/v1/ït", "/v1/" + "a" * MAX_PATH, "http://host/v1/it", "/v1/%c0%ae%c0%ae/it",
    ],
)  # fmt: skip
def test_paths_that_two_readers_could_take_for_two(path):
    status, code, told = asked(one(), "GET", path, MEMBERS["site"])
    assert (status, code) == (400, "BAD_REQUEST")
    assert told["message"].isascii()
    assert len(told["message"]) < 400


def test_a_path_is_decoded_once():
    assert asked(one(), "GET", "/v1/%69t", MEMBERS["site"])[1] == "OK"


@given(st.text(max_size=80).map("/v1/".__add__))
@settings(max_examples=200, deadline=None)
def test_a_path_that_is_taken_is_plain(path):
    taken = or_code(plain, path)
    if taken != "BAD_REQUEST":
        assert taken.isascii()
        assert taken.isprintable()
        assert not {"", ".", ".."} & set(taken.split("/")[1:])
        assert plain(taken) == taken


def test_arguments():
    table = Table(
        [Route("GET", "/v1/runs/{run}/events", ROLES, fine), Route("GET", "/v1/runs/all/events", ROLES, fine)], identify
    )
    assert asked(table, "GET", "/v1/runs/r-1.2~x/events", MEMBERS["viewer"])[2]["arguments"] == {"run": "r-1.2~x"}
    # What is written out comes before what is a pattern.
    assert asked(table, "GET", "/v1/runs/all/events", MEMBERS["viewer"])[2]["arguments"] == {}
    for odd in ("-x", ".x", "x" * 300, "a,b", "a&b", "'", "%7b", "*"):
        assert asked(table, "GET", f"/v1/runs/{odd}/events", MEMBERS["viewer"])[1] == "BAD_REQUEST", odd


def test_a_table_is_checked_when_it_is_made():
    for routes in (
        [Route("GET", "/v1/a", ROLES, fine)] * 2,
        [Route("GET", "/v1/{a}", ROLES, fine), Route("GET", "/v1/{b}", ROLES, fine)],
        [Route("GET", "/other", ROLES, fine)],
        [Route("GET", "/v1/open/{a}", (), fine)],
    ):
        with pytest.raises(ValueError, match=r"twice|start with"):
            Table(routes, identify)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "OK"), ({"insitu-protocol": "0"}, "OK"), ({"insitu-protocol": "1"}, "OK"),
        ({"insitu-protocol": "2"}, "OK"),
        ({"insitu-protocol": "3", "insitu-version": "9.1"}, "VERSION"), ({"insitu-protocol": "x"}, "BAD_REQUEST"),
        ({"insitu-protocol": "-1"}, "BAD_REQUEST"), ({"insitu-protocol": "9" * 50}, "BAD_REQUEST"),
        ({"insitu-protocol": "²"}, "BAD_REQUEST"),
    ],
)  # fmt: skip
def test_a_caller_may_be_one_protocol_older_or_newer(headers, code):
    status, found, told = asked(one(), "GET", "/v1/it", MEMBERS["site"], headers)
    assert found == code
    if code == "VERSION":
        assert status == 426
        assert "protocol 3" in told["message"]
        assert "9.1" in told["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Refusal("STALE_ROUND", "it is over"), 410, "STALE_ROUND"),
        (TokenError("it was used"), 403, "BAD_TOKEN"),
        (Fenced("another one leads"), 503, "NOT_LEADER"),
        (StoreError("database or disk is full"), 507, "DISK_FULL"),
        (OSError(errno.ENOSPC, "No space left on device"), 507, "DISK_FULL"),
        (StoreError("the secret is hunter2"), 500, "BROKEN"),
        (RuntimeError("the secret is hunter2"), 500, "BROKEN"),
        (RecursionError(), 500, "BROKEN"),
        (Gone("at 5 of 10 bytes"), 499, "OK"),
    ],
)
def test_what_a_handler_raises_is_told_without_its_inside(error, status, code, caplog):
    with caplog.at_level(logging.ERROR, "insitu.https"):
        found = asked(one(raising(error)), "GET", "/v1/it", MEMBERS["site"])
    assert found[:2] == (status, code)
    assert "hunter2" not in json.dumps(found)
    if code == "BROKEN":
        (record,) = caplog.records
        assert record.exc_info is not None  # the trace is in the log


def test_every_decision_is_told_and_a_hook_that_breaks_changes_nothing():
    told = []
    table = one(decided=told.append)
    asked(table, "GET", "/v1/it", MEMBERS["site"])
    asked(table, "GET", "/v1/none", MEMBERS["site"])
    asked(table, "GET", "/v1/it")
    assert [(d.code, d.route, d.peer and d.peer.name, d.address, d.status) for d in told] == [
        ("OK", "/v1/it", "a-site", "1.2.3.4", 200),
        ("NOT_FOUND", "", "a-site", "1.2.3.4", 404),
        ("NO_CERTIFICATE", "", None, "1.2.3.4", 401),
    ]

    def broken(decision):
        raise RuntimeError("full")

    assert asked(one(decided=broken), "GET", "/v1/it", MEMBERS["site"])[0] == 200


def test_the_plain_port_answers_three_things():
    table = Table([Route("GET", p, ("viewer",), fine) for p in ("/v1/health", "/v1/runs")], identify)
    assert asked(table, "GET", "/v1/health", local=True)[0] == 200
    for method, path in (
        ("GET", "/v1/runs"),
        ("POST", "/v1/health"),
        ("GET", "/v1/metrics"),
        ("GET", "/v1/health/../runs"),
    ):
        assert asked(table, method, path, MEMBERS["viewer"], local=True)[1] == "NOT_FOUND"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b'{"a":1,"a":2}', b"[NaN]", b"[Infinity]", b"[" * 100_000, b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b"\xff",
        b'"\\ud800', b"1e", b"[" * 40 + b"]" * 40, b"nul", b"1" * 5000,
    ],
)  # fmt: skip
def test_json_that_is_none_of_ours(text):
    with pytest.raises(Refusal) as refused:
        parsed(text)
    assert refused.value.code == "BAD_REQUEST"


def test_json_that_is_too_large():
    with pytest.raises(Refusal) as refused:
        parsed(b" " * (MAX_JSON + 1))
    assert refused.value.code == "TOO_LARGE"


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_whatever_bytes_are_json_or_refused(data):
    value = or_code(parsed, data)
    assert value == "BAD_REQUEST" or json.loads(data) == value


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_json_goes_there_and_back(value):
    assert parsed(Response.json(value).body) == value


@pytest.mark.parametrize(
    "body", [b"<html>proxy</html>", b"{}", b"[]", b'{"error":"EVIL","message":"x"}', b'{"error":1}']
)
def test_an_answer_that_is_no_error_of_ours_says_so(body):
    with pytest.raises(Refusal) as refused:
        Reply(502, {}, body).checked()
    assert refused.value.code == "BROKEN"
