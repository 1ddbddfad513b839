"""A network that delays, loses, doubles, cuts and parts: requests become the coordinator's handlers' own, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from insitu.engines.https.api.table import Table
from insitu.engines.https.http import Gone, Peer, Reply, Request, Response
from sim.loop import Process, VirtualLoop
from sim.trace import Trace


@dataclass(frozen=True)
class Weather:
    """How bad the network is. Shares are of requests, seconds of virtual time."""

    lost: float = 0.0
    lost_reply: float = 0.0
    doubled: float = 0.0
    cut: float = 0.0
    slow: float = 0.0
    latency: float = 0.05


@dataclass
class Sent:
    """A request as it was sent, to be delivered once or more."""

    method: str
    path: str
    peer: Peer | None
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None

    def short(self) -> str:
        """For the trace."""
        parts = [part[:12] if len(part) > 20 else part for part in self.path.split("/")]
        return f"{self.method} {'/'.join(parts[2:])}"


@dataclass
class Fate:
    """What becomes of one delivery: drawn before it begins."""

    cut_body: int | None = None
    """The body ends after so many bytes."""
    cut_answer: int | None = None
    pieces: list[int] = field(default_factory=list)


class Connection:
    """One request at work on the coordinator; ``gone`` once the caller is."""

    def __init__(self) -> None:
        self.gone = False
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()


class Network:
    """Between sites and whoever is ``listening``: the coordinator's process and table."""

    def __init__(self, loop: VirtualLoop, random: Random, trace: Trace) -> None:
        self._loop, self._random, self._trace = loop, random, trace
        self.weather = Weather()
        self.apart: dict[str, str] = {}
        """By site: ``both``, ``there`` (requests are lost) or ``back`` (answers are)."""
        self.listening: tuple[Process, Table] | None = None
        self.on_sent: Callable[[Sent], None] = lambda sent: None
        self.on_answer: Callable[[Sent, Response], None] = lambda sent, response: None
        self.open: dict[Connection, None] = {}

    def down(self) -> None:
        """The coordinator's process is gone: whoever waits for it hears at once."""
        self.listening = None
        for connection in list(self.open):
            if not connection.answer.done():
                connection.answer.set_exception(ConnectionResetError("the coordinator is gone"))
                connection.answer.exception()
        self.open.clear()

    # ------------------------------------------------------------ a request's way

    async def carry(self, site: str, sent: Sent, timeout: float) -> Response:
        """There and back again. Raises OSError as a socket would."""
        random, weather = self._random, self.weather
        self.on_sent(sent)
        fate = self._fate(sent)
        lost, lost_reply = random.random() < weather.lost, random.random() < weather.lost_reply
        doubled = random.random() < weather.doubled
        after = random.expovariate(1 / 20)
        await asyncio.sleep(self._delay())
        if lost or self.apart.get(site) in ("both", "there"):
            self._trace.say("network", f"loses {sent.short()} of {site}")
            await asyncio.sleep(timeout)
            raise TimeoutError(f"nothing for {timeout:g} s")
        if doubled:
            self._again(sent, after)
        response = await self._delivered(site, sent, fate, timeout)
        await asyncio.sleep(self._delay())
        if lost_reply or self.apart.get(site) in ("both", "back"):
            self._trace.say("network", f"loses the answer to {sent.short()} of {site}")
            await asyncio.sleep(timeout)
            raise TimeoutError(f"nothing for {timeout:g} s")
        if fate.cut_answer is not None and isinstance(response.body, bytes) and response.status < 300:
            return Response(response.status, response.body[: fate.cut_answer], response.headers, len(response.body))
        return response

    async def _delivered(self, site: str, sent: Sent, fate: Fate, timeout: float) -> Response:
        connection = self._begin(sent, fate)
        if connection is None:
            raise ConnectionRefusedError("nobody listens there")
        try:
            await asyncio.wait([connection.answer], timeout=timeout)
            if not connection.answer.done():
                raise TimeoutError(f"no answer for {timeout:g} s")
            return connection.answer.result()
        finally:
            connection.gone = True
            self.open.pop(connection, None)

    def _begin(self, sent: Sent, fate: Fate) -> Connection | None:
        if self.listening is None:
            return None
        process, table = self.listening
        connection = Connection()
        self.open[connection] = None
        body = None if not sent.body else self._body(sent, fate, connection)
        length = len(sent.body) if sent.body else 0
        request = Request(
            sent.method, sent.path, sent.peer, dict(sent.query), dict(sent.headers), body, length, address="10.0.0.1"
        )

        async def handle() -> None:
            response = await table.handle(request)
            self.on_answer(sent, response)
            self._trace.say("coordinator", f"{response.status} to {sent.short()} of {_name(sent)}")
            if not connection.answer.done():
                connection.answer.set_result(response)

        process.spawn(handle(), sent.short())
        return connection

    async def _body(self, sent: Sent, fate: Fate, connection: Connection) -> AsyncIterator[bytes]:
        """A body as it comes in, piece by piece."""
        assert sent.body is not None
        at = 0
        while at < len(sent.body):
            await asyncio.sleep(self._delay() * 0.2)
            if connection.gone or (fate.cut_body is not None and at >= fate.cut_body):
                if not connection.answer.done():
                    connection.answer.set_exception(ConnectionResetError(f"cut at {at} of {len(sent.body)} bytes"))
                    connection.answer.exception()
                raise Gone(f"the caller was gone at {at} of {len(sent.body)} bytes")
            size = self._random.choice((1, 7, 64, 1000, 10**6))
            end = len(sent.body) if fate.cut_body is None else min(len(sent.body), fate.cut_body)
            piece = sent.body[at : min(end, at + size)] if size > 7 or at < 32 else sent.body[at:end]
            at += len(piece)
            if piece:
                yield piece

    def _again(self, sent: Sent, after: float) -> None:
        """The same request comes once more, whenever it likes; nobody hears the answer."""

        def come() -> None:
            self._trace.say("network", f"doubles {sent.short()} of {_name(sent)}")
            connection = self._begin(sent, Fate())
            if connection is not None:
                connection.answer.add_done_callback(lambda done: done.cancelled() or done.exception())

        self._loop.call_later(after, come)

    def _fate(self, sent: Sent) -> Fate:
        random = self._random
        cut, where = random.random() < self.weather.cut, random.random()
        if not cut:
            return Fate()
        if sent.body and sent.method == "PUT":
            return Fate(cut_body=int(where * len(sent.body)))
        return Fate(cut_answer=int(where * 400))

    def _delay(self) -> float:
        random, weather = self._random, self.weather
        slow = random.random() < weather.slow
        return random.expovariate(1 / weather.latency) * (50 if slow else 1)


