"""A data set larger than memory: its rate under a memory limit over that of the same data in memory.

    python benchmarks/larger_than_memory.py [--gib 4] [--limit-gib 2] [--rounds 8] [--models lr,mlp]
        [--ways npy,parquet] [--engine vectorized] [--folder DIR] [--json FILE]

784 float32 features, clients of 100 examples that follow each other (307 KiB), a tenth of all clients a round, drawn
uniformly; one epoch of SGD in batches of 10. Nothing is lighter than the logistic regression (lr), so nothing asks more
of the disk; mlp is 784-200-200-10.

in memory  the array read into memory as a whole, no limit
npy        the file, read by client (as by ``Clients.from_npy``)
parquet    a table with a row group a client, a column of lists (``Clients.from_parquet``), uncompressed

Both files are read in a control group whose memory, the page cache of the file included, is limited; before it starts,
nothing of the file is in the cache. Each way is a process of its own. They do a round each in turn, the order changing
every round, and whoever is not asked waits, so that a busy machine slows all; the first round is not counted.

wall   the in-memory round's seconds over this way's: the rate, median of the pairs; CPU likewise, all processes
disk   the rate at which this disk was measured to give a client's bytes at random, four reads at a time, past the
       cache; where what a round reads takes it longer than training, it is the floor: "of_floor" says how near

The limit is a child of this process's own memory control group (cgroup version 1, or 2 where its memory controller is
delegated); where that is not to be had, the script says so and stops. The files are removed at the end. Exit status 1
where a rate is below 0.7 of that in memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, CLASSES, EACH = 784, 10, 100
ENOUGH = 0.7
AT_ONCE = 4
"""Reads that the disk is given at a time."""


def write(folder: Path, gib: float, ways: list[str]) -> None:
    """``x.npy`` [n, 784], ``y.npy`` [n] and, where wanted, ``all.parquet``: on the disk and out of the page cache."""
    clients = int(gib * 2**30 / (4 * FEATURES * EACH))
    generator = np.random.default_rng(0)
    teacher = generator.standard_normal((FEATURES, CLASSES), dtype=np.float32)
    # One block of fresh numbers, shifted by client: making four GiB of them would take longer than all the rest.
    block = generator.standard_normal((EACH * 100, FEATURES), dtype=np.float32)
    shape = (clients * EACH, FEATURES)
    x = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    y = np.empty(clients * EACH, dtype=np.int64)
    with ExitStack() as stack:
        table = stack.enter_context(Table(folder / "all.parquet")) if "parquet" in ways else None
        for start in range(0, len(x), len(block)):
            some = block[: len(x) - start] + generator.standard_normal(FEATURES, dtype=np.float32) / 4
            x[start : start + len(some)] = some
            y[start : start + len(some)] = (some @ teacher).argmax(axis=1)
            if table:
                table.add(start, some, y[start : start + len(some)])
    x.flush()
    del x
    np.save(folder / "y.npy", y)
    for file in folder.iterdir():
        forget(file)


class Table:
    """A Parquet file with the columns client, y and x, a row group a client."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        lists = pa.list_(pa.float32(), FEATURES)
        self._schema = pa.schema([("client", pa.int32()), ("y", pa.int64()), ("x", lists)])
        self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=False, compression="none")

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, start: int, x: np.ndarray, y: np.ndarray) -> None:
        """Rows from ``start`` on."""
        pa, keys = self._pa, (start + np.arange(len(y))) // EACH
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), FEATURES)
        rows = pa.table([pa.array(keys, pa.int32()), pa.array(y), lists], schema=self._schema)
        self._writer.write_table(rows, row_group_size=EACH)


