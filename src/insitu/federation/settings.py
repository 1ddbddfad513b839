"""``federation.toml``: how a coordinator is reached, where it keeps what it must not lose, and what it puts up with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from insitu.config import parts, toml
from insitu.config.place import Place
from insitu.core import checks
from insitu.core.errors import ConfigError, PlanError

FILE = "federation.toml"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
"""What members, runs and federations may be called: a name that is also safe as a file's and a host's."""
MOST_WORKERS = 64


@dataclass(frozen=True, kw_only=True)
class StoreTable:
    """Where the ledger and the runs are kept.

    url  a file of the folder, ``federation.db``, or ``postgresql://user@host/database``
    """

    url: str = "federation.db"


@dataclass(frozen=True, kw_only=True)
class BlobsTable:
    """Where the tensors are kept.

    url  a folder in the federation's, or ``s3://bucket/prefix``
    """

    url: str = "blobs"


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """Health, readiness and Prometheus metrics without a certificate.

    listen  ``127.0.0.1:9464``: an address that only those reach who may see them; empty: only with a certificate
    """

    listen: str = ""

    def __post_init__(self) -> None:
        if self.listen:
            address(self.listen)


@dataclass(frozen=True, kw_only=True)
class LogTable:
    """Where the log goes, one JSON object a line.

    file   empty: standard error
    level  the least that is written: debug, info, warning, error
    """

    file: str = ""
    level: str = "info"

    def __post_init__(self) -> None:
        checks.one_of(("debug", "info", "warning", "error"), level=self.level)


@dataclass(frozen=True, kw_only=True)
class TracesTable:
    """OpenTelemetry, with the extra ``otel``.

    endpoint  of a collector that takes OTLP over HTTP, ``http://127.0.0.1:4318``; empty: no traces
    """

    endpoint: str = ""

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise PlanError(f"Expected endpoint={self.endpoint!r} to begin with http:// or https://")


@dataclass(frozen=True, kw_only=True)
class RunsTable:
    """How runs begin and end.

    sites     the least number of sites that must have said what data they have before a run starts
    patience  seconds for which a new run waits for all that are enrolled; those that come later join it
    at_once   runs that are trained at the same time; others wait in the queue
    grace     seconds that uploads get to end when the coordinator is told to
    """

    sites: int = 1
    patience: float = 60.0
    at_once: int = 8
    grace: float = 20.0

    def __post_init__(self) -> None:
        checks.count(sites=self.sites)
        checks.count(at_once=self.at_once)
        checks.not_negative(patience=self.patience)
        checks.not_negative(grace=self.grace)


@dataclass(frozen=True, kw_only=True)
class SitesTable:
    """How sites are spoken with.

    lease    seconds without a word after which a site that is at work counts as not connected
    poll     seconds for which a site's question for work is held; less than proxies in between allow
    largest  bytes that an update may have, such as ``"2 GiB"``
    uploads  uploads that are taken at the same time; others are told to come back
    """

    lease: float = 60.0
    poll: float = 50.0
    largest: int | str = "2 GiB"
    uploads: int = 64

    def __post_init__(self) -> None:
        checks.positive(lease=self.lease)
        checks.positive(poll=self.poll)
        checks.size(largest=self.largest)
        checks.count(uploads=self.uploads)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A federation's settings.

    name       what it is called
    hosts      names and addresses by which sites reach the coordinator; they stand in its certificate
    port       of HTTPS
    listen     the address that is listened on; ``0.0.0.0`` is every one
    addresses  URLs of all coordinators, the standby's too; empty: of the hosts
    workers    processes that end TLS and take chunks beside the coordinator's own; 0: it does so itself
    limits     what one peer and all together may take up: the fields of ``Limits``
    """

    name: str
    hosts: list[str] = field(default_factory=lambda: ["localhost"])
    port: int = 8443
    listen: str = "0.0.0.0"
    addresses: list[str] = field(default_factory=list)
    workers: int = 0
    store: StoreTable = field(default_factory=StoreTable)
    blobs: BlobsTable = field(default_factory=BlobsTable)
    metrics: MetricsTable = field(default_factory=MetricsTable)
    log: LogTable = field(default_factory=LogTable)
    traces: TracesTable = field(default_factory=TracesTable)
    runs: RunsTable = field(default_factory=RunsTable)
    sites: SitesTable = field(default_factory=SitesTable)
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise PlanError(f"Expected name={self.name!r} to be {NAME_WORDS}")
        if not self.hosts:
            raise PlanError('Expected hosts=[] to name the coordinator: give hosts = ["coordinator.example.org"]')
        if not 0 < self.port < 2**16:
            raise PlanError(f"Expected 1 <= port={self.port} <= 65535")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise PlanError(f"Expected 0 <= workers={self.workers} <= {MOST_WORKERS}: one for each core is plenty")
        for url in self.addresses:
            if not url.startswith("https://"):
                raise PlanError(f"Expected addresses={url!r} to begin with https://")

    def urls(self) -> list[str]:
        """Where sites find a coordinator."""
        return list(self.addresses) or [f"https://{_bracketed(host)}:{self.port}" for host in self.hosts]


