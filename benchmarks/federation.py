"""A coordinator under load: its memory, CPU, latency and bytes, over TLS with client certificates on loopback.

    python benchmarks/federation.py [sites] [load] [latency] [large] [bytes] [--sites 1000] [--json FILE]

sites    1,000 sites by long poll, a small model: the coordinator's memory and how long a round takes; CPU while nothing
         happens; then the coordinator is killed and started again, and all come back at once
load     16 sites, each with an update of 100 MB: the coordinator's CPU per GB, and its memory above the model
latency  an empty round over 4 sites, and CPU while nothing happens
large    a round of a 100 MB model over 2 sites
bytes    a round of a 100 MB model over 4 sites: bytes on the loopback interface over those of the tensors; and what a
         second run of the same model downloads at the start

The coordinator is the real process, started by its command. Sites are the real agent, many of them in one process
(there are two processes of them at most): what they take is not counted. Figures are those of the coordinator's
process and its workers (``--workers N``, of `load` and `large`), from /proc; ``--sites`` and the sizes can be made
smaller, ``--postgres URL`` takes a database in place of SQLite (its tables are used). Everything ends by itself, and
nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from insitu.bench import machine
from insitu.core.federation import Member
from insitu.core.types import Client
from insitu.core.types import Data as Examples
from insitu.engines.https.authority import Authority, certificates, files, keys, new_key, request_for
from insitu.engines.https.site.agent import Agent, Data
from insitu.engines.https.site.disk import Folder as Disk
from insitu.engines.https.site.rules import Rules
from insitu.engines.https.transport import HttpsTransport
from insitu.federation import building, founding
from insitu.federation.folder import Folder
from insitu.federation.keeping import ledger_of
from insitu.federation.operator import Operator
from insitu.record import versions

GOALS = {
    "memory of 1,000 sites, MiB": 400.0, "recovery, s": 15.0, "idle, share of a core": 0.01, "CPU s per GB": 3.0,
    "memory above the model, MB": 200.0, "empty round, ms": 150.0, "100 MB round, s": 4.0, "bytes over tensors": 1.02,
}  # fmt: skip
PATIENCE = 300.0
"""Seconds that anything is waited for."""
SETTLED = 10.0
"""Seconds after which all that came with the sites' arrival is done."""


# ------------------------------------------------------------ a federation


