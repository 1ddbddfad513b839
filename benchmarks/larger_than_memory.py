"""A data set larger than memory: its rate under a memory limit over that of the same data in memory.

    python benchmarks/larger_than_memory.py [--gib 4] [--limit-gib 2] [--rounds 6] [--folder DIR] [--json FILE]

Logistic regression (784 → 10, float32) on clients of 100 examples that follow each other, a tenth of all clients a
round, drawn uniformly, in lanes. Each way is a process of its own, and is timed from its second round to its last:

in memory  the array read into memory as a whole, no limit
mapped     the file, read by client (``Clients.from_npy``), in a control group whose memory, the page cache of the file
           included, is limited; before it starts, nothing of the file is in the cache

The limit is a child of this process's own memory control group (cgroup version 1, or 2 where its memory controller is
delegated); where that is not to be had, the script says so and stops. The file is removed at the end. Exit status 1
where the rate is below 0.7 of that in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, CLASSES, EACH = 784, 10, 100
ENOUGH = 0.7


def write(folder: Path, gib: float) -> None:
    """``x.npy`` [n, 784] and ``y.npy`` [n], on the disk and out of the page cache."""
    clients = int(gib * 2**30 / (4 * FEATURES * EACH))
    generator = np.random.default_rng(0)
    teacher = generator.standard_normal((FEATURES, CLASSES), dtype=np.float32)
    # One block of fresh numbers, shifted by client: making four GiB of them would take longer than all the rest.
    block = generator.standard_normal((EACH * 100, FEATURES), dtype=np.float32)
    shape = (clients * EACH, FEATURES)
    x = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    y = np.empty(clients * EACH, dtype=np.int64)
    for start in range(0, len(x), len(block)):
        some = block[: len(x) - start] + generator.standard_normal(FEATURES, dtype=np.float32) / 4
        x[start : start + len(some)] = some
        y[start : start + len(some)] = (some @ teacher).argmax(axis=1)
    x.flush()
    del x
    np.save(folder / "y.npy", y)
    with open(folder / "x.npy", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(folder: Path, how: str, rounds: int) -> dict[str, float]:
    """Client updates a second of one way, and the memory it took."""
    from torch import nn

    import insitu
    from insitu.algorithms.fedavg import FedAvg
    from insitu.bench.processes import pss_bytes
    from insitu.data import Clients
    from insitu.learners.torch import TorchLearner

    y = np.load(folder / "y.npy")
    x = np.load(folder / "x.npy", mmap_mode=None if how == "in memory" else "r")
    clients = Clients.from_arrays(x, y, np.split(np.arange(len(y)), len(y) // EACH))
    plan = insitu.Plan(FedAvg(lr=0.05, batch_size=10), TorchLearner(nn.Linear(FEATURES, CLASSES)),
                       cohort=insitu.Uniform(fraction=0.1))  # fmt: skip
    at: list[float] = []

    def note(event: Any) -> None:
        if type(event).__name__ == "RoundCommitted":
            at.append(time.perf_counter())
            assert event.failed == 0, "no client may fail here"

    result = insitu.run(plan, clients, rounds=rounds, engine="vectorized", store=None, observers=[note])
    updates = result.history[-1]["clients"] * (rounds - 1)
    return {"updates_per_s": updates / (at[-1] - at[0]), "pss_gib": pss_bytes(os.getpid()) / 2**30}


@contextmanager
def limited(size: int) -> Iterator[Path]:
    """A control group whose memory is limited. Exits with a message where none can be made."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()]
    own = {name: path for _, name, path in lines}
    if "memory" in own:
        group = Path("/sys/fs/cgroup/memory" + own["memory"], f"insitu-{os.getpid()}")
        limit = "memory.limit_in_bytes"
    else:
        group, limit = Path("/sys/fs/cgroup" + own.get("", "/"), f"insitu-{os.getpid()}"), "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(size))
    except OSError as error:
        sys.exit(f"no control group with a memory limit can be made ({error}): run this where one can, as root for one")
    try:
        yield group
    finally:
        group.rmdir()


def in_process(folder: Path, how: str, rounds: int, group: Path | None) -> dict[str, float]:
    """``train`` in a process of its own, in the control group from before its first allocation."""
    command = [sys.executable, __file__, "--child", how, "--rounds", str(rounds), "--folder", str(folder)]
    join = None if group is None else lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, preexec_fn=join)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--limit-gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="a folder on a disk, not in memory, with room for the data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["in memory", "mapped"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(train(given.folder, given.child, given.rounds)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the file and the group are removed
    with limited(int(given.limit_gib * 2**30)) as group, tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder, given.gib)
        found = {"mapped": in_process(folder, "mapped", given.rounds, group)}
        for peak in ("memory.max_usage_in_bytes", "memory.peak"):
            if (group / peak).exists():
                found["mapped"]["group_peak_gib"] = int((group / peak).read_text()) / 2**30
        found["in memory"] = in_process(folder, "in memory", given.rounds, None)
    ratio = found["mapped"]["updates_per_s"] / found["in memory"]["updates_per_s"]
    for how, figures in found.items():
        print(f"{how:10}", "  ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    print(f"rate under {given.limit_gib:g} GiB over that in memory: {ratio:.2f}")
    if given.json:
        given.json.write_text(json.dumps({"gib": given.gib, "limit_gib": given.limit_gib, **found, "ratio": ratio}))
    sys.exit(ratio < ENOUGH)


if __name__ == "__main__":
    main()
