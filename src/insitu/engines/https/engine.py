"""Https: the engine whose clients are sites of a federation."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insitu.core.errors import EngineError
from insitu.core.protocols import Engine, Setting
from insitu.engines.https import description
from insitu.engines.https.roster import Sites
from insitu.engines.https.session import HttpsSession
from insitu.engines.https.wire.manifest import digest_of

if TYPE_CHECKING:
    from insitu.engines.https.exchange import Exchange

Call = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine of the exchange's to its end, from the run's thread, and returns what it returns."""


@dataclass(frozen=True)
class Https(Engine):
    """Sites of a federation, asked by the coordinator in whose process this is: `insitu submit plan.toml`.

    exchange  what the coordinator and its sites meet at
    run       the run's id, which the coordinator has chosen
    tables    of the configuration that the plan was made of: what travels in its place
    code      SHA-256 of the files of code that the tables name
    call      runs the exchange's coroutines from the run's thread
    folder    in which the model lies while sites are at work; None: it is in memory

    The answer is that of every other engine, bit for bit where sites compute alike. A round is complete as the plan's
    ``Policy`` says; clients' memories stay at their sites.
    """

    exchange: Exchange | None = field(default=None, repr=False, compare=False)
    run: str = field(default="", compare=False)
    tables: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    code: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    call: Call | None = field(default=None, repr=False, compare=False)
    folder: Path | None = field(default=None, repr=False, compare=False)

    @classmethod
    def part_name(cls) -> str:
        return "https"

    def config(self) -> dict[str, Any]:
        """The same in every process that goes on with a run."""
        return {"name": self.part_name()}

    def refuses(self, plan: Any) -> str | None:
        if self.exchange is None or self.call is None:
            return (
                "it runs inside a coordinator: start one with `insitu coordinator FOLDER`, and give it the plan with"
                " `insitu submit plan.toml`"
            )
        if self.tables is None:
            return "a plan made in Python is live objects, which do not travel: write it as a configuration file"
        if plan.buffered is not None and plan.buffered.real:
            return (
                'its rounds wait for their sites, as the policy says, and clock="real" is for workers: use'
                " engine='processes' or 'spmd', or leave buffered out and give policy a deadline and a quorum"
            )
        for name in ("world", "buffered"):
            if getattr(plan, name) is not None:
                return f"{name} is for simulations, and here are real sites: leave {name} out"
        return None

    def open(self, setting: Setting) -> HttpsSession:
        if self.exchange is None or self.tables is None or self.call is None:
            raise EngineError(f"the engine https cannot be opened: {self.refuses(setting.plan)}")
        plan, clients = setting.plan, setting.clients
        if isinstance(clients, Sites):
            clients.begin(setting.committed + 1)
        start = None if plan.learner is None else plan.learner.init(setting.seed)
        document = description.make(self.run, self.tables, plan, start, setting.seed, clients.schema(), self.code)
        digest = digest_of(document)
        self.exchange.ledger.keep(digest, description.text_of(document), self.run)
        return HttpsSession(setting, self.exchange, self.run, digest, self.call, self.folder)