class Study:
    """A federation with members but without data: a folder, and the process of its coordinator."""

    def __init__(self, folder: Path, sites: int, postgres: str = "", workers: int = 0) -> None:
        self.folder, self.sites = Folder(folder), [f"site-{i:04d}" for i in range(sites)]
        self.port, self.plain = free_port(), free_port()
        founding.found(folder, ["localhost"], self.port)
        settings = folder / "federation.toml"
        text = settings.read_text(encoding="utf-8")
        text = text.replace('listen = ""', f'listen = "127.0.0.1:{self.plain}"')
        text = text.replace("sites = 1", f"sites = {sites}")
        if workers:
            text = f"workers = {workers}\n{text}"
        if postgres:
            text = text.replace('url = "federation.db"', f'url = "{postgres}"')
        # All sites have one address here, and each has its own elsewhere.
        text += f'\n[log]\nlevel = "warning"\nfile = "log.jsonl"\n\n[limits]\nstrangers = {max(256, 2 * sites)}\n'
        settings.write_text(text, encoding="utf-8")
        self._enrol()
        self.workers = workers
        self.process: subprocess.Popen[bytes] | None = None

    def _enrol(self) -> None:
        """As an invitation would, without the thousand requests."""
        authority = Authority.load(self.folder.authority)
        ledger = ledger_of(self.folder, self.folder.settings())
        try:
            for name in self.sites:
                own, key = self.of(name), new_key()
                own.mkdir()
                made = authority.sign(request_for(key, name), name, "site")
                files.write(own / "key.pem", keys.private_text(key), mode=0o600)
                files.write(own / "certificate.pem", certificates.pem(made))
                files.write(own / "authority.pem", authority.bundle_text().encode())
                ledger.add_member(Member(name, "site", certificates.serial_text(made), time.time()))
            founding.enrol_founder(ledger, self.folder, time.time())
        finally:
            ledger.close()

    def of(self, name: str) -> Path:
        """A site's own folder."""
        return self.folder.path / name

    def start(self) -> None:
        """Starts the coordinator, and waits until it leads."""
        command = [sys.executable, "-m", "insitu", "coordinator", str(self.folder.path)]
        self.process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        wait_for(lambda: answers(self.plain), "the coordinator")
        if self.workers:
            wait_for(lambda: f"\ninsitu_workers {self.workers}\n" in told(self.plain, "metrics"), "the workers")

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """In good order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()

    def pids(self) -> list[int]:
        """The coordinator's process, and those that it has started."""
        assert self.process is not None
        of = {pid: int(fields[1]) for pid, fields in every_process()}
        return [self.process.pid, *(pid for pid, parent in of.items() if parent == self.process.pid)]

    def cpu(self) -> float:
        """CPU seconds of all of these so far, and of those that have ended."""
        own, found = self.pids(), 0
        for pid, fields in every_process():
            if pid in own:
                found += sum(map(int, fields[11:13]))
            if pid == own[0]:
                found += sum(map(int, fields[13:15]))
        return found / os.sysconf("SC_CLK_TCK")

    def memory(self, what: str = "VmRSS") -> float:
        """Bytes of all of these now, or (``VmHWM``) at most; what they share counts for each."""
        found = 0.0
        for pid in self.pids():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found += next(float(line.split()[1]) * 1024 for line in lines if line.startswith(what))
        return found

    def forget_peak(self) -> None:
        """The most memory is counted anew from now on."""
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def connected(self) -> int:
        """Sites that the coordinator has heard of lately."""
        with Operator(self.folder.path) as operator:
            return sum(bool(one["connected"]) for one in operator.get("/v1/sites")["sites"] if one["role"] == "site")

    def run(self, tables: dict[str, Any]) -> list[dict[str, Any]]:
        """A run to its end, and its events."""
        with Operator(self.folder.path) as operator:
            run = operator.submit(tables, "")
            until, last = time.monotonic() + PATIENCE, 0
            found: list[dict[str, Any]] = []
            while (told := operator.run(run))["status"] not in ("finished", "failed", "stopped"):
                if time.monotonic() > until:
                    raise SystemExit(f"{run} is {told['status']} for too long: {told['next']} ({told['reason']})")
                more, last = operator.events(run, last, 1.0)  # as `insitu watch` does: asking costs the coordinator CPU
                found += more
            if told["status"] != "finished":
                raise SystemExit(f"{run} {told['status']}: {told['reason']}")
            return found + operator.events(run, last, 0.0)[0]


@contextmanager
def study(
    sites: int, features: int, outputs: int, postgres: str, processes: int = 1, workers: int = 0
) -> Iterator[Study]:
    """A federation whose coordinator runs and whose sites are all connected."""
    with tempfile.TemporaryDirectory(prefix="federation-") as folder:
        made = Study(Path(folder) / "study", sites, postgres, workers)
        agents: list[subprocess.Popen[bytes]] = []
        try:
            made.start()
            size = -(-sites // processes)
            for i in range(0, sites, size):
                words = [made.folder.path, made.port, i, min(size, sites - i), features, outputs]
                command = [sys.executable, __file__, "--agents", *map(str, words)]
                agents.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))
            wait_for(lambda: made.connected() == sites, f"{sites} sites")
            yield made
        finally:
            for process in agents:
                process.kill()
                process.wait()
            made.stop()
            if made.process is not None and made.process.returncode:
                log = made.folder.path / "log.jsonl"
                print(log.read_text(encoding="utf-8")[-2000:] if log.exists() else "no log", file=sys.stderr)


