"""``insitu run``: executes a configuration file."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from insitu.cli import screen, stores
from insitu.cli.guard import INTERRUPTED
from insitu.cli.launch.workers import end_with_the_launcher
from insitu.core import events
from insitu.core.errors import ResumeError

if TYPE_CHECKING:
    from insitu.config import Config
    from insitu.core.protocols import Observer, Ranks
    from insitu.profile import Profile
    from insitu.result import Result
    from insitu.store.sqlite import SqliteStore


def run(
    file: Annotated[Path, typer.Argument(help="The configuration file.")] = Path("insitu.toml"),
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key; may be given again.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, inline, vectorized, … (run.engine)")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all (run.rounds)")] = None,
    store: Annotated[Path | None, typer.Option(help="The store's file (run.store)")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run: its id, or `last`.")] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="RUN", help="Do a run in real time over again, to the bit: its id, or `last`.")
    ] = None,
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Client memories held in memory, as 512MB (run.memory_budget)")
    ] = None,
    events_file: Annotated[
        Path | None, typer.Option("--events", metavar="FILE", help="Append every event to a file, as JSON lines.")
    ] = None,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Say where the time went, and write a trace (runs/RUN.trace.json).")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where --profile writes the trace; implies --profile.")
    ] = None,
) -> None:
    """Run a configuration file. Ctrl-C stops after the present round; twice, at once."""
    from insitu.config import toml
    from insitu.observe.progress import Progress
    from insitu.profile import Profile
    from insitu.run import run as execute

    flags = {"engine": engine, "rounds": rounds, "store": None if store is None else str(store.absolute())}
    flags["memory_budget"] = memory_budget
    given = [*(changes or []), *(f"run.{key}={toml.value(said)}" for key, said in flags.items() if said is not None)]
    end_with_the_launcher()
    ranks = _ranks(file, given)
    if ranks and ranks.rank:
        _follow(ranks, file, given, resume or replay)
        return
    if resume and replay:
        raise ResumeError(f"--resume {resume} goes on with a replay by itself, if it is one: leave --replay out")
    config, given, whole_id = _config(file, given, resume or replay, "--resume" if resume else "--replay")
    if ranks and whole_id:
        ranks.first(given, "learning what a run was started with")
    built = config.build()
    profile = Profile() if profiled or trace else None
    with _opened(built.options["store"]) as opened, Progress() as progress, ExitStack() as watched:
        if profile is not None:
            watched.enter_context(profile)
        observers = [_keeper(config, given, opened), progress, *_logs(events_file)]
        result = execute(
            built.plan, built.clients, evaluate=built.evaluate, observers=observers,
            **{"replay" if replay else "resume": whole_id}, **{**built.options, "store": opened},
        )  # fmt: skip
    typer.echo(_summary(result, built.options["rounds"]))
    if profile is not None:
        _tell(profile, trace or (config.store() or Path("runs/none")).with_name(f"{result.id}.trace.json"))
    if result.status != "finished":
        raise typer.Exit(INTERRUPTED)


def _ranks(file: Path, given: list[str]) -> Ranks | None:
    """The processes that run this configuration together, joined; None where this is the only one."""
    from insitu.config import load

    engine = load(file, given).engine()
    return None if engine is None else engine.ranks()


def _follow(ranks: Ranks, file: Path, given: list[str], earlier: str | None) -> None:
    """The part of a rank other than 0: it has no store and says nothing, unless something goes wrong."""
    from insitu.config import load
    from insitu.run import run as execute

    if earlier is not None:
        given = ranks.first(None, "learning what a run was started with")
    built = load(file, given).build()
    options = {**built.options, "store": None}
    result = execute(built.plan, built.clients, evaluate=built.evaluate, observers=[], **options)
    if result.status != "finished":
        raise typer.Exit(INTERRUPTED)


def _config(file: Path, given: list[str], earlier: str | None, option: str) -> tuple[Config, list[str], str | None]:
    """The configuration with all changes; those that an ``earlier`` run was started with come before those given now.

    ``option`` is the one that named it.
    """
    from insitu.config import load

    config = load(file, given)
    if earlier is None:
        return config, given, None
    path = config.store()
    if path is None:
        raise ResumeError(f"{option} {earlier} needs the store that holds the run: give --store FILE, or run.store")
    with stores.existing(path) as opened:
        whole_id = stores.full_id(opened, earlier)
        given = [*opened.record(whole_id).get("changes", []), *given]
    return load(file, given), given, whole_id


def _opened(path: Path | None) -> AbstractContextManager[SqliteStore | None]:
    if path is None:
        return nullcontext()
    from insitu.store.sqlite import SqliteStore

    return SqliteStore(path)


def _keeper(config: Config, changes: list[str], store: SqliteStore | None) -> Observer:
    """Writes the configuration into the run's record: ``insitu show --toml`` prints it, and ``--resume`` needs it."""
    own = [change for change in changes if not change.startswith("run.store=")]

    def keep(event: events.Event) -> None:
        if isinstance(event, events.RunStarted) and store is not None:
            store.update(event.run, rounds=event.rounds, toml=config.to_toml(), changes=own)

    return keep


def _tell(profile: Profile, path: Path) -> None:
    """The table on stdout, the trace into its file."""
    typer.echo(f"\n{profile}")
    profile.write(path)
    typer.echo(f"wrote {path}, for https://ui.perfetto.dev or https://speedscope.app", err=True)


def _logs(path: Path | None) -> list[Observer]:
    if path is None:
        return []
    from insitu.observe.jsonl import JsonLines

    return [JsonLines(path)]


def _summary(result: Result, wanted: int) -> str:
    """``20260101-120000-ab12 finished: 50 of 50 rounds, loss 0.2341, accuracy 0.9361``: one line, for scripts."""
    last = result.history[-1] if len(result.history) else {}
    names = [name for name in last if name in ("loss", "accuracy")] or [
        name for name in last if name in ("clients_loss", "clients_accuracy", "train_loss", "train_accuracy")
    ]
    figures = "".join(f", {name} {screen.figure(last[name])}" for name in names)
    return f"{result.id} {result.status}: {result.rounds} of {wanted} rounds{figures}"