class SimTransport:
    """A site's ``Transport``. ``peer`` is what the other end makes of its certificate."""

    def __init__(self, network: Network, peer: Peer | None, process: Process) -> None:
        self._network, self._peer, self._process = network, peer, process

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None, body: bytes | AsyncIterator[bytes] | None = None,
        length: int | None = None, stream: bool = False, timeout: float = 60.0,
    ) -> Reply:  # fmt: skip
        """As over a wire."""
        self._process.check()
        assert body is None or isinstance(body, (bytes, bytearray, memoryview)), "a site sends whole chunks"
        sent = Sent(method, path, self._peer, query or {}, headers or {}, None if body is None else bytes(body))
        response = await self._network.carry(_name(sent), sent, timeout)
        whole = response.body if isinstance(response.body, bytes) else b"".join([x async for x in response.body])
        length = len(whole) if response.length is None else response.length
        if stream and response.status < 400:
            return Reply(response.status, response.headers, stream=_streamed(whole, length))
        if len(whole) < length:
            raise ConnectionResetError(f"the answer broke off at {len(whole)} of {length} bytes")
        return Reply(response.status, response.headers, whole)

    async def close(self) -> None:
        """There is nothing to close."""


async def _streamed(data: bytes, length: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 100):
        await asyncio.sleep(0.001)
        yield data[at : at + 100]
    if len(data) < length:
        raise ConnectionResetError(f"the answer broke off at {len(data)} of {length} bytes")


def _name(sent: Sent) -> str:
    return "a stranger" if sent.peer is None else sent.peer.name


