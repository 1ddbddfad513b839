"""A site's process in a simulation: the real agent with the site's own data, on a disk and network that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from insitu.engines.https.http import Peer
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.rules import Rules
from insitu.federation.building import build
from insitu.rounds.plan import Plan
from sim.disk import Platter, SiteDisk
from sim.loop import Process
from sim.network import Network, SimTransport
from sim.study import Study
from sim.trace import Trace


class Site:
    """One life of it."""

    def __init__(
        self, process: Process, name: str, study: Study, platter: Platter, network: Network, random: Random,
        pace: float, trace: Trace, plans: dict[str, Plan],
    ) -> None:  # fmt: skip
        self.process, self.name = process, name
        self._random, self._pace, self._trace, self._plans = random, pace, trace, plans
        transport = SimTransport(network, Peer(name, "site", serial_of(name)), process)
        rules = Rules()
        data = Data(lambda: study.client(name), study.declared(name))
        self.agent = Agent(
            transport, data, lambda told: self._built(told, rules), rules, SiteDisk(platter, process),
            compute=self._compute, random=random, say=lambda text: trace.say(name, text), note=self._note,
            versions={"insitu": "simulated"},
        )  # fmt: skip

    async def run(self) -> None:
        """Until it is killed, or turned away."""
        await self.agent.run()

    def _built(self, told: Mapping[str, Any], rules: Rules) -> Plan:
        """The plan of a description, which is the same for all sites of one simulation."""
        key = str(told["plan"])
        if key not in self._plans:
            self._plans[key] = build(told, Path("/nowhere"), rules)
        return self._plans[key]

    def _note(self, what: str, data: Mapping[str, Any]) -> None:
        self.process.check()
        self._trace.say(self.name, f"notes {what} {str(data.get('task', ''))[:8]}")

    async def _compute(self, function: Callable[[], Any]) -> Any:
        """Work takes its time, and its outcome is known a little later."""
        await asyncio.sleep(self._random.expovariate(1 / self._pace))
        self.process.check()
        value = function()
        await asyncio.sleep(self._random.expovariate(1 / 0.01))
        return value


def serial_of(name: str) -> str:
    """Its certificate's."""
    return name.encode().hex()
