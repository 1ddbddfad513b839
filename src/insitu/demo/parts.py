"""What the demonstration found, in tables and sentences: the terminal and the page show the same."""

from __future__ import annotations

from dataclasses import dataclass

from insitu.demo.study import COHORT, Digits, Iris, Parallel


@dataclass(frozen=True)
class Part:
    """One finding: a table whose row ``strong`` stands out, and what it means."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    strong: int
    meaning: list[str]


def federated(found: Digits) -> Part:
    """Alone, together, pooled."""
    gap, everything = (found.central - found.federated) * 100, f"{len(found.labels):,}"
    distance = f"{abs(gap):.1f} points {'below' if gap >= 0 else 'above'}"
    rounds = len(found.history)
    return Part(
        f"Federated: {len(found.parts)} clients, {len(found.labels):,} handwritten digits, unevenly",
        ("who learns", "test accuracy", "examples moved"),
        [
            ("each client alone, the mean", f"{found.alone.mean():.3f}", "0"),
            ("the best client alone", f"{found.alone.max():.3f}", "0"),
            ("together, federated", f"{found.federated:.3f}", "0"),
            ("all data in one place", f"{found.central:.3f}", everything),
        ],
        2,
        [
            f"A client has seen a few of the ten digits, and alone it reads {found.alone.mean():.0%} of the test set."
            f" Together they read {found.federated:.1%}, {distance} one model on all data in one place. Each example"
            f" was used as often in all three ways, about {found.passes} times.",
            f"No example left its client: of {size(found.kept)} of examples, 0 bytes travelled. Parameters did:"
            f" {size(found.update)} a client and round, {size(found.travelled)} there and back in {rounds} rounds of"
            f" {COHORT} clients. Images this small would be cheaper to send; they stay because they may not leave.",
        ],
    )


def distributed(found: Parallel) -> Part:
    """The loss on workers and on one machine."""
    last = len(found.machine) - 1
    steps = sorted({step for step in (0, 9, 19, last) if step <= last})
    largest = max(abs(a - b) for a, b in zip(found.machine, found.shared, strict=True))
    return Part(
        f"Distributed: the same digits, dealt to {found.workers} workers",
        ("training loss", "one machine", f"{found.workers} workers", "difference"),
        [
            (f"step {i + 1}", f"{a:.6f}", f"{b:.6f}", tiny(abs(a - b)))
            for i, a, b in ((i, found.machine[i], found.shared[i]) for i in steps)
        ],
        len(steps) - 1,
        [
            f"Each worker tells the gradient of its share, and their mean is the gradient of all data: the loss is that"
            f" of one machine to {tiny(largest)}, the parameters after {last + 1} steps to {tiny(found.difference)}.",
        ],
    )


def neighbours(found: Iris) -> Part:
    """The same predictions, whoever holds which rows."""

    def as_central(rows: int) -> str:
        return f"{rows} of {found.rows}"

    return Part(
        "Exact: three nearest neighbours among the iris flowers",
        ("where the rows are", "test accuracy", "predicted as by one machine"),
        [
            ("one machine, scikit-learn", f"{found.accuracy:.3f}", as_central(found.rows)),
            ("dealt to 4 workers", f"{found.accuracy_distributed:.3f}", as_central(found.distributed)),
            ("one species a client", f"{found.accuracy_federated:.3f}", as_central(found.federated)),
        ],
        2,
        [
            "The three nearest of all rows are among the three nearest of each client, so asking every client for three"
            " candidates loses nothing, even where a client knows one species only.",
        ],
    )


def size(count: float) -> str:
    """Bytes: ``19.2 kB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def tiny(difference: float) -> str:
    """``2e-07``, or ``0``."""
    return f"{difference:.0e}" if difference else "0"
