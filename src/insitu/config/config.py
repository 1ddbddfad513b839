"""A configuration as a whole: which tables there are, and what each becomes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from insitu.config import parts, toml
from insitu.config.data import DataTable, population
from insitu.config.learners import learner
from insitu.config.place import Place
from insitu.core import checks
from insitu.core.errors import PlanError
from insitu.core.types import Data, Population
from insitu.rounds.buffered import Buffered
from insitu.rounds.plan import Plan
from insitu.rounds.policy import Policy
from insitu.rounds.world import World


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """How a run is executed; its plan is in the other tables.

    rounds, seed, engine, store, evaluate_every,
    memory_budget                                 as in :func:`insitu.run`; ``engine = "auto"`` takes the fastest, and
                                                  ``store = false`` writes nothing
    evaluate_cohort, block                        as in :class:`insitu.Plan`
    """

    rounds: int
    seed: int = 0
    engine: str | dict[str, Any] = "auto"
    store: str | Literal[False] = "runs/insitu.db"
    evaluate_every: int = 1
    evaluate_cohort: str | dict[str, Any] | None = None
    block: int | None = None
    memory_budget: int | str | None = None

    def __post_init__(self) -> None:
        checks.count(rounds=self.rounds)  # before anything is read or opened
        if self.memory_budget is not None:
            checks.size(memory_budget=self.memory_budget)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """A configuration file."""

    run: dict[str, Any]
    data: dict[str, Any]
    algorithm: dict[str, Any]
    learner: dict[str, Any] | None = None
    cohort: dict[str, Any] | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    buffered: dict[str, Any] | None = None
    world: dict[str, Any] | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    reduce: dict[str, Any] | None = None


class Built(NamedTuple):
    """What :func:`insitu.run` takes: ``run(built.plan, built.clients, evaluate=built.evaluate, **built.options)``."""

    plan: Plan
    clients: Population
    evaluate: Data | None
    options: dict[str, Any]
    """rounds, seed, engine, store and memory_budget."""


@dataclass(frozen=True)
class Config:
    """A configuration whose tables are known to exist; ``build`` makes their parts, and checks the keys of each."""

    tables: Tables
    run: RunTable
    data: DataTable
    place: Place

    def build(self) -> Built:
        """Everything that a run needs. The plan comes first: data may take long to read.

        Raises ConfigError, DataError (a data set's files are absent) or MissingExtra.
        """
        plan, engine = self.plan(), self.engine()
        clients, test = self.population()
        options = {"rounds": self.run.rounds, "seed": self.run.seed, "engine": engine, "store": self.store()}
        options["memory_budget"] = self.run.memory_budget
        return Built(plan, clients, test, options)

    def plan(self) -> Plan:
        """The plan; code of the user's is imported for it."""
        tables, at = self.tables, self.place.at
        given: dict[str, Any] = {
            "algorithm": parts.make(tables.algorithm, parts.in_family("algorithms"), at("algorithm")),
            "learner": None if tables.learner is None else learner(tables.learner, at("learner")),
            "stages": tuple(parts.make(one, parts.stage, at("stages")) for one in tables.stages),
            "policy": parts.of_class(Policy, tables.policy, at("policy")),
            "evaluate_every": self.run.evaluate_every,
            "block": self.run.block,
        }
        if tables.buffered is not None:
            given["buffered"] = parts.of_class(Buffered, tables.buffered, at("buffered"))
        if tables.world is not None:
            given["world"] = parts.of_class(World, tables.world, at("world"))
        for name, said, finder, place in (
            ("cohort", tables.cohort, parts.cohort, at("cohort")),
            ("reduce", tables.reduce, parts.reduce, at("reduce")),
            ("evaluate_cohort", self.run.evaluate_cohort, parts.cohort, at("run").at("evaluate_cohort")),
        ):
            if said is not None:
                given[name] = parts.make(said, finder, place)
        try:
            return Plan(**given)
        except PlanError as error:
            raise self.place.error(str(error)) from error

    def population(self) -> tuple[Population, Data | None]:
        """The clients, and the central test set where there is one."""
        return population(self.data, self.place.at("data"))

    def engine(self) -> Any:
        """The engine, or None for the fastest that the plan allows."""
        if self.run.engine == "auto":
            return None
        return parts.make(self.run.engine, parts.in_family("engines"), self.place.at("run").at("engine"))

    def store(self) -> Path | None:
        """The store's file, or None."""
        return None if self.run.store is False else self.place.path(self.run.store)

    def to_dict(self) -> dict[str, Any]:
        """The tables as plain data, overrides applied; the defaults of ``[run]`` and ``[data]`` filled in."""
        whole = {f.name: getattr(self.tables, f.name) for f in fields(self.tables)}
        whole |= {name: vars(getattr(self, name)) for name in ("run", "data")}
        return {name: table for name, table in whole.items() if table is not None and table != []}

    def to_toml(self) -> str:
        """The same as text, which :func:`load` reads again."""
        return toml.dumps(self.to_dict())


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a file, changed by overrides such as ``"algorithm.lr=0.05"``.

    Raises ConfigError, with file, table and key, and the nearest right one, where it is not what it should be.
    """
    path = Path(path)
    return of_tables(toml.read(path), overrides, Place(path.name, path.absolute().parent))


def of_tables(tables: dict[str, Any], overrides: Iterable[str] = (), place: Place | None = None) -> Config:
    """The configuration that these tables are; relative paths start from ``place``, or the current directory."""
    place = place or Place("the configuration", Path.cwd())
    whole = Tables(**parts.arguments(Tables, toml.override(tables, overrides), place, "a configuration"))
    run = parts.of_class(RunTable, whole.run, place.at("run"))
    data = parts.of_class(DataTable, whole.data, place.at("data"))
    return Config(whole, run, data, place)