def tables(rounds: int, outputs: int, steps: int = 1, lr: float = 1e-6) -> dict[str, Any]:
    """A plan: linear regression with ``outputs`` targets, a step at each site. Another rate makes other updates."""
    return {
        "run": {"rounds": rounds, "evaluate_every": 0},
        "learner": {"name": "linear", "outputs": outputs, "dtype": "float32"},
        "algorithm": {"name": "fedavg", "lr": lr, "steps": steps, "batch_size": 1},
    }


# ------------------------------------------------------------ sites


async def agents(folder: Path, port: int, first: int, count: int, features: int, outputs: int) -> None:
    """So many sites, until they are told to end."""
    plans: dict[str, Any] = {}
    few = asyncio.Semaphore(2)  # of two cores

    async def compute(function: Callable[[], Any]) -> Any:
        async with few:
            return await asyncio.to_thread(function)

    def build(told: Any) -> Any:
        key = json.dumps(told, sort_keys=True)
        if key not in plans:
            plans[key] = building.build(told, folder, Rules(least_cohort=1))
        return plans[key]

    def one(i: int) -> Agent:
        name = f"site-{i:04d}"
        own, random = folder / name, np.random.default_rng(i)
        x, y = random.normal(size=(2, features)).astype(np.float32), random.normal(size=(2, outputs)).astype(np.float32)
        client = Client(name, Examples(x, y))
        declared = {"examples": 2, "holdout": 0, "features": [features], "classes": None}
        transport = HttpsTransport(
            [f"https://localhost:{port}"], own / "certificate.pem", own / "key.pem", own / "authority.pem"
        )
        data = Data(lambda: client, declared)
        return Agent(
            transport, data, build, Rules(least_cohort=1), Disk(own / "state"), compute=compute,
            random=Random(i), say=lambda text: None, note=lambda what, data: None, versions=versions(),
        )  # fmt: skip

    await asyncio.gather(*(one(i).run() for i in range(first, first + count)))


# ------------------------------------------------------------ what is measured


def sites(given: argparse.Namespace) -> dict[str, float]:
    n, rounds = given.sites, 3
    with study(n, 10, 1, given.postgres, processes=2) as made:
        found = {"memory with all connected, MiB": made.memory() / 2**20}
        time.sleep(SETTLED)
        used, began, before = made.cpu(), time.perf_counter(), loopback()
        time.sleep(given.idle)
        passed = time.perf_counter() - began
        found["idle, share of a core"] = (made.cpu() - used) / passed
        found["idle, bytes a second and site, both ways"] = (loopback() - before) / passed / n
        used, before = made.cpu(), loopback()
        times = seconds(made.run(tables(rounds, 1)))
        found["a round, s"] = statistics.median(times)
        found["CPU ms of a round and site"] = 1000 * (made.cpu() - used) / rounds / n
        found["bytes of a round and site, both ways"] = (loopback() - before) / rounds / n
        found["memory, most, MiB"] = made.memory("VmHWM") / 2**20
        made.kill()
        made.start()
        used, began = made.cpu(), time.perf_counter()
        wait_for(lambda: made.connected() == n, f"{n} sites again")
        found["recovery, s"] = time.perf_counter() - began
        found["recovery, CPU s of the coordinator"] = made.cpu() - used
        return found


def load(given: argparse.Namespace) -> dict[str, float]:
    n, side = given.uploads, given.side
    size = 4 * side * side
    with study(n, side, side, given.postgres, processes=2, workers=given.workers) as made:
        before = made.memory()
        made.run(tables(1, side))
        made.forget_peak()
        used = made.cpu()
        made.run(tables(1, side, lr=2e-6))  # the model is there already: nothing but uploads, and those are new
        up = made.cpu() - used
        used = made.cpu()
        events = made.run(tables(2, side, lr=3e-6))  # its second model is downloaded by all
        both = made.cpu() - used - up
        return {
            "update, MB": size / 1e6,
            "sites": n,
            "a round, s": seconds(events)[-1],
            "CPU s per GB of updates": up / (n * size / 1e9),
            "CPU s per GB, downloads and updates": both / (2 * n * size / 1e9),
            "memory without a model, MB": before / 1e6,
            "memory, most, above the model, MB": made.memory("VmHWM") / 1e6 - size / 1e6,
        }


