"""House-keeping: who belongs to a federation, and what was done, whether its coordinator runs or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from insitu.core import audit
from insitu.core.errors import ConfigError, EngineError, Fenced, StoreError
from insitu.engines.https.api import members
from insitu.engines.https.authority import Authority
from insitu.federation import founding, keeping
from insitu.federation.folder import Folder
from insitu.federation.folder import found as folder_of
from insitu.federation.operator import AGAIN, STARTING, Operator, reachable, urls_of

if TYPE_CHECKING:
    from insitu.federation.verifying import Verdict

T = TypeVar("T")
HERE = "operator (in the folder)"
"""Who the audit log says it was, where somebody worked in the federation's folder itself."""


class _Ways(Protocol):
    def invite(self, name: str, role: str, seconds: float) -> tuple[str, float]: ...
    def revoke(self, name: str) -> None: ...
    def members(self) -> list[dict[str, Any]]: ...
    def audited(self, after: int) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class House:
    """What can be done either way. Use it in a ``with``.

    choose  finds the way; asked again, for a little, where a coordinator leads that does not answer: it may be
            starting, or its lease be about to end. Raises Fenced, EngineError
    """

    def __init__(self, choose: Callable[[], _Ways]) -> None:
        self._choose = choose
        self._way: _Ways | None = None
        self._done(lambda way: None)

    def invite(self, name: str, role: str, seconds: float) -> tuple[str, float]:
        """A token for ``name``, good once and for so many seconds, and when that ends."""
        return self._done(lambda way: way.invite(name, role, seconds))

    def revoke(self, name: str) -> None:
        """Shuts a member out."""
        self._done(lambda way: way.revoke(name))

    def members(self) -> list[dict[str, Any]]:
        """Who belongs to it."""
        return self._done(lambda way: way.members())

    def _done(self, what: Callable[[_Ways], T]) -> T:
        until = time.monotonic() + STARTING
        while True:
            try:
                if self._way is None:
                    self._way = self._choose()
                return what(self._way)
            except Fenced as error:  # nothing has been written
                if time.monotonic() >= until:
                    raise ConfigError(f"a coordinator leads this federation, and cannot be reached: {error}") from error
                self._let_go()
            except EngineError:
                if self._way is not None or time.monotonic() >= until:
                    raise
            time.sleep(AGAIN)

    def _let_go(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            way.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The whole audit log."""
        after = 0
        while found := self._done(partial(_audited, after)):
            yield from found
            after = int(found[-1]["seq"])

    def verified(self) -> str:
        """A sentence about the audit log that is whole. Raises StoreError where it is not, naming the first entry."""
        count, last = 0, audit.GENESIS

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal count, last
            for entry in self.entries():
                count, last = count + 1, str(entry["hash"])
                yield entry

        broken = audit.verify(counted())
        if broken is not None:
            raise StoreError(f"the audit log was changed: {broken.why}")
        return f"{count} entries, none changed; the last hash is {last}: note it elsewhere, to notice a cut end as well"


def house_of(path: Path) -> House:
    """By the coordinator, where one answers to the operator's certificate in this folder; else in the folder itself.

    Raises ConfigError where a coordinator leads and does not answer, EngineError where the folder is only an
    operator's and none answers; both after some seconds.
    """
    return House(partial(_way_of, path))


def _way_of(path: Path) -> _Ways:
    operator = reachable(path)
    if operator is not None:
        return _ByCoordinator(operator)
    folder = Folder(path)
    if not folder.is_federation():
        urls = ", ".join(urls_of(path))
        raise EngineError(f"the coordinator cannot be reached at {urls}: is `insitu coordinator` running?")
    return _InFolder(folder)


def _audited(after: int, way: _Ways) -> list[dict[str, Any]]:
    return way.audited(after)


class _ByCoordinator:
    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def invite(self, name: str, role: str, seconds: float) -> tuple[str, float]:
        told = self._operator.post("/v1/invitations", {"name": name, "role": role, "seconds": seconds})
        return str(told["token"]), float(told["expires"])

    def revoke(self, name: str) -> None:
        self._operator.post(f"/v1/members/{name}/revoke")

    def members(self) -> list[dict[str, Any]]:
        return list(self._operator.get("/v1/sites")["sites"])

    def audited(self, after: int) -> list[dict[str, Any]]:
        return list(self._operator.get("/v1/audit", after=after)["entries"])

    def close(self) -> None:
        self._operator.close()


def verified(path: Path | None, run: str) -> Verdict:
    """Whether a run's rounds are as they were committed: read from the database and the tensors themselves.

    Raises ConfigError where the folder is not the federation's, ResumeError where there is no such run, StoreError
    where the database cannot be asked.
    """
    from insitu.federation.verifying import verified as found

    folder = Folder(folder_of(path))
    if not folder.is_federation():
        raise ConfigError(
            f"{folder.path} is an operator's folder: what is verified are the database and the tensors, so do it in the"
            " federation's own folder, where its coordinator runs"
        )
    kept = keeping.opened(folder, folder.settings())
    try:
        return found(kept, folder, run)
    finally:
        kept.close()


class _InFolder:
    """The ledger itself, while no coordinator leads. Raises Fenced where one does."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._settings = folder, folder.settings()
        self._ledger = keeping.ledger_of(folder, self._settings)
        try:
            founding.enrol_founder(self._ledger, folder, time.time())
        except BaseException:
            self._ledger.close()
            raise

    def invite(self, name: str, role: str, seconds: float) -> tuple[str, float]:
        tokens = founding.token_maker(Authority.load(self._folder.authority), self._settings.urls())
        return members.invite(self._ledger, tokens, name, role, seconds, HERE, time.time())

    def revoke(self, name: str) -> None:
        members.revoke(self._ledger, name, HERE, time.time())

    def members(self) -> list[dict[str, Any]]:
        return members.described(self._ledger.members(), {})

    def audited(self, after: int) -> list[dict[str, Any]]:
        return list(self._ledger.audited(after))

    def close(self) -> None:
        self._ledger.close()
