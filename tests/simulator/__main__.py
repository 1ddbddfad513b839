"""Simulations from the command line: ``python -m tests.simulator --seeds 100000 [--first N] [--jobs 2]``.

Prints the seeds in which something does not hold, and how to see one again: ``--seed N --trace``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sim.world import Result, simulate

AGAIN = "    python -m tests.simulator --seed {seed} --trace"


def main() -> int:
    """Returns how many seeds failed, 1 at most."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many to go through")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes beside each other")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="print every line of it")
    told = parser.parse_args()
    if told.seed is not None:
        return _one(told.seed, told.trace)
    began, failed, done, deaths = time.monotonic(), 0, 0, 0
    for result in _results(range(told.first, told.first + told.seeds), told.jobs):
        done, deaths = done + 1, deaths + result.deaths
        if result.trouble:
            failed += 1
            print(f"seed {result.seed}: {result.trouble}\n{AGAIN.format(seed=result.seed)}", flush=True)
        if done % 1000 == 0:
            print(f"{done} seeds, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{done} seeds, {deaths} deaths of processes, {failed} seeds failed, {time.monotonic() - began:.0f} s")
    return min(failed, 1)


def _one(seed: int, trace: bool) -> int:
    result = simulate(seed, show=trace)
    if result.trouble and not trace:
        print("\n".join(result.lines))
    print(f"seed {seed}: {result.trouble or 'all holds'}; {result.steps} callbacks, {result.deaths} deaths,")
    print(f"{result.seconds:.0f} virtual seconds, trace {result.trace[:16]}")
    return bool(result.trouble)


def _results(seeds: range, jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=8)


if __name__ == "__main__":
    raise SystemExit(main())
