"""Four hospitals learn one model, each in a process of its own; and what each would have learnt alone, and all pooled.

    python examples/hospitals/run.py [--rounds 40] [--keep FOLDER]

Types, one after the other, what people at five places would type: whoever runs the federation founds it and invites
four hospitals; each of them makes a key, is enrolled and starts its process; a plan is submitted. All of it on this
machine, over HTTPS with client certificates, in a folder that is removed at the end (``--keep``: not). Then models are
compared on the patients that each hospital held out, which no model has seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import insitu
from insitu.core.types import Client
from insitu.data import Clients
from insitu.federation import site_settings, tables

HERE = Path(__file__).resolve().parent
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
INSITU = (sys.executable, "-m", "insitu")


def main() -> dict[str, list[float]]:
    """Prints and returns each model's accuracy at each hospital."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="a new folder, which stays")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="hospitals-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        together = federated(folder, given.rounds)
    finally:
        if given.keep is None:
            shutil.rmtree(folder)
    clients = {name: patients(name) for name in HOSPITALS}
    found = {"the federation": scores(together, clients), **compared(clients, given.rounds)}
    print(table(found))
    return found


# ------------------------------------------------------------ five places


def federated(folder: Path, rounds: int) -> dict[str, np.ndarray]:
    """The model of a federation of five processes."""
    study, port = folder / "study", str(free_port())
    insitu_("federation", "init", study, "--host", "localhost", "--port", port)
    with started("coordinator", study):
        until_it_answers(study)
        sites = []
        try:
            for name in HOSPITALS:
                token = insitu_("federation", "invite", name, "--federation", study).strip()
                site = folder / name
                config = HERE / name / "site.toml"
                insitu_("site", "join", f"https://localhost:{port}", "--token", token, "--data", config, site)
                sites.append(start("site", "run", site))
            insitu_("submit", HERE / "plan.toml", "--set", f"run.rounds={rounds}", "--federation", study, "--watch")
            insitu_("model", "--to", folder / "model.npz", "--federation", study)
        finally:
            for process in sites:
                end(process)
    with np.load(folder / "model.npz") as arrays:
        return {name.removeprefix("shared/"): arrays[name] for name in arrays.files}


def insitu_(*words: str | Path) -> str:
    """A command to its end. What it prints is shown, and returned."""
    told = [str(word) for word in words]
    print("$ insitu", *("…" if word.startswith("insitu1.") else word for word in told), flush=True)
    done = subprocess.run([*INSITU, *told], stdout=subprocess.PIPE, text=True)
    if "invite" not in told:  # a token is nobody else's business
        print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"that ended with {done.returncode}")
    return done.stdout


def until_it_answers(study: Path) -> None:
    """Waits for a coordinator that was just started."""
    for _ in range(60):
        asked = subprocess.run([*INSITU, "status", "--federation", str(study)], capture_output=True)
        if asked.returncode == 0:
            return
        time.sleep(0.5)
    raise SystemExit(f"the coordinator does not answer: {asked.stderr.decode()}")


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    """A command that goes on."""
    print("$ insitu", *map(str, words), "&", flush=True)
    return subprocess.Popen(
        [*INSITU, *map(str, words)], stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Tells it to end, and waits until it has."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def started(*words: str | Path) -> Iterator[None]:
    """A command that goes on meanwhile."""
    process = start(*words)
    try:
        yield
    finally:
        end(process)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ------------------------------------------------------------ alone, and pooled


def patients(hospital: str) -> Client:
    """A hospital's patients as its site has them: to learn from, and held out."""
    return site_settings.load(HERE / hospital / "site.toml").population().at(0)


def named(clients: dict[str, Client]) -> Clients:
    """The hospitals as clients of one process: for a simulation of the federation."""
    schema = site_settings.load(HERE / HOSPITALS[0] / "site.toml").population().schema()
    made = [Client(name, client.data, client.holdout) for name, client in clients.items()]
    return Clients.lazy(list(clients), lambda name: next(c for c in made if c.id == name), holdout=0.0, schema=schema)


def compared(clients: dict[str, Client], rounds: int) -> dict[str, list[float]]:
    """What cannot be had without moving patients (all pooled), and what can (each alone), by the same plan."""
    found = {"all pooled": scores(learnt(list(clients.values()), rounds), clients)}
    for name, client in clients.items():
        found[f"{name} alone"] = scores(learnt([client], rounds), clients)
    return found


def learnt(whose: list[Client], rounds: int) -> dict[str, np.ndarray]:
    """The plan's model of these hospitals' patients in one place."""
    plan = tables.submitted(tables.read(HERE / "plan.toml")[0], "pooled", HERE).plan()
    x, y = (np.concatenate([getattr(client.data, part) for client in whose]) for part in "xy")
    schema = site_settings.load(HERE / HOSPITALS[0] / "site.toml").population().schema()
    pool = Clients.from_arrays(x, y, [np.arange(len(y))], schema=schema)
    result = insitu.run(plan, pool, rounds=rounds, evaluate_every=rounds, engine="inline", observers=())
    return dict(result.params)


def scores(params: dict[str, Any], clients: dict[str, Client]) -> list[float]:
    """The share of each hospital's held-out patients that are told rightly, and its mean over hospitals."""
    found = []
    for client in clients.values():
        held = client.holdout
        assert held is not None, "site.toml holds nothing out"
        guessed = (np.asarray(held.x) @ params["weight"].T + params["bias"]).argmax(axis=1)
        found.append(float(np.mean(guessed == held.y)))
    return [*found, float(np.mean(found))]


def table(found: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = [f"| model of | {' | '.join(HOSPITALS)} | mean |", "|---" * (len(HOSPITALS) + 2) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
