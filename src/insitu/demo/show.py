"""What the demonstration says and leaves: a table, a picture, a page."""

from __future__ import annotations

import os
import sys
import time
import webbrowser
from importlib.util import find_spec
from pathlib import Path

from insitu.core import events
from insitu.core.checks import count
from insitu.demo.study import CLIENTS, Digits, Iris, Parallel, data_parallel, iris, network, study
from insitu.observe.table import Screen
from insitu.report import page

NEXT = (
    ("insitu new my-study", "a small project of your own"),
    ("cd my-study && insitu run", "trains it; Ctrl-C stops after a round, --resume goes on"),
    ("insitu partition --source digits --name dirichlet --clients 10", "who would have what"),
)
HEAD = ("digits, 10 classes", "test accuracy", "examples moved")


def main(rounds: int | None = None, out: str | Path = "runs/demo", browser: bool = True) -> None:
    """Runs the demonstration.

    rounds   federated rounds; None: 60
    out      a folder for the picture and the page
    browser  open the page, where there is a browser and a display
    """
    began, screen, net = time.monotonic(), Screen(), network()
    rounds = 60 if rounds is None else count(rounds=rounds)
    screen.heading("insitu: one model, trained on data that stays where it is")
    model = "a network of 64-64-10" if net else "logistic regression"
    if net is None:
        screen.say("torch is not installed (pip install 'insitu[torch]'): the NumPy learner takes its place")
    screen.say(f"{CLIENTS} clients share handwritten digits, unevenly; {model}; {rounds} rounds of 30 clients …")
    digits = study(net, rounds, lambda event: _progress(screen, event, rounds))
    parallel, flowers = data_parallel(net), iris()
    screen.table(HEAD, rows(digits), strong=2)
    for line in findings(digits, parallel, flowers):
        screen.say(f"· {line}")
    for name, path in _files(Path(out), digits, parallel, flowers).items():
        screen.say(f"{name}: {path}")
        if name == "page" and browser and may_open():
            webbrowser.open(path.resolve().as_uri())
    screen.heading("to try next")
    for command, words in NEXT:
        screen.say(f"  {command:64s} {words}")
    screen.say(f"\n{time.monotonic() - began:.0f} s")


def rows(found: Digits) -> list[list[str]]:
    """The table's rows: alone, the best alone, together, pooled."""
    everything = str(len(found.labels))
    return [
        ["each client alone, mean of 100", f"{found.alone.mean():.3f}", "0"],
        ["the best client alone", f"{found.alone.max():.3f}", "0"],
        ["together, federated", f"{found.federated:.3f}", "0"],
        ["all data in one place", f"{found.central:.3f}", everything],
    ]


def findings(digits: Digits, parallel: Parallel, flowers: Iris) -> list[str]:
    """What the figures mean, in sentences."""
    gap = digits.central - digits.federated
    return [
        f"a client alone has a few of the digits, and reads {digits.alone.mean():.0%} of the test set. Together they"
        f" read {digits.federated:.1%}, {abs(gap) * 100:.1f} points {'below' if gap >= 0 else 'above'} one model on"
        " all data in one place, which saw each example as often.",
        f"no example left its client: each sent {digits.bytes_up / 1000:.0f} kB a round, the change of"
        f" {digits.parameters} parameters.",
        f"the same data as distributed learning: {parallel.workers} workers, {parallel.steps} averaged gradient steps;"
        f" the parameters are those of one machine to {parallel.difference:.0e} (training loss {parallel.loss:.3f}).",
        f"iris, 3 nearest neighbours: of {flowers.rows} test rows, {flowers.distributed} predicted as by one machine"
        f" with the rows dealt to 4 workers, {flowers.federated} with one species a client (accuracy"
        f" {flowers.accuracy:.3f}).",
    ]


def may_open() -> bool:
    """Whether a browser may be opened: not where INSITU_NO_BROWSER or CI is set, nor without a display."""
    if os.environ.get("INSITU_NO_BROWSER") or os.environ.get("CI"):
        return False
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _files(out: Path, digits: Digits, parallel: Parallel, flowers: Iris) -> dict[str, Path]:
    """The picture, where matplotlib is there, and the page."""
    files, shown = {}, ""
    if find_spec("matplotlib") is not None:
        from insitu.demo.picture import draw

        files["picture"] = draw(digits, out / "demo.png")
        shown = page.picture(files["picture"], "labels by client; accuracy of clients alone; accuracy by round")
    files["page"] = page.write(
        out / "demo.html",
        "One model, trained on data that stays where it is",
        f"What insitu demo found on this machine: {CLIENTS} clients, {digits.test_size} test images.",
        shown,
        page.table(HEAD, rows(digits)),
        page.section("What this means", *(page.text(line) for line in findings(digits, parallel, flowers))),
        page.section("To try next", page.code([f"{command:64s} # {words}" for command, words in NEXT])),
    )
    return files


def _progress(screen: Screen, event: events.Event, rounds: int) -> None:
    if isinstance(event, events.RunStarted):
        screen.say(f"engine {event.engine}")
    elif isinstance(event, events.Evaluated) and event.round % max(1, rounds // 6) == 0:
        screen.say(f"  round {event.round:3d}  accuracy {event.metrics['accuracy']:.3f}")
