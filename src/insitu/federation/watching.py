"""Is this coordinator well? What readiness says, what Prometheus is told, what ``insitu status`` shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insitu.core.errors import StoreError
from insitu.core.federation import Ledger
from insitu.engines.https.api.members import described
from insitu.federation import metrics
from insitu.federation.metrics import Rounds, Sample
from insitu.federation.runs import Desk
from insitu.federation.standby import LEASE, Lead

LEAST_FREE = 64 * 2**20
"""Bytes that must be free for a coordinator to be ready: below that the next large update may not fit."""
ENDED = 20
"""Runs that have ended which the status names."""

Contacts = Callable[[], Mapping[str, Mapping[str, Any]]]


@dataclass
class Watching:
    """Looks at the parts of a coordinator.

    contacts  by site when it was last heard, whether it is connected, what it is doing
    counts    numbers of the exchange and the port: by name those that only grow, and those of now
    """

    name: str
    folder: Path
    ledger: Ledger
    lead: Lead
    desk: Desk
    contacts: Contacts
    counters: Callable[[], Mapping[str, float]]
    gauges: Callable[[], Mapping[str, float]]
    rounds: Rounds
    certificates: Callable[[], Mapping[str, float]] = dict
    """Seconds until the authority's and the coordinator's certificates end."""
    refused: dict[str, int] = field(default_factory=dict)
    """Requests that were refused, by code."""

    def away(self) -> str:
        """Why the database cannot be asked; empty where it can. It is asked for that by whoever renews the lead."""
        quiet = self.lead.quiet()
        return self.lead.trouble or (f"it has not answered for {quiet:.0f} s: is it up?" if quiet > 2 * LEASE else "")

    def ready(self) -> dict[str, str]:
        """By check what is wrong; empty where all is well."""
        wrong = {}
        if away := self.away():
            wrong["database"] = away
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE:
            wrong["disk"] = f"{free / 1e6:.0f} MB are free at {self.folder}: {LEAST_FREE / 1e6:.0f} MB are needed"
        if not self.lead.leading:
            wrong["leader"] = "another coordinator leads, and this one stands by"
        return wrong

    def metrics(self) -> str:
        """Prometheus's text."""
        contacts = self.contacts()
        samples = [
            metrics.one("insitu_leading", "gauge", "Whether this coordinator leads.", self.lead.leading),
            metrics.one("insitu_ready", "gauge", "Whether it can do its work.", not self.ready()),
            metrics.by("insitu_runs", "gauge", "Runs, by status.", "status", self.desk.counted()),
            metrics.by(
                "insitu_certificate_seconds", "gauge", "Seconds until a certificate ends.", "whose", self.certificates()
            ),
            metrics.one("insitu_sites_connected", "gauge", "Sites that are connected.", _connected(contacts)),
            metrics.one(
                "insitu_disk_free_bytes", "gauge", "Free where the federation is.", shutil.disk_usage(self.folder).free
            ),
            metrics.by("insitu_refused_total", "counter", "Requests refused, by code.", "code", dict(self.refused)),
            *_named(self.counters(), "counter"),
            *_named(self.gauges(), "gauge"),
        ]
        return metrics.text(self.rounds, samples)

    def whole(self) -> dict[str, Any]:
        """What ``GET /v1/status`` answers. Where the database is away, what this process remembers."""
        if self.away():  # each question would be held for as long as it is
            return self.remembered(self.ready())
        try:
            leader = self.ledger.leader()
            members = self.ledger.members()
            runs = self.desk.listing()
        except StoreError as error:
            return self.remembered({"database": str(error)})
        alive = [one for one in runs if one["status"] not in ("finished", "stopped", "failed")]
        ended = [one for one in runs if one not in alive][:ENDED]
        return {
            "name": self.name,
            "leader": None if leader is None else leader[0],
            "wrong": self.ready(),
            "sites": described(members, self.contacts()),
            "runs": [*alive, *ended],
            "disk_free": shutil.disk_usage(self.folder).free,
            "uploads": self.gauges().get("insitu_uploads", 0),
        }

    def remembered(self, wrong: Mapping[str, str]) -> dict[str, Any]:
        """The same without the database: who leads is not known then, nor who is enrolled and was never heard."""
        wrong = dict(wrong)
        wrong.setdefault("database", "it does not answer: is it up?")
        sites = [
            {"name": name, "role": "site", "revoked": None, "declared": {}, **contact}
            for name, contact in sorted(self.contacts().items())
        ]
        ended = ("finished", "stopped", "failed")
        runs = [one for one in self.desk.listing(remembered=True) if one["status"] not in ended]
        return {"name": self.name, "leader": None, "wrong": wrong, "sites": sites, "runs": runs}


def _connected(contacts: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(bool(one.get("connected")) for one in contacts.values())


_HELP = {
    "insitu_updates_accepted_total": "Updates that were taken.",
    "insitu_updates_duplicate_total": "Updates that had been taken before.",
    "insitu_bytes_in_total": "Bytes of chunks received.",
    "insitu_bytes_out_total": "Bytes of chunks sent.",
    "insitu_uploads": "Uploads under way.",
    "insitu_connections": "Connections of the port.",
    "insitu_calls": "Calls that are open.",
    "insitu_workers": "Worker processes that take connections.",
    "insitu_worker_cpu_seconds_total": "CPU seconds of the worker processes.",
}


def _named(values: Mapping[str, float], kind: str) -> list[Sample]:
    return [metrics.one(name, kind, _HELP.get(name, f"{name}."), value) for name, value in sorted(values.items())]
