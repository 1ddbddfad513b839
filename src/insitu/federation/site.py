"""A site's process: joined once, then at work until it is told to stop; and what its administrator can look up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from insitu.config import toml
from insitu.core import audit as trail
from insitu.core.errors import ConfigError, Refusal
from insitu.engines.https.authority import files, keys, pem, request_for
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.disk import Folder
from insitu.federation import joining, site_settings
from insitu.federation.building import build
from insitu.federation.operator import AUTHORITY, CERTIFICATE, KEY
from insitu.record import versions

T = TypeVar("T")
IDENTITY, AUDIT, STATUS, STATE = "identity.toml", "audit.jsonl", "status.json", "state"
GRACE = 20.0
"""Seconds in which an upload may end when the site is told to stop."""
RENEW_BEFORE = 30 * 86400.0
"""Seconds before its end at which a certificate is renewed."""
STATUS_EVERY = 2.0


def join(url: str | None, token: str, data_file: Path, folder: Path) -> str:
    """Joins a federation: makes a key in ``folder``, and has it certified; returns the site's name.

    The data are loaded first, so that nobody joins with what cannot be read. Raises ConfigError, DataError, TokenError,
    Refusal, or EngineError where the coordinator cannot be reached.
    """
    check(data_file)
    if (folder / IDENTITY).is_file():
        name = toml.read(folder / IDENTITY).get("name")
        raise ConfigError(f"{folder} is the site {name!r} already: `insitu site run {folder}` starts it")
    joined = joining.join(token, folder, [url] if url else [])
    if joined.role != "site":
        raise ConfigError(f"this token is for a {joined.role}, not a site: use `insitu federation join`")
    told = {"name": joined.name, "urls": list(joined.urls), "data": str(data_file.absolute())}
    text = "".join(f"{key} = {toml.value(value)}\n" for key, value in told.items())
    files.write(folder / IDENTITY, f"# Who this site is, and where its coordinator and its data are.\n{text}".encode())
    _Trail(folder / AUDIT).note("joined", {"name": joined.name, "urls": list(joined.urls)})
    return joined.name


def check(data_file: Path) -> tuple[dict[str, Any], site_settings.SiteFile]:
    """What a ``site.toml`` would declare, and what it says. Raises ConfigError or DataError."""
    told = site_settings.load(data_file)
    return told.declared(told.population()), told


def run(folder: Path, say: Callable[[str], None] | None = None) -> None:
    """Works until SIGTERM or SIGINT, then leaves in good order. Raises Refusal where the site is no longer welcome."""
    asyncio.run(SiteProcess(folder, say or _say).run())


def status(folder: Path) -> dict[str, Any]:
    """What the site is doing, and what has left it: read from its folder, whether or not it runs."""
    identity = _identity(folder)
    try:
        told = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        told = {"doing": "nothing: it has not been started"}
    alive = _alive(told.get("pid"))
    return {"name": identity["name"], "urls": identity["urls"], "alive": alive, **told}


def audit(folder: Path) -> Iterator[dict[str, Any]]:
    """What was asked of the site and what left it, the oldest first."""
    _identity(folder)
    return _Trail(folder / AUDIT).entries()


def verify(folder: Path) -> trail.Broken | None:
    """The first entry of the audit log that was changed; None where it is whole."""
    return trail.verify(audit(folder))


class SiteProcess:
    """One site, at work."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._identity = _identity(folder)
        self._trail = _Trail(folder / AUDIT)
        self._settings = site_settings.load(Path(self._identity["data"]))
        self._population = self._settings.population()
        self._stop = asyncio.Event()
        self._refused: Refusal | None = None

    async def run(self) -> None:
        """Until a signal, or until the coordinator turns it away."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._say(f"site {self._identity['name']!r}: {', '.join(self._identity['urls'])}")
        while not self._stop.is_set():
            await self._serve()
        if self._refused is not None:
            raise self._refused

    async def _serve(self) -> None:
        """With one certificate, until it is renewed or the site stops."""
        agent = self._agent()
        work = asyncio.ensure_future(agent.run())
        others = [asyncio.ensure_future(one) for one in (self._stop.wait(), self._renewal(agent), self._report(agent))]
        try:
            await asyncio.wait({work, *others[:2]}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                await self._finish(agent, work)
            if work.done() and not work.cancelled() and isinstance(work.exception(), Refusal):
                self._refused = work.exception()  # type: ignore[assignment]
                self._say(f"turned away: {self._refused.code}: {self._refused}")  # type: ignore[union-attr]
                self._trail.note("turned away", {"code": self._refused.code})  # type: ignore[union-attr]
                self._stop.set()
        finally:
            await _ended(work, *others)
            self._write_status(agent, "stopped" if self._stop.is_set() else "renewing its certificate")
            await self._transport.close()
        if work.done() and not work.cancelled() and work.exception() is not None and self._refused is None:
            raise work.exception()  # type: ignore[misc]

    async def _finish(self, agent: Agent, work: asyncio.Future[None]) -> None:
        """An upload may end within the time of grace; what was not sent by then is sent after the next start."""
        until = time.monotonic() + GRACE
        while agent.doing.phase == "uploading" and time.monotonic() < until and not work.done():
            await asyncio.sleep(0.1)
        work.cancel()
        await agent.bye()

    def _agent(self) -> Agent:
        from insitu.engines.https.transport import HttpsTransport

        settings, code = self._settings, self._settings.place.folder
        self._transport = HttpsTransport(
            self._identity["urls"], self._folder / CERTIFICATE, self._folder / KEY, self._folder / AUTHORITY,
            proxy=settings.site.proxy or None,
        )  # fmt: skip
        name = self._identity["name"]
        client = self._population.at(0)
        data = Data(lambda: type(client)(name, client.data, client.holdout), settings.declared(self._population))
        return Agent(
            self._transport, data, lambda told: build(told, code, settings.rules), settings.rules,
            Folder(self._folder / STATE), compute=_in_thread, random=SystemRandom(), say=self._say,
            note=self._trail.note, versions=versions(), cache=_bytes(settings.site.cache),
        )  # fmt: skip

    async def _renewal(self, agent: Agent) -> None:
        """Returns when there is a new certificate."""
        while True:
            left = pem.ends((self._folder / CERTIFICATE).read_bytes()) - time.time()
            if left > RENEW_BEFORE:
                await asyncio.sleep(min(left - RENEW_BEFORE, 3600.0))
                continue
            request = request_for(keys.load_key(self._folder / KEY), self._identity["name"])
            with suppress(OSError, Refusal):
                told = await agent.renew(request.decode())
                files.write(self._folder / AUTHORITY, told["authority"].encode())
                files.write(self._folder / CERTIFICATE, told["certificate"].encode())
                self._trail.note("renewed", {"serial": pem.serial_of(told["certificate"].encode())})
                return
            await asyncio.sleep(600.0)

    async def _report(self, agent: Agent) -> None:
        while True:
            self._write_status(agent, agent.doing.phase)
            await asyncio.sleep(STATUS_EVERY)

    def _write_status(self, agent: Agent, doing: str) -> None:
        now = agent.doing
        told = {
            "pid": os.getpid(), "at": time.time(), "doing": doing, "run": now.run, "round": now.round,
            "kind": now.kind, "task": now.task, **now.done, "bytes_sent": agent.sender.bytes,
            "bytes_fetched": agent.fetcher.bytes,
        }  # fmt: skip
        with suppress(OSError):  # a full disk has no effect on rounds
            files.write(self._folder / STATUS, json.dumps(told).encode())


class _Trail:
    """The site's audit log: JSON lines, each chained to the one before it by its hash."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seq, self._before = 0, trail.GENESIS
        for entry in self.entries():
            self._seq, self._before = int(entry["seq"]), str(entry["hash"])

    def note(self, what: str, data: Mapping[str, Any]) -> None:
        """Appends an entry, durable on return. Where it cannot be written the task fails: nothing leaves unseen."""
        entry = trail.chained({"at": time.time(), "who": "", "what": what, "data": data}, self._seq + 1, self._before)
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._seq, self._before = self._seq + 1, str(entry["hash"])

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries; a last line that a crash cut off is passed over."""
        if not self._path.is_file():
            return
        with open(self._path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


def _identity(folder: Path) -> dict[str, Any]:
    if not (folder / IDENTITY).is_file():
        raise ConfigError(f"{folder} is no site's folder, as it has no {IDENTITY}: `insitu site join` makes one")
    return toml.read(folder / IDENTITY)


async def _in_thread(function: Callable[[], T]) -> T:
    return await asyncio.to_thread(function)


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _bytes(size: int | str) -> int:
    from insitu.core import checks

    return checks.size(cache=size)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
