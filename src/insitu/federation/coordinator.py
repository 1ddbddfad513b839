"""The coordinator's process: what it is made of, how it begins, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from insitu.config import parts
from insitu.config.place import Place
from insitu.core.errors import ConfigError, Refusal, StoreError
from insitu.engines.https.api.enrol import Enrolment
from insitu.engines.https.api.members import MembersApi
from insitu.engines.https.api.people import People
from insitu.engines.https.api.runs import RunsApi
from insitu.engines.https.api.status import StatusApi
from insitu.engines.https.api.table import Decision, Table
from insitu.engines.https.authority import Authority
from insitu.engines.https.http import Peer, Request, Response, Route
from insitu.engines.https.serve.limits import Limits
from insitu.engines.https.serve.plain import PlainPort
from insitu.engines.https.serve.port import Port
from insitu.engines.https.serve.tls import server_context
from insitu.federation import founding, keeping, settings
from insitu.federation.exchanging import Exchanging
from insitu.federation.folder import Folder
from insitu.federation.logs import Handler, Log
from insitu.federation.metrics import Rounds
from insitu.federation.runs import Desk
from insitu.federation.standby import Lead
from insitu.federation.traces import traces_of
from insitu.federation.trail import Trail
from insitu.federation.watching import Watching
from insitu.federation.workers import fleet_of

REFRESH = 5.0
"""Seconds between two looks at the members: a revocation by another process counts within so many."""
SWEEP = 3600.0
"""Seconds between two looks for chunks that no run wants any more."""
LOST = 3
"""The exit status of a coordinator that leads no more: whoever started it starts it again, as a standby."""
ANYWAY = ("/v1/health", "/v1/ready", "/v1/metrics", "/v1/status")
"""What a standby answers as well."""


class Coordinator:
    """One process. ``serve`` returns its exit status."""

    def __init__(self, folder: Folder) -> None:
        """Reads settings and keys. Raises ConfigError where they are not whole."""
        self.folder, self.settings = folder, folder.settings()
        place = Place(settings.FILE, folder.path.absolute()).at("limits")
        try:
            self.limits = parts.of_class(Limits, self.settings.limits, place)
        except ConfigError as error:
            raise error if str(error).startswith(settings.FILE) else place.error(str(error)) from error
        self.authority = Authority.load(folder.authority)
        self.holder = f"{socket.gethostname()}:{self.settings.port}"
        self._code = 0
        self._begun = False

    def serve(self) -> int:
        """Works until SIGTERM or SIGINT (0), or until another coordinator has taken over (3)."""
        told = self.settings.log
        self.log = Log(self.folder.path / told.file if told.file else None, told.level)
        handler, logger = Handler(self.log), logging.getLogger("insitu")
        logger.addHandler(handler)
        try:
            self.kept = keeping.opened(self.folder, self.settings)
            try:
                asyncio.run(self._serve())
            finally:
                self.kept.close()
        finally:
            logger.removeHandler(handler)
            self.log.close()
        return self._code

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._build()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ended.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        await self.port.start()  # first: whoever holds the port may call itself by its predecessor's name
        if self.plain is not None:
            await self.plain.start()
        self.log.info(
            "coordinator started", federation=self.settings.name, addresses=self.port.addresses, pid=os.getpid()
        )
        self.trail.start()
        self.lead.start()
        beside = [asyncio.create_task(self._refresh()), asyncio.create_task(self._sweep())]
        try:
            await self._ended.wait()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._drain()

    # ------------------------------------------------------------ its parts

    def _build(self) -> None:
        kept, tell = self.kept, self.log.write
        self.rounds = Rounds()
        self.trail = Trail(kept.ledger, tell)
        self.people = People(kept.ledger, self.trail.note, self._gone)
        self.exchange = exchange_of(self)
        code, note = self.folder.code, self.trail.note
        self.traces = traces_of(self.settings.traces.endpoint, self.settings.name)
        self.desk = Desk(
            kept.ledger, kept.store, self.exchange, self.settings.runs, code, tell, self.rounds, note, self.traces.event
        )
        self.lead = Lead(kept.ledger, self.holder, tell, self._won, self._lost)
        self.watching = Watching(
            self.settings.name, self.folder.path, kept.ledger, self.lead, self.desk, self.exchange.contacts,
            self._counters, self._gauges, self.rounds, self._certificates,
        )  # fmt: skip
        self.desk.away = self.watching.away
        self.table = Table([self._led(route) for route in self._routes()], self._identify, self._decided, self._headers)
        self.port = Port(self.table, self._tls, self.settings.listen, self.settings.port, self.limits)
        self.workers = fleet_of(self.folder, self.settings, self.authority, self.limits, self.table)
        self.port.give, self.port.parts = self.workers.give, self.workers.parts
        listen = self.settings.metrics.listen
        self.plain = PlainPort(self.table, *settings.address(listen)) if listen else None

    def _routes(self) -> list[Route]:
        tokens = founding.token_maker(self.authority, self.settings.urls())
        watching = self.watching
        apis: list[Enrolment | MembersApi | RunsApi | StatusApi] = [
            Enrolment(self.authority, self.kept.ledger),
            MembersApi(
                self.kept.ledger, tokens, self.exchange.contacts, lambda name: self._members_changed(), time.time
            ),
            RunsApi(self.desk),
            StatusApi(watching.ready, watching.metrics, watching.whole, watching.remembered),
        ]
        return [*(route for api in apis for route in api.routes()), *self.exchange.routes()]

    def _tls(self) -> ssl.SSLContext:
        return server_context(self.authority.chain, self.authority.key, self.authority.bundle)

    def _certificates(self) -> dict[str, float]:
        return {whose: at - time.time() for whose, at in self.authority.expires().items()}

    def _led(self, route: Route) -> Route:
        """The route, answered only while this process leads."""
        if route.path in ANYWAY:
            return route

        async def handler(
            request: Request, inner: Callable[[Request], Awaitable[Response]] = route.handler
        ) -> Response:
            if not self._works():
                raise self._not_leader()
            began = time.time_ns()
            response = await inner(request)
            self.traces.answered(route.path, request, response, began)
            if route.path == "/v1/enrol" and response.status < 400:
                await self._read_members()  # before it hears of it: its next request may come at once
            return response

        return replace(route, handler=handler)

    def _works(self) -> bool:
        """Whether this process leads, and has read all that it needs for that."""
        return self._begun and self.lead.leading

    def _not_leader(self) -> Refusal:
        return Refusal("NOT_LEADER", "another coordinator leads, or will in a moment: try the next address", 2.0)

    def _identify(self, serial: str, name: str) -> Peer:
        """The member with this certificate; one that is new may be known to the leader only."""
        try:
            return self.people(serial, name)
        except Refusal as refusal:
            if refusal.code == "UNKNOWN_CERTIFICATE" and not self._works():
                raise self._not_leader() from refusal
            raise

    def _headers(self) -> dict[str, str]:
        return {"insitu-authority": self.authority.mark}

    # ------------------------------------------------------------ what happens

    def _won(self) -> None:
        """This process leads (told in the lead's thread)."""
        founding.enrol_founder(self.kept.ledger, self.folder, time.time())
        self.people.refresh()
        self.desk.begin()
        self._begun = True
        self._loop.call_soon_threadsafe(self.workers.start)
        self.trail.note(self.holder, "lead", {"pid": os.getpid()})

    def _lost(self, why: str) -> None:
        """Another one leads now: whatever is in this process's memory may be old, so it ends."""
        self._code = LOST
        self._loop.call_soon_threadsafe(self._ended.set)

    def _hang_up(self) -> None:
        self.log.reopen()
        try:
            self.port.reload()
            self.workers.reload()
            self.log.info("certificates were read anew, and the log opened anew")
        except ConfigError as error:
            self.log.error("certificates could not be read anew", error=str(error))

    def _members_changed(self) -> None:
        """Somebody was enrolled or revoked: known at once, on the event loop or beside it."""
        self._loop.call_soon_threadsafe(lambda: setattr(self, "_hurry", asyncio.ensure_future(self._read_members())))

    async def _read_members(self) -> None:
        trouble = await asyncio.to_thread(self.people.try_refresh)
        if trouble:
            self.log.warning("the members cannot be read", error=trouble)

    async def _refresh(self) -> None:
        while True:
            await self._read_members()
            await asyncio.sleep(REFRESH)

    def _renew(self) -> bool:
        """Whether the coordinator's certificate was renewed, as it ends soon."""
        try:
            return self.authority.renew_coordinator()
        except ConfigError as error:
            self.log.error("the coordinator's certificate cannot be renewed", error=str(error))
            return False

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            if await asyncio.to_thread(self._renew):
                self._hang_up()
            if not self.lead.leading:
                continue
            try:
                removed = await self.exchange.sweep()
                self.log.debug("chunks that nobody wants were removed", chunks=removed)
            except StoreError as error:
                self.log.warning("chunks that nobody wants cannot be removed", error=str(error))

    def _gone(self, serials: list[str]) -> None:
        """Certificates that no longer count: their connections are cut."""
        names = [m.name for m in self.people.members() if m.revoked is not None and m.serial in serials]
        self.log.warning("certificates count no more", serials=serials, revoked=names)

        def cut() -> None:
            self.port.cut(serials)
            self.workers.cut(serials)
            self.exchange.revoked(names)

        self._loop.call_soon_threadsafe(cut)

    def _decided(self, decision: Decision) -> None:
        """Every request, once it is answered."""
        who = decision.peer.name if decision.peer is not None else decision.address
        if decision.code not in ("OK", "GONE"):
            refused = self.watching.refused
            refused[decision.code] = refused.get(decision.code, 0) + 1
            self.log.info(
                "refused", code=decision.code, who=who, address=decision.address, method=decision.method,
                path=decision.path[:200],
            )  # fmt: skip
        update = decision.route == "/v1/tasks/{task}/update"
        if update and decision.code not in ("OK", "GONE", "BUSY", "TOO_MANY", "NOT_LEADER", "STOPPING"):
            self.trail.note(who, "update refused", {"path": decision.path[:100], "code": decision.code})

    def _counters(self) -> dict[str, float]:
        seen = self.port.counts + self.workers.counts()
        counts = {f"insitu_port_{name.replace(' ', '_')}_total": n for name, n in seen.items()}
        return {**counts, "insitu_worker_cpu_seconds_total": self.workers.cpu(), **self.exchange.counters()}

    def _gauges(self) -> dict[str, float]:
        now, workers = self.port.open, self.workers
        own = {"insitu_workers": len(workers.there), "insitu_uploads": now["uploads"] + workers.open("uploads")}
        own["insitu_connections"] = now["connections"] + workers.open("connections")
        return {**own, **self.exchange.gauges()}

    # ------------------------------------------------------------ the end

    async def _drain(self) -> None:
        """No new tasks; uploads end or are kept for later; runs are left where they are; the standby may lead."""
        self.log.info("coordinator stops", status=self._code)
        self.exchange.drain()
        ending = asyncio.create_task(asyncio.to_thread(self.desk.end, "the coordinator is stopping"))
        grace = self.settings.runs.grace
        await asyncio.gather(self.port.stop(grace), self.workers.stop(grace))
        if not await ending:
            self.log.warning("a run did not let go in time; it goes on where it was after the next start")
        if self.plain is not None:
            await self.plain.stop()
        await self.exchange.stop()
        await asyncio.to_thread(self.trail.close)
        await asyncio.to_thread(self.traces.close)
        await asyncio.to_thread(self.lead.stop)


def exchange_of(coordinator: Coordinator) -> Any:
    """What trains with the sites; made on the loop."""
    folder, settings = coordinator.folder, coordinator.settings
    return Exchanging(coordinator.kept, settings, folder.code, coordinator.log.write)