def forget(path: Path) -> None:
    """Writes the file to the disk and out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk(path: Path, reads: int = 1500) -> dict[str, float]:
    """MiB a second that the disk gives of a file past the page cache: a client's bytes at random, and in sequence."""
    each = -(-4 * FEATURES * EACH // 4096) * 4096
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    found = {}
    try:
        places = np.random.default_rng(1).permutation(os.path.getsize(path) // each)[:reads] * each
        for how, offsets in (("disk_random", places), ("disk_in_sequence", np.arange(len(places)) * each)):

            def read(some: Any) -> None:
                with mmap.mmap(-1, each) as into:
                    for offset in some:
                        os.preadv(file, [into], int(offset))

            began = time.perf_counter()
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(read, [offsets[k::AT_ONCE] for k in range(AT_ONCE)]))
            found[f"{how}_mib_s"] = len(offsets) * each / 2**20 / (time.perf_counter() - began)
    finally:
        os.close(file)
    return found


def train(folder: Path, way: str, model: str, engine: str, rounds: int) -> None:
    """One run, held after every round until the next is asked for; a line of JSON a round on stdout."""
    from torch import nn

    import insitu
    from insitu.algorithms.fedavg import FedAvg
    from insitu.bench.processes import cpu_seconds, pss_bytes
    from insitu.data import Clients
    from insitu.learners.torch import TorchLearner

    if way == "parquet":
        clients = Clients.from_parquet(folder / "all.parquet", by="client", label="y")
    else:
        y = np.load(folder / "y.npy")
        x = np.load(folder / "x.npy", mmap_mode=None if way == "memory" else "r")
        clients = Clients.from_arrays(x, y, np.split(np.arange(len(y)), len(y) // EACH))
        if way == "memory":
            forget(folder / "x.npy")  # else the others would find it in the cache, at nobody's expense
    layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, CLASSES)]
    net = nn.Linear(FEATURES, CLASSES) if model == "lr" else nn.Sequential(*layers)
    plan = insitu.Plan(FedAvg(lr=0.05, batch_size=10), TorchLearner(net), cohort=insitu.Uniform(fraction=0.1))

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), cpu_seconds(os.getpid())])

    began = now()

    def hold(event: Any) -> None:
        nonlocal began
        if type(event).__name__ == "RoundCommitted":
            assert event.failed == 0, "no client may fail here"
            seconds, cpu = (now() - began).tolist()
            told = {"seconds": seconds, "cpu": cpu, "pss_gib": pss_bytes(os.getpid()) / 2**30}
            print(json.dumps({**told, "clients": event.clients}), flush=True)
            sys.stdin.readline()
            began = now()

    insitu.run(plan, clients, rounds=rounds, engine=engine, store=None, observers=[hold])


class Child:
    """A way to train, in a process of its own, in the control group from before its first allocation."""

    def __init__(self, command: list[str], group: Path | None) -> None:
        join = None if group is None else lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=join
        )
        self.rows: list[dict[str, float]] = []
        self._read()

    def round(self) -> None:
        """The next round."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._read()

    def end(self) -> None:
        """Lets it go."""
        self._process.communicate()

    def kill(self) -> None:
        """Ends it in any case."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # what the run says of itself
            line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a child ended with code {self._process.wait()}")
        self.rows.append(json.loads(line))


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


def measured(given: argparse.Namespace, folder: Path, model: str, way: str, rate: float) -> dict[str, Any]:
    """One way beside the data in memory, a round each in turn."""
    with limited(int(given.limit_gib * 2**30)) as group, ExitStack() as stack:
        children = {}
        for name, where in (("memory", None), (way, group)):
            command = [sys.executable, __file__, "--child", name, "--models", model, "--engine", given.engine]
            command += ["--rounds", str(given.rounds), "--folder", str(folder)]
            children[name] = Child(command, where)
            stack.callback(children[name].kill)
        for number in range(1, given.rounds):
            for child in list(children.values())[:: 1 if number % 2 else -1]:
                child.round()
        for child in children.values():
            child.end()
        peaks = [group / name for name in ("memory.max_usage_in_bytes", "memory.peak")]
        peak = next((int(path.read_text()) / 2**30 for path in peaks if path.exists()), float("nan"))
    inside, here = (child.rows[1:] for child in children.values())
    seconds = statistics.median(row["seconds"] for row in here)
    floor = here[0]["clients"] * 4 * FEATURES * EACH / 2**20 / rate
    best = max(floor, statistics.median(row["seconds"] for row in inside))
    return {
        "model": model,
        "way": way,
        "clients": here[0]["clients"],
        "memory_s": statistics.median(row["seconds"] for row in inside),
        "seconds": seconds,
        "wall": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(inside, here, strict=True)),
        "cpu": sum(row["cpu"] for row in inside) / sum(row["cpu"] for row in here),
        "disk_floor_s": floor,
        "of_floor": best / seconds,
        "pss_gib": max(row["pss_gib"] for row in here),
        "group_peak_gib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--limit-gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--models", default="lr,mlp")
    parser.add_argument("--ways", default="npy,parquet")
    parser.add_argument("--engine", default="vectorized")
    parser.add_argument("--folder", type=Path, help="a folder on a disk, not in memory, with room for the data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["memory", "npy", "parquet"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train(given.folder, given.child, given.models, given.engine, given.rounds)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the files and the group are removed
    ways, found = given.ways.split(","), []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write(folder, given.gib, ways)
        rates = disk(folder / "x.npy")
        print(f"{given.gib:g} GiB under {given.limit_gib:g} GiB, engine {given.engine};", end=" ")
        print(", ".join(f"{key.removesuffix('_mib_s')} {rate:.0f} MiB/s" for key, rate in rates.items()), flush=True)
        for model in given.models.split(","):
            for way in ways:
                for file in folder.iterdir():
                    forget(file)
                found.append(measured(given, folder, model, way, rates["disk_random_mib_s"]))
                print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found[-1].items()))
                sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps({**vars(given), **rates, "found": found}, default=str, indent=1))
    sys.exit(any(figures["wall"] < ENOUGH for figures in found))


if __name__ == "__main__":
    main()
