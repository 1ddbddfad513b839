"""How many lanes: a few steps are timed, and a round is worked out from them for each number of lanes.

c(n) is what one step of n clients side by side costs, in seconds. Small models pay per step, so the more lanes the
better; large ones pay per client, and the more lanes the less of them fits into the cache.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from insitu.core import remembered, tree
from insitu.core.protocols import Setting
from insitu.engines.vectorized.lanes import Lanes
from insitu.engines.vectorized.wave import STEPS, STRETCH, Wave
from insitu.rounds.blocks import cohort_size, packed

SHARE = 0.02
"""The share of a run that measuring may take."""
LONGEST = 5.0
"""Seconds that it may take at the most."""
MOST = 256
ABOUT = 1.04
"""How much slower a smaller number of lanes may be."""
ROOM = 2**29
"""Bytes of stacked models that are tried at the most."""


def round_steps(setting: Setting, example: int) -> list[list[int]]:
    """Steps of the first round's clients, block by block; ``example`` is taken for those whose size is not known."""
    plan, n = setting.plan, cohort_size(setting)
    work = plan.algorithm.work()
    places = np.arange(n) if plan.buffered else plan.cohort.sample(len(setting.clients), setting.seed, 1)
    sizes = [setting.clients.size_at(int(place)) for place in places]
    per_epoch = [example if s is None else -(-s // min(work.batch_size or s, s)) for s in sizes]
    steps = [work.steps if work.steps else count * (work.epochs or 1) for count in per_epoch]
    block = plan.block_size(n)
    return [steps[at : at + block] for at in range(0, len(steps), block)]


def predicted(costs: dict[int, float], blocks: Sequence[Sequence[int]], lanes: int) -> float:
    """Seconds of a round's steps with so many lanes, for clients who take these steps, given c(n)."""
    known = np.array(sorted(costs))
    cost = np.array([costs[n] for n in known])
    total = 0.0
    for clients in packed([list(block) for block in blocks], lanes):
        steps = np.sort(clients)[::-1]
        width = -(-len(steps) // -(-len(steps) // lanes))
        for first in range(0, len(steps), width):
            wave = steps[first : first + width]
            at_work = (wave[None, :] > np.arange(wave[0])[:, None]).sum(1)
            total += float(np.interp(at_work, known, cost).sum())
    return total


def measured(steps: Callable[[int], tuple[Callable[[], Any], int]], most: int, seconds: float) -> dict[int, float]:
    """c(n) for n = 1, 2, 4, …, as far as the time goes and as it still gets better."""
    costs: dict[int, float] = {}
    began, n = time.perf_counter(), 1
    while n <= most and (not costs or time.perf_counter() - began < seconds):
        take, count = steps(n)
        take()  # memory, kernels
        times = []
        for _ in range(3):
            t = time.perf_counter()
            take()
            times.append((time.perf_counter() - t) / count)
        costs[n] = min(times)
        each = [costs[m] / m for m in sorted(costs)]
        if len(each) > 2 and min(each[-2:]) > 1.1 * min(each):
            break
        n *= 2
    return costs


def settled(lanes: Lanes, wave: Wave, setting: Setting, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Lanes and compilation, remembered or measured; ``choices`` hold what is usual for runs too short to measure."""
    blocks = round_steps(setting, len(wave.jobs[0].batches))
    name = remembered.key(
        model=setting.plan.learner.config(), method=setting.plan.algorithm.config(), step=lanes.kind,
        batch=wave.size, examples=form_of(wave), device=_device_name(lanes.device), torch=torch.__version__,
        threads=torch.get_num_threads(), cohort=[len(block) for block in blocks],
        gathered=(STRETCH, STEPS),
    )  # fmt: skip
    known = remembered.recall(name) or {}
    if not isinstance(known.get("lanes"), int) and (found := _chosen_lanes(lanes, wave, setting, blocks)):
        known |= found
        remembered.remember(name, known)
    count = int(known.get("lanes") or choices["lanes"])
    compiled = lanes.kind == "mapped" and _worth_compiling(lanes, wave, setting, blocks, count, known)
    if compiled and "compiled" not in known:
        known |= _compiled(lanes, wave, count)
        remembered.remember(name, known)
        compiled = known["compiled"] < known["costs"][str(count)]
    lanes.compiled = count if compiled else None
    setting.notify(f"{count} lanes, {lanes.kind} steps{', compiled' if compiled else ''}")
    return {"lanes": count, "compile": compiled}


def _chosen_lanes(lanes: Lanes, wave: Wave, setting: Setting, blocks: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """The best number of lanes and c(n); None where a run is too short to measure."""
    model = sum(x.numel() * x.element_size() for x in tree.values(wave.jobs[0].carry))
    largest = max(1, min(MOST, ROOM // max(model, 1), sum(len(block) for block in blocks)))

    def steps(n: int) -> tuple[Callable[[], Any], int]:
        return lanes.rehearsed(wave, n)

    once = measured(steps, 1, 0.0)
    budget = SHARE * once[1] * sum(map(sum, blocks)) * setting.rounds
    if budget < 8 * once[1]:
        return None
    costs = measured(steps, largest, min(budget, LONGEST))
    if len(costs) < min(3, largest):
        return None
    tried = sorted({n for n in (*costs, *(m + m // 2 for m in costs)) if n <= max(costs)})
    seconds = {n: predicted(costs, blocks, n) for n in tried}
    # Of what is about as fast, the fewest: each lane is a model in memory.
    best = min(n for n in tried if seconds[n] <= ABOUT * min(seconds.values()))
    known = sorted(costs)
    costs[best] = float(np.interp(best, known, [costs[n] for n in known]))
    return {"lanes": best, "costs": {str(n): c for n, c in costs.items()}}


COMPILING = 40.0
"""Seconds that a compiler takes for one step, until it has been measured."""
GAIN = 0.5
"""What a compiled step takes of an eager one's time, until it has been measured."""


def _worth_compiling(
    lanes: Lanes, wave: Wave, setting: Setting, blocks: Sequence[Sequence[int]], count: int, known: Mapping[str, Any]
) -> bool:
    """Whether compiling saves, over all rounds, more than twice what it costs."""
    if lanes.learner.mixes or not has_compiler(lanes.device) or str(count) not in known.get("costs", {}):
        return False
    eager = known["costs"][str(count)]
    saved = eager - known.get("compiled", GAIN * eager)
    steps = sum(max(block) * -(-len(block) // count) for block in blocks) * setting.rounds
    return bool(saved * steps > 2 * known.get("compiling", COMPILING))


def _compiled(lanes: Lanes, wave: Wave, count: int) -> dict[str, float]:
    """How long the compiler takes, and the step then."""
    lanes.compiled = count
    began = time.perf_counter()
    step, steps = lanes.rehearsed(wave, count)
    step()
    compiling = time.perf_counter() - began
    return {"compiling": compiling, "compiled": measured(lambda n: (step, steps), 1, 0.0)[1]}


def has_compiler(device: torch.device) -> bool:
    """Whether a compiled step can be had: on a CPU it needs a C++ compiler."""
    return device.type != "cpu" or any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def form_of(wave: Wave) -> list[Any]:
    """What one example looks like."""
    return [(path, str(c.dtype), list(c.shape[1:])) for path, c in tree.leaves(wave.columns)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
