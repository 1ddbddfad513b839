"""What the demonstration says and leaves: tables, a picture, a page."""

from __future__ import annotations

import os
import shlex
import sys
import time
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from insitu.core import events
from insitu.core.checks import count
from insitu.demo import parts
from insitu.demo.study import CLIENTS, COHORT, Digits, data_parallel, iris, network, study
from insitu.observe.table import Screen
from insitu.report import page

TITLE = "One model, trained on data that stays where it is"


def main(rounds: int | None = None, out: str | Path = "runs/demo", browser: bool = True) -> None:
    """Runs the demonstration.

    rounds   federated rounds; None: 60
    out      a folder for the picture and the page
    browser  open the page, where there is a browser and a display
    """
    began, screen, net = time.monotonic(), Screen(), network()
    rounds = 60 if rounds is None else count(rounds=rounds)
    screen.heading(f"insitu · {TITLE[0].lower()}{TITLE[1:]}")
    if net is None:
        screen.say("torch is not installed (pip install 'insitu[torch]'): the NumPy learner takes its place", "yellow")
    model = "a network of 64-64-10" if net else "logistic regression"
    screen.say(f"training {model} on {CLIENTS} clients, {COHORT} of them a round …")
    digits = study(net, rounds, lambda event: _progress(screen, event, rounds))
    screen.say("the same data in one place and each client alone: done")
    found = [parts.federated(digits), parts.distributed(data_parallel(net)), parts.neighbours(iris())]
    for number, part in enumerate(found, 1):
        screen.heading(f"{number} · {part.title}")
        screen.table(part.head, part.rows, part.strong)
        for sentence in part.meaning:
            screen.say(sentence)
    left = _files(Path(out), digits, found)
    screen.heading("To try next")
    for command, words in commands():
        screen.line(f"{command:<{max(len(c) for c, _ in commands())}}   {words}")
    screen.heading(f"{time.monotonic() - began:.0f} s; it left")
    for name, path in left.items():
        screen.line(f"{name:8s} {path}")
    if browser and may_open():
        webbrowser.open(left["page"].resolve().as_uri())


def commands() -> list[tuple[str, str]]:
    """Three commands to try next, as they can be typed here."""
    insitu = "insitu"
    if which(insitu) is None:
        beside = Path(sys.executable).with_name("insitu")
        # In an environment that is not active, such as make's.
        insitu = shlex.quote(os.path.relpath(beside)) if beside.exists() else "python -m insitu"
    return [
        (f"{insitu} new my-study", "a small project of your own"),
        (f"{insitu} run my-study/insitu.toml", "trains it; Ctrl-C stops after a round, --resume last goes on"),
        (f"{insitu} show --store my-study/runs/insitu.db", "what happened, round by round; --clients for each client"),
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


def _files(out: Path, digits: Digits, found: list[parts.Part]) -> dict[str, Path]:
    """The picture, where matplotlib is there, and the page."""
    files, shown = {}, ""
    if find_spec("matplotlib") is not None:
        from insitu.demo.picture import draw
        from insitu.report.figures import DARK

        files["picture"] = draw(digits, out / "demo.png")
        dark = draw(digits, out / "demo-dark.png", DARK)
        words = "Labels by client; accuracy of each client alone; accuracy of all together by round"
        shown = page.picture(files["picture"], words, dark)
        dark.unlink()  # it is in the page
    files["page"] = page.write(
        out / "demo.html",
        TITLE,
        f"What insitu demo computed on this machine, with {len(digits.parts)} clients and a test set of"
        f" {digits.test_size} images that nobody learnt from.",
        page.figures(
            [
                (f"{digits.alone.mean():.0%}", "right: a client alone, on average"),
                (f"{digits.federated:.1%}", "right: together, federated"),
                (f"{digits.central:.1%}", "right: all data in one place"),
                ("0", "examples left their client"),
            ],
            strong=1,
        ),
        shown,
        *(
            page.section(part.title, page.table(part.head, part.rows, part.strong), *map(page.text, part.meaning))
            for part in found
        ),
        page.section("To try next", page.commands(commands())),
    )
    return files


def _progress(screen: Screen, event: events.Event, rounds: int) -> None:
    if isinstance(event, events.RunStarted):
        screen.say(f"engine {event.engine}", "dim")
    elif isinstance(event, events.Evaluated) and event.round % max(1, rounds // 6) == 0:
        screen.say(f"round {event.round:3d}   accuracy {event.metrics['accuracy']:.3f}", "dim")
