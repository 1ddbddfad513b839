"""House-keeping: who belongs to a federation, and what was done, whether its coordinator runs or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from insitu.core import audit
from insitu.core.errors import ConfigError, EngineError, Fenced, StoreError
from insitu.engines.https.api import members
from insitu.engines.https.authority import Authority
from insitu.federation import founding, keeping
from insitu.federation.folder import Folder
from insitu.federation.operator import Operator, reachable

HERE = "operator (in the folder)"
"""Who the audit log says it was, where somebody worked in the federation's folder itself."""


class _Ways(Protocol):
    def invite(self, name: str, role: str, seconds: float) -> tuple[str, float]: ...
    def revoke(self, name: str) -> None: ...
    def members(self) -> list[dict[str, Any]]: ...
    def audited(self, after: int) -> list[dict[str, Any]]: ...
    def close(self) -> None: ...


class House:
    """What can be done either way. Use it in a ``with``."""

    def __init__(self, way: _Ways) -> None:
        self._way = way
        self.invite, self.revoke, self.members = way.invite, way.revoke, way.members

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._way.close()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The whole audit log."""
        after = 0
        while found := self._way.audited(after):
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
    """By the coordinator, where one answers to the operator's certificate in this folder; else in the folder itself."""
    operator = reachable(path)
    if operator is not None:
        return House(_ByCoordinator(operator))
    folder = Folder(path)
    if not folder.is_federation():
        urls = ", ".join(Operator(path).urls)
        raise EngineError(f"the coordinator cannot be reached at {urls}: is `insitu coordinator` running?")
    return House(_InFolder(folder))


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


class _InFolder:
    """The ledger itself, while no coordinator leads."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._settings = folder, folder.settings()
        self._ledger = keeping.ledger_of(folder, self._settings)
        try:
            founding.enrol_founder(self._ledger, folder, time.time())
        except Fenced as error:
            self._ledger.close()
            urls = ", ".join(self._settings.urls())
            raise ConfigError(
                f"a coordinator leads this federation, and cannot be reached at {urls}: {error}"
            ) from error
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