def latency(given: argparse.Namespace) -> dict[str, float]:
    with study(4, 1, 1, given.postgres) as made:
        idle, began = made.cpu(), time.perf_counter()
        time.sleep(given.idle)
        idle = (made.cpu() - idle) / (time.perf_counter() - began)
        times = sorted(seconds(made.run(tables(30, 1)))[5:])
        return {
            "empty round, ms": 1000 * statistics.median(times), "slowest of 25, ms": 1000 * times[-1],
            "idle with 4 sites, share of a core": idle,
        }  # fmt: skip


def large(given: argparse.Namespace) -> dict[str, float]:
    with study(2, given.side, given.side, given.postgres, workers=given.workers) as made:
        times = seconds(made.run(tables(5, given.side)))
        return {
            "model, MB": 4 * given.side**2 / 1e6,
            "100 MB round, s": statistics.median(times[1:]),
            "first, s": times[0],
        }


def moved(given: argparse.Namespace) -> dict[str, float]:
    with study(4, given.side, given.side, given.postgres) as made:
        rounds, tensors = 3, 4 * 2 * 4 * given.side**2
        made.run(tables(1, given.side))
        before = loopback()
        # Another rate, so that updates are new: its first model is there, but for the chunk with the rate.
        made.run(tables(rounds, given.side, lr=2e-6))
        whole = loopback() - before
        before = loopback()
        made.run(tables(1, given.side, lr=3e-6))
        again = loopback() - before
        return {
            "bytes over tensors": whole / (tensors * rounds - tensors / 2),
            "a first round whose model is there, bytes over the updates": again / (tensors / 2),
        }


WHAT = {"sites": sites, "load": load, "latency": latency, "large": large, "bytes": moved}


# ------------------------------------------------------------ small things


def seconds(events: list[dict[str, Any]]) -> list[float]:
    """How long each committed round took, by the coordinator's clock."""
    return [event["seconds"] for event in events if event["event"] == "RoundCommitted"]


def every_process() -> Iterator[tuple[int, list[str]]]:
    """Every process, with what /proc/PID/stat says of it after its name: state, parent, …"""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue


def loopback() -> int:
    """Bytes that came by the loopback interface so far, with the heads of TCP: whoever else uses it counts as well."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(port: int) -> bool:
    """Whether the coordinator on this plain port is ready."""
    from urllib.error import URLError

    try:
        told(port, "ready")
        return True
    except (URLError, OSError):
        return False


def told(port: int, what: str) -> str:
    """What the coordinator on this plain port answers. Raises URLError where it is not ready."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/v1/{what}", timeout=2) as reply:
        return str(reply.read(), "utf-8")


def wait_for(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not come within {PATIENCE:g} s")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WHAT)}; all where left out")
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--uploads", type=int, default=16, help="sites of `load`")
    parser.add_argument("--side", type=int, default=5000, help="the large model is a square of so many float32")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the coordinator in `load`, `large`")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds for which nothing happens")
    parser.add_argument("--postgres", default="", help="postgresql://… in place of SQLite")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--agents", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.agents:
        folder, *numbers = given.agents
        asyncio.run(agents(Path(folder), *map(int, numbers)))
        return
    if unknown := [name for name in given.what if name not in WHAT]:
        raise SystemExit(f"{unknown[0]!r} is none of {', '.join(WHAT)}")
    if shutil.disk_usage(tempfile.gettempdir()).free < 10e9:
        raise SystemExit(f"{tempfile.gettempdir()} has less than 10 GB free: set TMPDIR to a folder that has")
    found: dict[str, Any] = {}
    for name in given.what or WHAT:
        found[name] = WHAT[name](given)
        for key, value in found[name].items():
            print(f"{name:8} {key:60} {value:10.3f}", flush=True)
    if given.json:
        told = {"machine": machine.describe(), "goals": GOALS, "found": found}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
