"""An operator's side: a folder with a certificate, and questions asked by it, one after another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from insitu.config import toml
from insitu.core import wire
from insitu.core.errors import ConfigError, EngineError, Refusal
from insitu.engines.https.authority import Token, files, keys, pem, request_for
from insitu.engines.https.http import Reply, Transport
from insitu.federation import joining
from insitu.federation.folder import OPERATOR_FILE, Folder
from insitu.federation.settings import FILE
from insitu.version import __version__

HEADERS = {"insitu-protocol": "1", "insitu-version": __version__}
PATIENCE = 20.0
"""Seconds without an answer after which a coordinator counts as not there."""
STARTING = 8.0
"""Seconds for which a coordinator that does not listen, or does not lead yet, may be about to: as long as it takes to
start, and until the lease of one that was killed is over."""
AGAIN = 0.2
KEY, CERTIFICATE, AUTHORITY = "key.pem", "certificate.pem", "authority.pem"

Maker = Callable[["Operator"], Transport]
Body = bytes | None
"""A request's; the class below has a method that is called as the type is."""


class Operator:
    """Asks a coordinator, by the certificate in an operator's folder. Use it in a ``with``.

    The first question waits for a coordinator that is just starting; where there are several, each question waits for
    one to take over. Raises Refusal with the coordinator's own reason; EngineError where none can be reached.
    """

    def __init__(self, folder: Path, transport: Maker | None = None) -> None:
        """``folder``: an operator's, or a federation's, whose founding operator's it is then."""
        self.folder = Folder(folder).operator if (folder / FILE).is_file() else folder
        name, urls = _identity(self.folder)
        self.name, self.urls = name, urls
        self.starting = STARTING
        """Seconds for which a question waits for a coordinator that is starting; once one has answered, 0 if it is the
        only one."""
        self._loop = asyncio.new_event_loop()
        try:
            self._transport = self._loop.run_until_complete(self._connect(transport or _transport))
        except BaseException:
            self._loop.close()
            raise

    async def _connect(self, make: Maker) -> Transport:
        return make(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._transport.close())
            self._loop.close()

    # ------------------------------------------------------------ questions

    def get(self, path: str, **query: Any) -> Any:
        """A GET's JSON answer; ``wait`` of the query is added to the usual patience."""
        text = {key: str(value) for key, value in query.items()}
        return self._asked("GET", path, text, None, PATIENCE + float(query.get("wait", 0.0))).value()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A POST's JSON answer."""
        return self._asked("POST", path, {}, json.dumps(dict(body or {})).encode(), PATIENCE).value()

    def bytes(self, path: str) -> bytes:
        """A GET's body as it is."""
        return self._asked("GET", path, {}, None, 10 * PATIENCE).body

    def renew(self) -> float:
        """A new certificate for the same key, and the authorities of now; until when it is good, since 1970."""
        request = request_for(keys.load_key(self.folder / KEY), self.name)
        told = self.post("/v1/renew", {"csr": request.decode()})
        made = str(told["certificate"]).encode()
        files.write(self.folder / CERTIFICATE, made)
        files.write(self.folder / AUTHORITY, str(told["authority"]).encode())
        return pem.ends(made)

    def submit(self, tables: Mapping[str, Any], name: str = "") -> str:
        """Starts a run, and returns its id."""
        return str(self.post("/v1/runs", {"tables": dict(tables), "name": name})["run"])

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first."""
        return list(self.get("/v1/runs")["runs"])

    def run(self, run: str) -> dict[str, Any]:
        """One run, now; ``last`` is the newest."""
        return dict(self.get(f"/v1/runs/{quote(run, safe='')}"))

    def order(self, run: str, order: str) -> str:
        """Stops, pauses or resumes a run, and returns its status."""
        return str(self.post(f"/v1/runs/{quote(run, safe='')}/{order}")["status"])

    def predict(self, run: str, x: Any) -> Any:
        """Predictions for examples x [n, …]."""
        body = wire.encode({"x": x})
        path = f"/v1/runs/{quote(run, safe='')}/predict"
        return wire.decode(self._asked("POST", path, {}, body, 30 * PATIENCE).body)["y"]

    def events(self, run: str, after: int, wait: float) -> tuple[list[dict[str, Any]], int]:
        """Events after a number, for which it waits so long; and the number to go on from."""
        told = self.get(f"/v1/runs/{quote(run, safe='')}/events", after=after, wait=wait)
        return list(told["events"]), int(told["last"])

    def _asked(self, method: str, path: str, query: Mapping[str, str], body: Body, timeout: float) -> Reply:
        until = time.monotonic() + self.starting
        while True:
            try:
                reply = self._asked_once(method, path, query, body, timeout)
            except (EngineError, Refusal) as error:
                if time.monotonic() >= until or not _starts(error):
                    raise
                time.sleep(AGAIN)
            else:
                if len(self.urls) == 1:
                    self.starting = 0.0
                return reply

    def _asked_once(self, method: str, path: str, query: Mapping[str, str], body: Body, timeout: float) -> Reply:
        kind = "application/octet-stream" if path.endswith("/predict") else "application/json"
        headers = {**HEADERS, **({"content-type": kind} if body is not None else {})}
        request = self._transport.request(
            method, path, query=query, headers=headers, body=body, length=None if body is None else len(body),
            timeout=timeout,
        )  # fmt: skip
        try:
            return self._loop.run_until_complete(request).checked()
        except TimeoutError as error:
            raise self._away(f"no answer within {timeout:.0f} s") from error
        except OSError as error:
            raise self._away(str(error) or type(error).__name__) from error

    def _away(self, why: str) -> EngineError:
        return EngineError(
            f"the coordinator cannot be reached at {', '.join(self.urls)}: {why}: is `insitu coordinator` running?"
        )


def urls_of(folder: Path) -> list[str]:
    """Where the coordinator of an operator's folder is. Raises ConfigError where that is none."""
    return _identity(folder)[1]