NAME_WORDS = "lower-case letters, digits, '-', '_' and '.', at most 63, such as my-study"
TABLES: dict[str, type[Any]] = {
    "store": StoreTable, "blobs": BlobsTable, "metrics": MetricsTable, "log": LogTable, "runs": RunsTable,
    "sites": SitesTable, "traces": TracesTable,
}  # fmt: skip


def load(folder: Path) -> Settings:
    """The settings of the federation in this folder.

    Raises ConfigError, with the table, the key and the nearest right one, where they are not what they should be.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no federation's folder, as it has no {FILE}: `insitu federation init NAME` makes one"
        )
    place = Place(FILE, folder.absolute())
    told = toml.read(path)
    plain = {key: value for key, value in told.items() if key not in TABLES}
    given = {key: _table(told[key], TABLES[key], place.at(key)) for key in TABLES if key in told}
    arguments = parts.arguments(Settings, plain, place, "a federation", skip=tuple(given))
    _check_keys(told, place)
    try:
        return Settings(**arguments, **given)
    except PlanError as error:
        raise place.error(str(error)) from error


def _table(said: Any, kind: type[Any], place: Place) -> Any:
    if not isinstance(said, dict):
        raise place.error(f"expected a table, [{place.table}]")
    return parts.of_class(kind, said, place)


def _check_keys(told: dict[str, Any], place: Place) -> None:
    if not isinstance(told.get("limits", {}), dict):
        raise place.at("limits").error("expected a table, [limits]")


def new_text(settings: Settings) -> str:
    """The file as ``insitu federation init`` writes it."""
    return f"""\
# What the coordinator is called and reached by, and where it keeps what it must not lose.
# Every key is explained by the page "Federations" of insitu's documentation.

name = {toml.value(settings.name)}
hosts = {toml.value(settings.hosts)}      # as sites reach it; they stand in the coordinator's certificate
port = {settings.port}
listen = {toml.value(settings.listen)}

[store]
url = {toml.value(settings.store.url)}         # or "postgresql://user@host/database", which a standby can share

[blobs]
url = {toml.value(settings.blobs.url)}                 # a folder in this one, or "s3://bucket/prefix"

[runs]
sites = {settings.runs.sites}                     # the least number of sites with which a run starts
patience = {settings.runs.patience:g}                 # seconds that it waits for all that are enrolled

[metrics]
listen = {toml.value(settings.metrics.listen)}   # "127.0.0.1:9464": health, readiness and metrics without a certificate
"""


def address(text: str) -> tuple[str, int]:
    """``127.0.0.1:9464`` as host and port. Raises PlanError where it is not one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise PlanError(f"Expected listen={text!r} to be an address and a port, such as 127.0.0.1:9464")
    return host.strip("[]"), int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
