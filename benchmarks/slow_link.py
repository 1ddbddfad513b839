"""Two ranks with a slow link between them: two network namespaces, and the kernel's token bucket. Needs root and `ip`.

    sudo python benchmarks/slow_link.py ddp.toml diloco.toml eight_bit.toml [--rate 100mbit] [--json FILE]

Every configuration runs by itself, rank 0 in one namespace and rank 1 in the other, with ``engine="spmd"``; its own
rounds are taken. Printed for each: examples a second over all rounds but the first, their multiple of the first
configuration's, and the bytes that ranks sent. Without the right to make namespaces it says so and ends with status 77,
which test runners take for "skipped".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SKIPPED = 77
ADDRESSES = ("10.77.19.1", "10.77.19.2")
PORT = "29577"


def command(*words: str) -> None:
    """Runs it; what it says is shown where it fails."""
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextmanager
def link(rate: str) -> Iterator[list[str]]:
    """Two namespaces, by name, each with one end of a pair of virtual cables that lets so much through, both ways."""
    names = [f"insitu-{os.getpid()}-{side}" for side in "ab"]
    ends = [f"is{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        for name in names:
            command("ip", "netns", "add", name)
        command(
            "ip", "link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1]
        )
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            command("ip", "-n", name, "link", "set", end, "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
            inside = ("ip", "netns", "exec", name)
            command(
                *inside,
                "tc",
                "qdisc",
                "add",
                "dev",
                end,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "64kb",
                "latency",
                "50ms",
            )
        yield names
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError, FileNotFoundError):
                command("ip", "netns", "delete", name)


def run(file: Path, names: list[str], folder: Path) -> dict[str, Any]:
    """One configuration on both ranks, and what its events say."""
    log = folder / f"{file.stem}.jsonl"
    base = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank, name in enumerate(names):
        env = {**os.environ, **base, "RANK": str(rank)}
        env["GLOO_SOCKET_IFNAME"] = f"is{os.getpid() % 100000}{'ab'[rank]}"
        words = [sys.executable, "-m", "insitu", "run", str(file), "--engine", "spmd", "--set", "run.store=false"]
        words += ["--events", str(log)] if rank == 0 else []
        ranks.append(subprocess.Popen(["ip", "netns", "exec", name, *words], env=env, stdout=subprocess.DEVNULL))
    try:
        codes = [rank.wait(3600) for rank in ranks]
    finally:
        for one in ranks:
            one.kill()
    if any(codes):
        raise SystemExit(f"{file}: ranks ended with {codes}")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    later = [event for event in events if event["round"] > 1]
    examples = sum(row[1] for event in later if event["event"] == "UpdatesArrived" for row in event["rows"])
    seconds = sum(event["seconds"] for event in later if event["event"] == "RoundCommitted")
    sent = sum(sum(event["sent"]) for event in events if event["event"] == "WireBytes")
    return {"name": file.stem, "examples a second": examples / seconds, "bytes sent": sent, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rate", default="100mbit", help="as tc writes it")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        print("skipped: network namespaces need root, and ip and tc (Debian's iproute2)", file=sys.stderr)
        return SKIPPED
    found = []
    try:
        with link(given.rate) as names, tempfile.TemporaryDirectory() as folder:
            for file in given.files:
                found.append(run(file, names, Path(folder)))
                one = found[-1]
                times = one["examples a second"] / found[0]["examples a second"]
                print(
                    f"{one['name']:20} {one['examples a second']:10.1f} examples/s  {times:6.2f} x"
                    f"  {one['bytes sent'] / 2**20:10.2f} MiB sent"
                )
    except subprocess.CalledProcessError as error:
        print(f"skipped: {' '.join(error.cmd)}: {error.stderr.strip()}", file=sys.stderr)
        return SKIPPED
    if given.json:
        given.json.write_text(json.dumps({"rate": given.rate, "runs": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
