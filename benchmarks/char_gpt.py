"""A small GPT on Shakespeare, trained on two workers in several ways: loss against steps and bytes, over seeds.

    python benchmarks/char_gpt.py [--seeds 0 1 2] [--ways synchronous diloco-50 …] [--json FILE] [--picture FILE]
    python benchmarks/char_gpt.py --picture docs/examples/char_gpt.png --only-draw

Every way is ``examples/char_gpt/*.toml`` with at most the number of steps in a round changed, and takes 1400 steps of
32 windows in all. A seed decides the model's first weights and the order of the windows. Results are added to the JSON
file as they come, and a way that is in it with this seed is not run again. Bytes are those of all workers, both ways.

The goals, reported as they come out: DiLoCo with H = 50 within 3 % of the synchronous loss at equal steps with at most
a fortieth of its bytes; no jump in loss from H = 10 to 200; eight bits within 1 % of none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import Any

from insitu.bench import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "char_gpt.json"
STEPS, LOOKS = 1400, 14


def ways() -> dict[str, tuple[str, int]]:
    """Each way's file and the steps of its rounds."""
    return {
        "synchronous": ("synchronous", 10),
        "eight_bit": ("eight_bit", 1),
        **{f"diloco-{h}": ("diloco", h) for h in (10, 20, 50, 100, 200)},
        "local_sgd-50": ("local_sgd", 50),
        "streaming_diloco-50": ("streaming_diloco", 25),
        "gossip-10": ("gossip", 10),
    }


def overrides(way: str, seed: int) -> list[str]:
    """What of the way's file is changed: the seed, and rounds of so many steps that the steps in all stay the same."""
    _, steps = ways()[way]
    rounds = STEPS // steps
    changed = [f"run.seed={seed}", f"run.rounds={rounds}", f"run.evaluate_every={max(1, rounds // LOOKS)}"]
    changed += [f"algorithm.lr.rounds={rounds}"]
    return changed + ([f"algorithm.steps={steps}"] if steps > 1 else [])


def measured(way: str, seed: int) -> dict[str, Any]:
    """One run: loss on the held-out windows after so many steps and bytes."""
    module = example()
    file, steps = ways()[way]
    began, cpu = time.perf_counter(), time.process_time()
    result = module.train(file, *overrides(way, seed), engine="inline")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    sent, curve = 0, []
    for row in result.history:
        sent += row["bytes_up"] + row["bytes_down"]
        if "loss" in row:
            curve.append([row["round"] * steps, sent, round(row["loss"], 5)])
    largest = max(row["bytes_up"] for row in result.history)
    return {
        "way": way, "seed": seed, "steps": STEPS, "loss": curve[-1][2], "bytes": sent, "largest_round_up": largest,
        "curve": curve, "seconds": round(seconds, 1), "cpu": round(cpu, 1), "choices": result.choices,
    }  # fmt: skip


def example() -> Any:
    """``examples/char_gpt.py`` as a module."""
    spec = importlib.util.spec_from_file_location("char_gpt", ROOT / "examples" / "char_gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: the loss over seeds, its distance from the synchronous one's of the same seeds, and the bytes."""
    by = {(run["way"], run["seed"]): run for run in runs}
    lines = [
        "| way | loss, mean (seeds) | lowest, highest | to synchronous | bytes | of synchronous | largest round up |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in ways():
        seeds = sorted(seed for name, seed in by if name == way and ("synchronous", seed) in by)
        if not seeds:
            continue
        losses, base = ([by[name, seed]["loss"] for seed in seeds] for name in (way, "synchronous"))
        more = statistics.mean(losses) / statistics.mean(base) - 1
        run, whole = by[way, seeds[0]], by["synchronous", seeds[0]]["bytes"]
        lines.append(
            f"| {way} | {statistics.mean(losses):.3f} ({len(seeds)}) | {min(losses):.3f}, {max(losses):.3f} |"
            f" {more:+.1%} | {run['bytes'] / 2**20:.1f} MiB | 1/{whole / run['bytes']:.1f} |"
            f" {run['largest_round_up'] / 2**20:.2f} MiB |"
        )
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: str) -> None:
    """Loss against steps and against bytes, one line a way (mean over seeds), its seeds' range behind it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for way in ways():
        curves = [run["curve"] for run in runs if run["way"] == way]
        if not curves:
            continue
        columns = list(zip(*curves, strict=True))
        low, mean, high = ([f(p[2] for p in points) for points in columns] for f in (min, statistics.mean, max))
        for axes, place in ((left, 0), (right, 1)):
            x = [points[0][place] / (1 if place == 0 else 2**20) for points in columns]
            (line,) = axes.plot(x, mean, label=way, lw=1.5)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
    left.set(xlabel="steps of every worker", ylabel="loss on held-out windows (nats a letter)", ylim=(None, 2.9))
    right.set(xlabel="MiB sent, all workers, both directions", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(ways()), choices=list(ways()))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--picture")
    parser.add_argument("--only-draw", action="store_true")
    given = parser.parse_args()
    held = json.loads(given.json.read_text()) if given.json.exists() else {"runs": []}
    for seed in () if given.only_draw else given.seeds:
        for way in given.ways:
            if any(run["way"] == way and run["seed"] == seed for run in held["runs"]):
                continue
            run = measured(way, seed)
            print(f"{way:20s} seed {seed}: loss {run['loss']:.3f}, {run['cpu']:.0f} s of CPU", flush=True)
            # Another process may have added to the file.
            held = json.loads(given.json.read_text()) if given.json.exists() else {"runs": []}
            held = {"machine": machine.describe(), "runs": [*held["runs"], run]}
            given.json.write_text(json.dumps(held) + "\n")
    print(table(held["runs"]))
    if given.picture:
        draw(held["runs"], given.picture)


if __name__ == "__main__":
    main()
