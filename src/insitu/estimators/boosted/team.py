"""The worker processes of one fit, as the parent sees them: started, watched, buried.

The parent never joins the collective: XGBoost ends a process whose peers have failed, and that must not be the user's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import EngineError

# With -P and the parent's own path: what is importable there is importable in the worker, and nothing else is. The file
# is run by its place, so that not all of this room is imported; nor is scikit-learn, which xgboost would import: that
# takes six times as long as all the rest, and is not used there.
_START = (
    "import runpy, sys; file, folder, rank, *sys.path = sys.argv[1:]; sys.modules['sklearn'] = None;"
    " runpy.run_path(file)['main'](folder, int(rank))"
)
_WORKER = Path(__file__).with_name("worker.py")
LOOK_UP = 0.02
"""Seconds between looks at the workers."""
LAST = 1500
"""Characters of a worker's output that an error shows."""
SECOND_LOOK = 0.5
"""Seconds after the first death in which others may turn out to have died before it: the cause is the signalled one."""


def train(parts: Sequence[tuple[np.ndarray, np.ndarray]], params: dict[str, Any], trees: int, timeout: float) -> bytes:
    """The model as XGBoost's bytes, trained by one worker a part (x [n, F], y [n]).

    Raises EngineError, naming the worker, where one dies or none has finished a tree for ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="insitu-trees-") as name:
        folder = Path(name)
        job = {"params": params, "trees": trees, "world": len(parts), "timeout": timeout}
        (folder / "job.json").write_text(json.dumps(job, default=_plain))
        for rank, (x, y) in enumerate(parts):
            np.save(folder / f"x{rank}.npy", x)
            np.save(folder / f"y{rank}.npy", y)
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(len(parts)):
                workers.append(_started(folder, rank))
            _watch(workers, folder, timeout)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.wait()
        return (folder / "model").read_bytes()


def _started(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", _START, str(_WORKER), str(folder), str(rank), *sys.path]
    # Threads are those of n_jobs, whatever the environment says.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with (folder / f"log{rank}").open("wb") as log:
        try:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise EngineError(f"worker {rank} cannot be started ({error}): give fewer workers") from error


def _watch(workers: Sequence[subprocess.Popen[bytes]], folder: Path, timeout: float) -> None:
    """Returns when all workers have ended well."""
    seen: tuple[int, ...] = ()
    since = time.monotonic()
    while True:
        codes = [worker.poll() for worker in workers]
        if all(code == 0 for code in codes):
            return
        if any(codes):
            raise EngineError(_death(workers, folder))
        grown = [_trees(folder, rank) for rank in range(len(workers))]
        now = (*grown, len([*folder.glob("ready*"), *folder.glob("met*")]))
        if now != seen:
            seen, since = now, time.monotonic()
        if time.monotonic() - since > timeout:
            raise EngineError(_silence(workers, grown, timeout))
        time.sleep(LOOK_UP)


def _death(workers: Sequence[subprocess.Popen[bytes]], folder: Path) -> str:
    """Who died, of what.

    Others end soon after, and may be seen first: the cause is one that was killed, or the first to say why.
    """
    until = time.monotonic() + SECOND_LOOK
    while time.monotonic() < until and not any((worker.poll() or 0) < 0 for worker in workers):
        time.sleep(LOOK_UP)
    dead = {rank: code for rank, worker in enumerate(workers) if (code := worker.poll())}
    said = {rank: file for rank in dead if (file := folder / f"said{rank}").exists()}
    rank = min(dead, key=lambda r: (dead[r] > 0, said[r].stat().st_mtime_ns if r in said else math.inf, r))
    if dead[rank] < 0:
        how = f"was killed by {signal.Signals(-dead[rank]).name}"
        by_system = dead[rank] == -signal.SIGKILL
        cure = ": if it was the system, for want of memory, use fewer workers or rows" if by_system else ""
    else:
        how, cure = f"ended with status {dead[rank]}", ""
    text = said.get(rank, folder / f"log{rank}").read_text(errors="replace").strip()[-LAST:]
    tail = f"\n{text}" if text else ""
    grown = _trees(folder, rank)
    return f"worker {rank} of {len(workers)} {how} after {grown} trees, so there is no model{cure}{tail}"


def _silence(workers: Sequence[subprocess.Popen[bytes]], grown: Sequence[int], timeout: float) -> str:
    stopped = [rank for rank, worker in enumerate(workers) if _is_stopped(worker.pid)]
    who = f"worker {', '.join(map(str, stopped))} is stopped" if stopped else "all of them are running"
    return (
        f"no worker finished a tree within timeout={timeout:g} s ({who}; trees by worker:"
        f" {', '.join(map(str, grown))}): give a longer timeout if trees take that long"
    )


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _trees(folder: Path, rank: int) -> int:
    """Trees that a worker has finished: it writes a byte a tree."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / f"beat{rank}").stat().st_size
    return 0


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's; TypeError for what cannot be sent to a worker."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"params holds {value!r}, which cannot be sent to a worker: give numbers, text and lists")
