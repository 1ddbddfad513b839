"""What one caller can cost: slow, half-open, too many, too large. An honest member is served all the while."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import socket

import pytest
from ports import Caller, Federation, asked, serving

from insitu.core.errors import ConfigError
from insitu.engines.https.serve import port as port_module
from insitu.engines.https.serve.limits import Limits


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def code(body: bytes) -> str:
    return json.loads(body)["error"]


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_slow_headers_are_cut_off_and_an_honest_member_is_served(federation):
    berlin, paris = federation.member("berlin"), federation.member("paris")

    async def slow():
        async with serving(federation, Limits(headers=0.5)) as port:
            drip = await Caller.to(port, federation.client_tls(berlin))
            silent = await Caller.to(port, federation.client_tls(berlin))
            stranger = await Caller.to(port, federation.client_tls())

            async def dripping():
                for byte in b"GET /v1/who HTTP/1.1\r\nhost: " + b"x" * 100:
                    drip.writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)

            dripper = asyncio.create_task(dripping())
            began = asyncio.get_running_loop().time()
            honest = await asked(port, federation.client_tls(paris))
            ended = [await caller.ended(3.0) for caller in (drip, silent, stranger)]
            took = asyncio.get_running_loop().time() - began
            dripper.cancel()
            for caller in (drip, silent, stranger):
                await caller.close()
            return honest[0], ended, took

    status, ended, took = run(slow())
    assert status == 200
    assert ended == [True, True, True]
    assert took < 2.0


def test_fifty_half_open_handshakes_end_in_time_and_do_not_hold_up_anyone(federation):
    paris = federation.member("paris")

    async def half():
        async with serving(federation, Limits(handshake=0.6)) as port:
            half_open = [await Caller.to(port, None) for _ in range(50)]
            for caller in half_open[::2]:
                await caller.send(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a greeting
            await until(lambda: port.open["handshakes"] == 50)
            honest = await asked(port, federation.client_tls(paris))
            ended = [await caller.ended(3.0) for caller in half_open]
            await until(lambda: port.open["handshakes"] == 0)
            for caller in half_open:
                await caller.close()
            return honest[0], ended, port.open

    status, ended, left = run(half())
    assert status == 200
    assert all(ended)
    assert left["connections"] == 0


def test_one_address_has_a_bounded_number_of_strangers(federation):
    paris = federation.member("paris")

    async def many():
        async with serving(federation, Limits(strangers=5)) as port:
            callers = [await Caller.to(port, None) for _ in range(12)]
            await until(
                lambda: port.counts["accepted"] + sum(n for k, n in port.counts.items() if "refused" in k) == 12
            )
            refused = port.counts["refused too many connections without a certificate"]
            for caller in callers:
                await caller.close()
            await until(lambda: port.open["handshakes"] == 0)
            # Those who are gone do not count for ever.
            return refused, (await asked(port, federation.client_tls(paris)))[0]

    assert run(many()) == (7, 200)


def test_garbage_instead_of_tls_is_noted_and_harmless(federation):
    paris = federation.member("paris")

    async def garbage():
        async with serving(federation) as port:
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, os.urandom(4096)):
                caller = await Caller.to(port, None)
                await caller.send(data)
                assert await caller.ended(3.0)
                await caller.close()
            return port.counts["handshakes failed"], (await asked(port, federation.client_tls(paris)))[0]

    assert run(garbage()) == (3, 200)


def test_of_one_member_the_longest_idle_connection_gives_way_and_busy_ones_are_bounded(federation):
    berlin, paris = federation.member("berlin"), federation.member("paris")

    async def many():
        async with serving(federation, Limits(per_member=4)) as port:
            tls = federation.client_tls(berlin)
            idle = []
            for _ in range(4):
                idle.append(await Caller.to(port, tls))
                await idle[-1].get("/v1/who")
            fifth = await Caller.to(port, tls)
            first = await fifth.get("/v1/who")
            gave_way = [await caller.ended(0.3) for caller in idle]
            busy = [*idle[1:], fifth]
            for caller in busy:
                await caller.send(b"GET /v1/wait HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: port.open["requests"] == 4)
            surplus = [await Caller.to(port, tls) for _ in range(8)]
            told = await surplus[-1].get("/v1/who")
            await until(lambda: port.open["connections"] <= 5)
            other = await asked(port, federation.client_tls(paris))
            for caller in (*idle, fifth, *surplus):
                await caller.close()
            return first[0], gave_way, told, other[0]

    status, gave_way, (refused, body), other = run(many())
    assert (status, gave_way) == (200, [True, False, False, False])
    assert (refused, code(body)) == (429, "TOO_MANY")
    assert other == 200


def test_all_connections_together_are_bounded(federation):
    berlin = federation.member("berlin")

    async def many():
        async with serving(federation, Limits(connections=3)) as port:
            tls = federation.client_tls(berlin)
            callers = [await Caller.to(port, tls) for _ in range(3)]
            for caller in callers:
                await caller.get("/v1/who")
            with pytest.raises(OSError):  # noqa: PT011  # the handshake is cut off: which error that is, differs
                await Caller.to(port, tls)
            await callers[0].close()
            await until(lambda: port.open["connections"] == 2)
            again = await asked(port, tls)
            for caller in callers:
                await caller.close()
            return again[0]

    assert run(many()) == 200


@pytest.mark.parametrize(
    ("head", "status", "named"),
    [
        (b"GET /v1/who HTTP/1.1\r\nhost: x\r\nlong: " + b"y" * 10_000 + b"\r\n\r\n", 413, "TOO_LARGE"),
        (b"GET /v1/" + b"w" * 10_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 413, "TOO_LARGE"),
        (b"GET /v1/who HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 400, "BAD_REQUEST"),
        (b"NONSENSE\r\n\r\n", 400, "BAD_REQUEST"),
        (b"PUT /v1/chunks/a HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n", 413, "TOO_LARGE"),
        (b"POST /v1/table HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n", 413, "TOO_LARGE"),
        (b"POST /v1/table HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400, "BAD_REQUEST"),
        (b"POST /v1/table HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411, "LENGTH_REQUIRED"),
        (
            b"POST /v1/table HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
            400,
            "BAD_REQUEST",
        ),
        (b"POST /v1/table HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n" + b"[" * 5, 400, "BAD_REQUEST"),
        (b"GET /v1/who?a=1&a=2 HTTP/1.1\r\nhost: x\r\n\r\n", 400, "BAD_REQUEST"),
    ],
)
def test_requests_that_are_too_large_or_none_get_a_typed_error(federation, head, status, named):
    berlin = federation.member("berlin")

    async def odd():
        async with serving(federation) as port:
            caller = await Caller.to(port, federation.client_tls(berlin))
            await caller.send(head)
            answer = await caller.answer()
            await caller.close()
            return answer, (await asked(port, federation.client_tls(berlin)))[0]

    (found, body), after = run(odd())
    assert (found, code(body)) == (status, named)
    assert after == 200


def test_a_stranger_cannot_send_a_large_body(federation):
    async def large():
        async with serving(federation) as port:
            caller = await Caller.to(port, federation.client_tls())
            await caller.send(b"POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 40000\r\n\r\n")
            answer = await caller.answer()
            await caller.close()
            return answer

    status, body = run(large())
    assert (status, code(body)) == (401, "NO_CERTIFICATE")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_body_that_is_cut_off_never_ends_well_and_what_came_is_known(federation, share):
    berlin = federation.member("berlin")
    calls, length = [], 200_000

    async def cut():
        async with serving(federation, calls=calls) as port:
            caller = await Caller.to(port, federation.client_tls(berlin))
            head = f"PUT /v1/chunks/a HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()
            await caller.send(head + b"x" * int(length * share))
            await until(lambda: port.open["uploads"] == 1)
            await asyncio.sleep(0.05)
            await caller.close()
            await until(lambda: calls)
            await until(lambda: port.open == {"connections": 0, "handshakes": 0, "requests": 0, "uploads": 0})

    run(cut())
    assert calls == [("take", "berlin", int(length * share))]


def test_a_body_that_stops_and_one_that_is_too_slow_are_refused(federation):
    berlin = federation.member("berlin")

    async def slow():
        limits = Limits(body_idle=0.3, rate=1000.0, rate_after=0.5)
        async with serving(federation, limits) as port:
            tls = federation.client_tls(berlin)
            stops, drips = await Caller.to(port, tls), await Caller.to(port, tls)
            head = b"PUT /v1/chunks/a HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
            await stops.send(head + b"x" * 10)
            await drips.send(head)

            async def dripping():
                while True:
                    drips.writer.write(b"x" * 10)
                    await asyncio.sleep(0.1)

            dripper = asyncio.create_task(dripping())
            answers = [await stops.answer(), await drips.answer()]
            dripper.cancel()
            for caller in (stops, drips):
                await caller.close()
            return answers

    (stopped, first), (dripped, second) = run(slow())
    assert (stopped, code(first)) == (408, "TOO_SLOW")
    assert (dripped, code(second)) == (408, "TOO_SLOW")
    assert "no byte" in json.loads(first)["message"]
    assert "bytes per second" in json.loads(second)["message"]


def test_a_reader_that_takes_nothing_costs_a_bounded_buffer_and_is_cut_off(federation):
    berlin, paris = federation.member("berlin"), federation.member("paris")

    async def stuck():
        async with serving(federation, Limits(reader_idle=0.7)) as port:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port.at))
            reader, writer = await asyncio.open_connection(
                sock=raw, ssl=federation.client_tls(berlin), server_hostname="localhost", limit=1024
            )
            caller = Caller(reader, writer)
            writer.transport.pause_reading()
            await caller.send(b"GET /v1/large/30000000 HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: port.open["requests"] == 1)
            await asyncio.sleep(0.3)
            (connection,) = port._connections.values()
            held = connection.transport.get_write_buffer_size()
            honest = await asked(port, federation.client_tls(paris))
            await until(lambda: port.open["connections"] == 0, 5.0)
            await caller.close()
            return held, honest[0]

    held, status = run(stuck())
    assert status == 200
    assert held <= 256 * 1024


def test_more_uploads_than_there_may_be_are_told_to_come_back(federation):
    berlin = federation.member("berlin")

    async def many():
        async with serving(federation, Limits(uploads=2)) as port:
            tls = federation.client_tls(berlin)
            callers = [await Caller.to(port, tls) for _ in range(3)]
            for caller in callers[:2]:
                await caller.send(b"PUT /v1/chunks/a HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
            await until(lambda: port.open["uploads"] == 2)
            await callers[2].send(b"PUT /v1/chunks/a HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
            refused = await callers[2].answer()
            small = await asked(port, tls, "/v1/table", "POST", b"{}")
            await callers[0].send(b"x" * 100000)
            finished = await callers[0].answer()
            for caller in callers:
                await caller.close()
            return refused, small[0], finished[0]

    (status, body), small, finished = run(many())
    assert (status, code(body)) == (503, "BUSY")
    assert (small, finished) == (200, 200)


def fill(taken):
    """Opens files until there are no more."""
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise


def test_without_file_descriptors_new_callers_are_turned_away_and_others_served(federation):
    berlin = federation.member("berlin")

    async def exhausted():
        async with serving(federation) as port:
            caller = await Caller.to(port, federation.client_tls(berlin))
            await caller.get("/v1/who")
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            new = socket.socket()
            new.setblocking(False)
            taken = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[0]), before[1]))
            try:
                fill(taken)
                await asyncio.get_running_loop().sock_connect(new, ("127.0.0.1", port.at))
                await until(lambda: port.counts["refused no file descriptors"])
                turned_away = await asyncio.get_running_loop().sock_recv(new, 1)
                served = await caller.get("/v1/who")
            finally:
                for handle in taken:
                    os.close(handle)
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                new.close()
            again = await asked(port, federation.client_tls(berlin))
            await caller.close()
            return turned_away, served[0], again[0]

    assert run(exhausted()) == (b"", 200, 200)


def test_a_port_that_is_taken_is_named():
    (first,) = port_module.listen("127.0.0.1", 0)
    try:
        number = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{number}.*another coordinator"):
            port_module.listen("127.0.0.1", number)
    finally:
        first.close()


def test_limits_are_positive_numbers():
    with pytest.raises(ConfigError, match="handshake=0"):
        Limits(handshake=0)
    with pytest.raises(ConfigError, match="uploads=True"):
        Limits(uploads=True)
