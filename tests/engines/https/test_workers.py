"""Requests by way of worker processes: the same answers, and what happens when a worker or the main process ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleets import manned, until
from ports import Caller, Federation, asked, serving

from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.workers import fleet as fleets
from insitu.engines.https.serve.workers import hand as hands


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 90))


def code(body: bytes) -> str:
    return json.loads(body)["error"]


async def taken_by_workers(port, connections):
    """So many connections were given away, and none was kept."""
    await until(lambda: port.fleet.counts()["accepted"] == connections)
    assert port.counts["accepted"] == 0


def test_a_worker_answers_as_the_coordinator_itself(federation):
    """Members, operators and strangers; short and long bodies and answers; what is refused before and after."""
    berlin, boss = federation.member("berlin"), federation.member("boss", "operator")
    gone = federation.member("gone")
    federation.revoked.add(federation.serial("gone"))

    async def answers(port):
        tls, own = federation.client_tls(berlin), federation.client_tls(boss)
        found = [
            await asked(port, tls), await asked(port, own),
            await asked(port, tls, "/v1/table", "POST", b'{"a": [1, 2]}'),
            await asked(port, tls, "/v1/table", "POST", b"{"),
            await asked(port, tls, "/v1/large/1"), await asked(port, tls, "/v1/large/300000"),
            await asked(port, tls, "/v1/large/2000000"), await asked(port, tls, "/v1/large/0"),
            await asked(port, own, "/v1/tasks/t/chunks/ab", "PUT", b"x"), await asked(port, tls, "/v1/nothing"),
            await asked(port, tls, "/v1/who?a=1&a=2"), await asked(port, tls, "/v1/who?a"),
            await asked(port, federation.client_tls(gone)),
        ]  # fmt: skip
        nobody = federation.client_tls()
        for method, path in (("GET", "/v1/who"), ("GET", "/v1/x"), ("POST", "/v1/table"), ("GET", "/v1/enrol")):
            found.append(await asked(port, nobody, path, method, b"{}" if method == "POST" else None))
        found.append(await asked(port, nobody, "/v1/enrol", "POST", b'{"token":"x"}'))
        return found

    async def both():
        directly, by_worker = [], []
        async with serving(federation, calls=directly) as port:
            expected = await answers(port)
        async with manned(federation, 1, calls=by_worker) as port:
            found = await answers(port)
            await taken_by_workers(port, len(found))
        return expected, found, directly, by_worker

    expected, found, directly, by_worker = run(both())
    assert [status for status, _ in found] == [200] * 3 + [400] + [200] * 4 + [403, 404, 400, 400, 403] + [401] * 4 + [
        200
    ]
    # The table that stands alone does not know the paths of chunks; everything else is equal, byte for byte.
    assert found[:8] + found[9:] == expected[:8] + expected[9:]
    assert directly == by_worker  # the handlers heard the same, the caller's name and address included
    assert len(set(found[13:17])) == 1  # what exists cannot be told from what does not


def test_many_requests_at_once_on_two_workers(federation):
    tls = federation.client_tls(federation.member("berlin"))

    async def many():
        async with manned(federation, 2) as port:
            callers = [await Caller.to(port, tls) for _ in range(12)]
            await until(lambda: port.fleet.counts()["accepted"] == 12)
            held = [hand.held for hand in port.fleet.there]

            async def one(i, caller):
                length = 1000 + 70_000 * i
                for _ in range(3):
                    status, body = await caller.get(f"/v1/large/{length}")
                    assert (status, len(body)) == (200, length)
                    body = json.dumps({"n": "x" * length}).encode()
                    assert json.loads((await caller.get("/v1/table", "POST", body))[1])["got"] == json.loads(body)

            await asyncio.gather(*(one(i, caller) for i, caller in enumerate(callers)))
            for caller in callers:
                await caller.close()
            return held, [hand.answering() for hand in port.fleet.there]

    held, left = run(many())
    assert held == [6, 6]
    assert left == [[], []]


def test_an_answer_that_nobody_reads_ends(federation):
    """The main process must not keep what a caller has not fetched and will not."""
    tls = federation.client_tls(federation.member("berlin"))

    async def unread():
        async with manned(federation, 1, Limits(reader_idle=1.0)) as port:
            (hand,) = port.fleet.there
            caller = await Caller.to(port, tls)
            await caller.send(b"GET /v1/large/30000000 HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: hand.answering())
            (answer,) = hand.answering()
            caller.writer.transport.pause_reading()
            await asyncio.sleep(0.5)
            slow = answer.done()
            await until(answer.done, 5.0)
            again = await asked(port, tls)
            await caller.close()
            return slow, again[0]

    assert run(unread()) == (False, 200)


def test_a_revoked_member_is_cut_off_at_once_with_its_long_poll_and_its_upload(federation):
    berlin, paris = federation.member("berlin"), federation.member("paris")
    calls = []

    async def revoke():
        async with manned(federation, 2, calls=calls) as port:
            tls = federation.client_tls(berlin)
            poll, upload = await Caller.to(port, tls), await Caller.to(port, tls)
            other = await Caller.to(port, federation.client_tls(paris))
            await poll.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await upload.send(
                b"PUT /v1/chunks/abc HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000
            )
            await other.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: len(calls) == 2 and port.fleet.open("uploads") == 1)
            serial = federation.serial("berlin")
            federation.revoked.add(serial)
            port.fleet.cut([serial])
            ended = [await poll.ended(1), await upload.ended(1), await other.ended(0.2)]
            again = await asked(port, tls)
            await until(lambda: ("take", "berlin", 1000) in calls)  # the handler knows what has arrived
            for caller in (poll, upload, other):
                await caller.close()
            return ended, again

    ended, (status, body) = run(revoke())
    assert ended == [True, True, False]
    assert (status, code(body)) == (403, "REVOKED")


def test_certificates_can_be_replaced_while_it_serves(federation):
    old = federation.member("berlin")

    async def rotate():
        async with manned(federation, 1) as port:
            before = await asked(port, federation.client_tls(old))
            federation.authority.rotate("test")
            port.fleet.reload()
            new = federation.member("paris")
            await asyncio.sleep(0.5)
            both = [await asked(port, federation.client_tls(files)) for files in (old, new)]
            federation.authority.retire()
            port.fleet.reload()
            await asyncio.sleep(0.5)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asked(port, federation.client_tls(old))
            after = await asked(port, federation.client_tls(new))
            await taken_by_workers(port, 5)  # the refused one as well
            return [status for status, _ in (before, *both, after)]

    assert run(rotate()) == [200, 200, 200, 200]


def test_a_worker_that_is_killed_is_followed_by_another(federation, caplog):
    tls = federation.client_tls(federation.member("berlin"))
    calls = []

    async def killed():
        async with manned(federation, 1, calls=calls) as port:
            (hand,) = port.fleet.there
            poll, upload = await Caller.to(port, tls), await Caller.to(port, tls)
            await poll.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await upload.send(b"PUT /v1/chunks/ab HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n" + b"x" * 900)
            await until(lambda: calls == [("wait", "berlin")] and port.fleet.open("uploads") == 1)
            os.kill(hand.pid, signal.SIGKILL)
            ended = [await poll.ended(20), await upload.ended(20)]
            await until(lambda: ("take", "berlin", 900) in calls)  # whoever waited for the body was told
            meanwhile = await asked(port, tls)  # no worker is there: the main process takes it itself
            before = time.monotonic()
            await until(lambda: port.fleet.there)
            took = time.monotonic() - before
            after = await asked(port, tls)
            counted = port.counts["accepted"], port.fleet.counts()["accepted"]
            for caller in (poll, upload):
                await caller.close()
            return ended, meanwhile[0], after[0], counted, took, port.fleet.there[0].pid != hand.pid

    with caplog.at_level(logging.ERROR, "insitu.https"):
        ended, meanwhile, after, counted, took, other = run(killed())
    assert (ended, meanwhile, after, other) == ([True, True], 200, 200, True)
    assert counted[0] == 1
    assert counted[1] >= 2  # those of the dead one are not forgotten
    assert took < 10  # a new interpreter on a machine that does other things as well
    assert "was killed by SIGKILL" in caplog.text


def test_signals_of_a_terminal_and_a_service_do_not_end_a_worker(federation):
    tls = federation.client_tls(federation.member("berlin"))

    async def signalled():
        async with manned(federation, 1) as port:
            (hand,) = port.fleet.there
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(hand.pid, number)
            await asyncio.sleep(0.3)
            status, _ = await asked(port, tls)
            return status, [one.pid for one in port.fleet.there] == [hand.pid], port.fleet.counts()["accepted"] > 0

    assert run(signalled())[:2] == (200, True)


def test_a_drain_ends_what_is_idle_waits_for_uploads_and_cancels_what_hangs(federation):
    tls = federation.client_tls(federation.member("berlin"))
    calls = []

    async def drain():
        async with manned(federation, 1, calls=calls) as port:
            (hand,) = port.fleet.there
            idle, upload, poll = [await Caller.to(port, tls) for _ in range(3)]
            await idle.get("/v1/who")
            await upload.send(
                b"PUT /v1/chunks/abc HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"x" * 50000
            )
            await poll.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: port.fleet.open("requests") == 2)
            stopping = asyncio.gather(port.stop(1.0), port.fleet.stop(1.0))
            assert await idle.ended(1.0)
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await Caller.to(port, tls)
            await upload.send(b"x" * 50000)
            answered = await upload.answer()
            assert await poll.ended(3.0)
            await stopping
            for caller in (idle, upload, poll):
                await caller.close()
            return answered, port.fleet.there, hand

    (status, body), left, hand = run(drain())
    assert (status, json.loads(body)) == (200, {"bytes": 100000})
    assert left == []
    assert hand.answering() == []
    with pytest.raises(ProcessLookupError):
        os.kill(hand.pid, 0)
    assert hand._process.returncode == 0  # it ended by itself


def test_connections_that_came_before_the_workers_go_to_them(federation):
    tls = federation.client_tls(federation.member("berlin"))

    async def early():
        async with manned(federation, 1, ready=False) as port:
            first = await Caller.to(port, tls)  # a new interpreter takes longer than that
            answer = await first.get("/v1/who")
            assert port.counts["accepted"] == 1
            await until(lambda: port.fleet.there)
            again = await first.get("/v1/who")
            ended = await first.ended(1.0)
            await first.close()
            await asked(port, tls)
            return answer[0], again[0], ended, port.counts["accepted"]

    assert run(early()) == (200, 200, True, 1)


@pytest.mark.long
def test_a_worker_that_cannot_begin_leaves_all_to_the_main_process(federation, caplog, monkeypatch):
    monkeypatch.setattr(fleets, "PAUSES", (0.1, 30.0))
    tls = federation.client_tls(federation.member("berlin"))

    async def broken():
        async with manned(federation, 1, ready=False, chain="nowhere.pem") as port:
            await until(lambda: port.fleet.started == 2)  # it is tried again
            await until(lambda: caplog.text.count("another one is started") == 2)
            return (await asked(port, tls))[0], port.fleet.there

    with caplog.at_level(logging.ERROR, "insitu.https"):
        assert run(broken()) == (200, [])
    assert "a worker process cannot begin: nowhere.pem" in caplog.text
    assert "ended with status 1" in caplog.text


def test_no_process_can_be_started(federation, caplog, monkeypatch):
    monkeypatch.setattr(fleets, "PAUSES", (30.0,))
    monkeypatch.setattr(hands.sys, "executable", "")
    tls = federation.client_tls(federation.member("berlin"))

    async def none():
        async with manned(federation, 1, ready=False) as port:
            return (await asked(port, tls))[0], port.fleet.started

    with caplog.at_level(logging.ERROR, "insitu.https"):
        assert run(none()) == (200, 0)
    assert "cannot be started" in caplog.text


@pytest.mark.long
def test_a_new_worker_gets_connections_of_the_others(federation, monkeypatch):
    monkeypatch.setattr(fleets, "LOOK", 0.2)
    tls = federation.client_tls(federation.member("berlin"))

    async def levelled():
        async with manned(federation, 2) as port:
            callers = [await Caller.to(port, tls) for _ in range(16)]
            await until(lambda: port.fleet.counts()["accepted"] == 16)
            os.kill(port.fleet.there[0].pid, signal.SIGKILL)
            left = []
            for caller in callers:
                if await caller.ended(0.2):
                    await caller.close()
                else:
                    left.append(caller)
            left += [await Caller.to(port, tls) for _ in range(16 - len(left))]
            await until(lambda: len(port.fleet.there) == 2)

            async def stays(caller):
                """Asks now and then, and comes back where its connection ends."""
                while True:
                    try:
                        assert (await caller.get("/v1/who"))[0] == 200
                    except (ConnectionError, ssl.SSLError):
                        await caller.close()
                        caller = await Caller.to(port, tls)
                    await asyncio.sleep(0.1)

            tasks = [asyncio.create_task(stays(caller)) for caller in left]
            await until(lambda: min(held(port)) >= 6 and max(held(port)) - min(held(port)) <= 4)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for caller in left:
                await caller.close()
            return True

    assert run(levelled())


@pytest.mark.long
def test_a_worker_that_hangs_is_killed_and_followed_by_another(federation, monkeypatch, caplog):
    monkeypatch.setattr(fleets, "LOOK", 0.2)
    monkeypatch.setattr(fleets, "SILENT", 6.5)  # more than it takes between two words
    tls = federation.client_tls(federation.member("berlin"))

    async def hung():
        async with manned(federation, 2) as port:
            first, second = (hand.pid for hand in port.fleet.there)
            os.kill(first, signal.SIGSTOP)
            await until(lambda: port.fleet.started == 3 and len(port.fleet.there) == 2, 30.0)
            return first, second, [hand.pid for hand in port.fleet.there], (await asked(port, tls))[0]

    with caplog.at_level(logging.ERROR, "insitu.https"):
        first, second, left, status = run(hung())
    assert first not in left
    assert second in left
    assert status == 200
    assert f"the worker process {first} has said nothing for 6.5 s: it is killed" in caplog.text


def held(port):
    return [hand.held for hand in port.fleet.there]


def test_limits_hold_for_each_worker(federation):
    tls = federation.client_tls(federation.member("berlin"))

    async def limited():
        async with manned(federation, 1, Limits(connections=2)) as port:
            callers = [await Caller.to(port, tls) for _ in range(2)]
            with pytest.raises((OSError, ssl.SSLError)):
                await Caller.to(port, tls)
            for caller in callers:
                await caller.close()
            await until(lambda: port.fleet.counts()["refused too many connections"] == 1)
            return True

    assert run(limited())


MAIN = """
import asyncio, os, signal, sys
sys.path[:0] = sys.argv[1:2]
from pathlib import Path
from fleets import manned, until
from ports import Federation, Authority

class Again(Federation):
    def __init__(self, folder):
        self.folder, self.members, self.revoked = folder, {}, set()
        self.authority = Authority.load(folder / "authority")

async def main():
    async with manned(Again(Path(sys.argv[2])), 2) as port:
        os.kill(port.fleet.there[0].pid, signal.SIGKILL)
        await until(lambda: port.fleet.started == 3)  # one that still imports what it needs
        print(port.at, *(hand.pid for hand in port.fleet._hands), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_no_worker_outlives_the_main_process_and_the_port_is_free(federation):
    """Not even one that cannot notice, as it hangs, or one that has just been started."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", MAIN, here, str(federation.folder)]
    main = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert main.stdout is not None
        port, *pids = map(int, main.stdout.readline().split())
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGSTOP)
    finally:
        main.kill()
        main.wait()
        main.stdout.close()
    end = time.monotonic() + 2
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert alive(pids) == []

    async def free():
        class At:
            at = port

        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await Caller.to(At, None)

    run(free())


def alive(pids):
    """Those that are there and are no zombies, which an init that does not look leaves."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            found.append(pid)
    return found