def _identity(folder: Path) -> tuple[str, list[str]]:
    told = toml.read(folder / OPERATOR_FILE) if (folder / OPERATOR_FILE).is_file() else {}
    urls, name = told.get("urls"), told.get("name")
    if not isinstance(name, str) or not isinstance(urls, list) or not all(isinstance(u, str) for u in urls):
        raise ConfigError(
            f"{folder} is no operator's folder, as it has no {OPERATOR_FILE} with name and urls:"
            " `insitu federation join --token …` makes one"
        )
    return name, urls


def _starts(error: EngineError | Refusal) -> bool:
    """Whether a coordinator may be about to answer what has got this error: nothing has come of it, then, for sure."""
    if isinstance(error, Refusal):
        return error.code in ("NOT_LEADER", "BUSY")  # BUSY: it has not read who its members are yet, say
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError) or isinstance(
            getattr(cause, "os_error", None), ConnectionRefusedError
        ):
            return True
        cause = cause.__cause__
    return False


def reachable(folder: Path) -> Operator | None:
    """An operator's connection to a coordinator that answers now, or None where none does."""
    try:
        operator = Operator(folder)
    except ConfigError:
        return None
    operator.starting = 0.0
    try:
        operator.get("/v1/health")
    except (EngineError, Refusal):
        operator.close()
        return None
    operator.starting = STARTING  # it answers, and may not lead yet
    return operator


def _transport(operator: Operator) -> Transport:
    from insitu.engines.https.transport import HttpsTransport

    own = operator.folder
    return HttpsTransport(operator.urls, own / CERTIFICATE, own / KEY, own / AUTHORITY)


def join(token: str, folder: Path) -> tuple[str, str]:
    """Enrols a person by an invitation, and makes the operator's folder; name and role. Raises as `joining.join`."""
    if Token.parse(token).role == "site":
        raise ConfigError(f"the token is for the site {Token.parse(token).name!r}: give it to `insitu site join`")
    joined = joining.join(token, folder)
    (folder / OPERATOR_FILE).write_text(text(joined.name, list(joined.urls)), encoding="utf-8")
    return joined.name, joined.role


def text(name: str, urls: list[str]) -> str:
    """What ``operator.toml`` says."""
    return (
        "# Whom this folder's certificate stands for, and where the coordinator is.\n"
        f"name = {toml.value(name)}\nurls = {toml.value(urls)}\n"
    )
