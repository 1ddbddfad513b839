"""A site's process: joined once, then at work until it is told to stop; and what its administrator can look up."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from typing import Any

from insitu.config import toml
from insitu.core import audit as trail
from insitu.core import checks
from insitu.core.errors import ConfigError, Refusal
from insitu.engines.https.authority import Token, files, keys, pem, request_for
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.disk import Folder
from insitu.engines.https.site.worker import Worker
from insitu.federation import joining, site_settings
from insitu.federation.building import build
from insitu.federation.operator import AUTHORITY, CERTIFICATE, KEY
from insitu.federation.site_trail import SiteTrail
from insitu.record import versions

IDENTITY, AUDIT, STATUS, STATE, LOCK = "identity.toml", "audit.jsonl", "status.json", "state", "lock"
GRACE = 20.0
"""Seconds in which an upload may end when the site is told to stop."""
GOOD_BYE = 5.0
"""Seconds for leaving in good order."""
RENEW_BEFORE = 30 * 86400.0
"""Seconds before its end at which a certificate is renewed."""
RENEW_AGAIN = 600.0
"""Seconds between two attempts to renew it."""
STATUS_EVERY, STATUS_LATEST = 2.0, 60.0
"""Seconds between looks at what the status file should say, and until it is written though nothing has changed."""


def join(url: str | None, token: str, data_file: Path, folder: Path) -> str:
    """Joins a federation: makes a key in ``folder``, and has it certified; returns the site's name.

    The data are loaded first, so that nobody joins with what cannot be read. One that was cut short after the token was
    used up is gone on with. Raises ConfigError, DataError, TokenError, Refusal, or EngineError where the coordinator
    cannot be reached.
    """
    _, told = check(data_file)
    if (folder / IDENTITY).is_file():
        name = toml.read(folder / IDENTITY).get("name")
        raise ConfigError(f"{folder} is the site {name!r} already: `insitu site run {folder}` starts it")
    invited = Token.parse(token)
    if invited.role != "site":
        raise ConfigError(f"this token is for a {invited.role}, not a site: use `insitu federation join`")
    urls = [url] if url else list(invited.urls)
    if not (folder / CERTIFICATE).is_file() or pem.name_of((folder / CERTIFICATE).read_bytes()) != invited.name:
        joining.join(token, folder, urls, told.site.proxy or None)
    identity = {"name": invited.name, "urls": urls, "data": str(data_file.absolute())}
    text = "".join(f"{key} = {toml.value(value)}\n" for key, value in identity.items())
    text = f"# Who this site is, and where its coordinator and its data are.\n{text}"
    _trail(folder, urls).note("joined", {"name": invited.name, "urls": urls})
    files.write(folder / IDENTITY, text.encode(), mode=0o600)
    return invited.name


def check(data_file: Path) -> tuple[dict[str, Any], site_settings.SiteFile]:
    """What a ``site.toml`` would declare, and what it says. Raises ConfigError or DataError."""
    told = site_settings.load(data_file)
    return told.declared(told.population()), told


def run(folder: Path, say: Callable[[str], None] | None = None) -> None:
    """Works until SIGTERM or SIGINT, then leaves in good order. Raises Refusal where the site is no longer welcome."""
    _identity(folder)
    with _at_work(folder):
        asyncio.run(SiteProcess(folder, say or _say).run())


def status(folder: Path) -> dict[str, Any]:
    """What the site is doing, and what has left it: read from its folder, whether or not it runs."""
    identity = _identity(folder)
    try:
        told = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        told = {"doing": "nothing: it has not been started"}
    try:
        with _at_work(folder, seconds=0):
            alive = False
    except ConfigError:
        alive = True
    return {"name": identity["name"], "urls": identity["urls"], "alive": alive, **told}


def audit(folder: Path) -> Iterator[dict[str, Any]]:
    """What was asked of the site and what left it, the oldest first."""
    return _trail(folder, _identity(folder)["urls"]).entries()


def verify(folder: Path) -> trail.Broken | None:
    """The first entry of the audit log that was changed; None where it is whole."""
    return _trail(folder, _identity(folder)["urls"]).verify()


class SiteProcess:
    """One site, at work."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, say
        self._identity = _identity(folder)
        self._trail = _trail(folder, self._identity["urls"])
        self._settings = site_settings.load(Path(self._identity["data"]))
        self._population = self._settings.population()
        self._disk, self._worker = Folder(folder / STATE), Worker()
        self._stop = asyncio.Event()
        self._refused: Refusal | None = None
        self._said, self._written, self._at = "", "", 0.0
        self._renewed = -RENEW_AGAIN
        """When the certificate was last renewed, by the monotonic clock."""

    async def run(self) -> None:
        """Until a signal, or until the coordinator turns it away."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._disk.tidy()
        self._say(f"site {self._identity['name']!r}: {', '.join(self._identity['urls'])}")
        try:
            while not self._stop.is_set():
                await self._serve()
        finally:
            self._worker.close()
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
        with suppress(TimeoutError):
            await asyncio.wait_for(agent.bye(), GOOD_BYE)

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
            self._disk, compute=self._worker, random=SystemRandom(), say=self._say, note=self._trail.note,
            versions=versions(), cache=checks.size(cache=settings.site.cache),
        )  # fmt: skip

    async def _renewal(self, agent: Agent) -> None:
        """Returns when there is a new certificate."""
        while True:
            left = pem.ends((self._folder / CERTIFICATE).read_bytes()) - time.time()
            if left > RENEW_BEFORE:
                await asyncio.sleep(min(left - RENEW_BEFORE, 3600.0))
                continue
            if (early := self._renewed + RENEW_AGAIN - time.monotonic()) > 0:  # by a clock that is far ahead
                await asyncio.sleep(early)
                continue
            request = request_for(keys.load_key(self._folder / KEY), self._identity["name"])
            with suppress(OSError, Refusal, ConfigError, KeyError):
                told = await agent.renew(request.decode())
                authority, certificate = (str(told[name]).encode() for name in ("authority", "certificate"))
                self._trail.note("renewed", {"serial": pem.serial_of(certificate)})
                files.write(self._folder / AUTHORITY, authority, mode=0o600)
                files.write(self._folder / CERTIFICATE, certificate, mode=0o600)
                self._renewed = time.monotonic()
                while agent.doing.phase != "waiting":  # no work is lost for it
                    await asyncio.sleep(1.0)
                return
            await asyncio.sleep(RENEW_AGAIN)

    async def _report(self, agent: Agent) -> None:
        while True:
            self._write_status(agent, agent.doing.phase)
            await asyncio.sleep(STATUS_EVERY)

    def _write_status(self, agent: Agent, doing: str) -> None:
        now = agent.doing
        told = {
            "pid": os.getpid(), "doing": doing, "run": now.run, "round": now.round, "kind": now.kind, "task": now.task,
            **now.done, "bytes_sent": agent.sender.bytes, "bytes_fetched": agent.fetcher.bytes, "said": self._said,
        }  # fmt: skip
        text, at = json.dumps(told), time.time()
        if text == self._written and 0 <= at - self._at < STATUS_LATEST:
            return
        with suppress(OSError):  # a full disk has no effect on rounds
            files.write(self._folder / STATUS, json.dumps({"at": at, **told}).encode(), mode=0o600)
            self._written, self._at = text, at

    def _say(self, text: str) -> None:
        self._said = f"{time.strftime('%H:%M:%S')} {text}"
        self._tell(text)


def _trail(folder: Path, urls: list[str]) -> SiteTrail:
    return SiteTrail(folder / AUDIT, ", ".join(urls))


@contextmanager
def _at_work(folder: Path, seconds: float = 1.0) -> Iterator[None]:
    """Nobody else is at work for this site meanwhile. Raises ConfigError where somebody is for so many seconds."""
    until = time.monotonic() + seconds
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise ConfigError(
                        f"the site in {folder} is at work already, in another process: end that"
                    ) from None
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _identity(folder: Path) -> dict[str, Any]:
    if not (folder / IDENTITY).is_file():
        raise ConfigError(f"{folder} is no site's folder, as it has no {IDENTITY}: `insitu site join` makes one")
    return toml.read(folder / IDENTITY)


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
