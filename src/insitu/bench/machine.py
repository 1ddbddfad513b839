"""What machine this is, and its rates: matrix products on one thread, and memory beyond the caches."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from insitu.version import __version__

MANY = 16
"""Products that a batched call does at once: as many as a small model has lanes."""


def describe() -> dict[str, Any]:
    """The processor, its cores, memory, system and versions, as plain data."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "insitu": __version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def sentence(machine: dict[str, Any]) -> str:
    """The description in one line."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']},"
        f" Python {machine['python']}, torch {machine['torch']}, insitu {machine['insitu']},"
        f" OMP_NUM_THREADS={machine['omp_num_threads']}, load {machine['load']} at the start"
    )


@cache
def product_seconds(m: int, k: int, n: int) -> float:
    """Seconds of one product [m, k] @ [k, n] of float32 on one thread: alone or as one of many, whichever is less."""
    a, b = torch.randn(MANY, m, k), torch.randn(MANY, k, n)
    out = torch.empty(MANY, m, n)
    # Where one call for many would not fit the caches it is of no use; the products then follow each other.
    alone = _least(lambda: torch.mm(a[0], b[0], out=out[0]))
    if 4 * MANY * (m * k + k * n + m * n) > 2**27:
        return alone
    return min(alone, _least(lambda: torch.bmm(a, b, out=out)) / MANY)


@cache
def bytes_per_second() -> float:
    """Bytes read and written per second by a triad a = b + s·c over arrays of 256 MB, on one thread."""
    b, c, a = torch.ones(3, 2**25).unbind()
    return 3 * 4 * 2**25 / _least(lambda: torch.add(b, c, alpha=0.5, out=a))


def _least(call: Callable[[], Any], budget: float = 0.15) -> float:
    """Seconds of one call: the least of several measurements, on one thread and by its CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
        began = time.perf_counter()
        call()
        repeats = max(1, int(budget / 5 / max(time.perf_counter() - began, 1e-7)))
        seconds = []
        for _ in range(5):
            began = time.thread_time()
            for _ in range(repeats):
                call()
            seconds.append((time.thread_time() - began) / repeats)
        return min(seconds)
    finally:
        torch.set_num_threads(threads)


def _first(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
