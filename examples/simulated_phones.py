"""Three hundred phones on a simulated clock: what waiting for the slowest costs, and two ways not to wait."""

import sys
from datetime import timedelta

from sklearn.datasets import load_digits

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients
from insitu.data.partition import dirichlet
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.buffered import Buffered
from insitu.rounds.world import LogNormal, Spells, World

PHONES = World(
    speed=LogNormal(median=1.0, sigma=0.6),  # examples a second: the model is as slow as a large one
    down=LogNormal(median=1000.0, sigma=0.8),  # bytes a second, the model has 5 kB
    up=LogNormal(median=250.0, sigma=1.0),
    available=Spells(on=timedelta(minutes=10), off=timedelta(minutes=20)),
    dropout=0.03,
    jitter=0.1,
)
TWENTY = {"cohort": insitu.Uniform(20)}
WAYS = {
    "wait for all 20": TWENTY,
    "ask 26, take the first 20": {**TWENTY, "policy": insitu.Policy(over_select=0.3)},
    "ask 20, wait for a minute": {**TWENTY, "policy": insitu.Policy(deadline=timedelta(minutes=1), quorum=0.3)},
    "never wait, 10 at a time": {"buffered": Buffered(size=10, concurrency=20)},
}


def main(rounds=40, picture=None):
    """Accuracy on the test set against simulated minutes, way by way."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    clients = Clients.from_arrays(x[:1500], y[:1500], dirichlet(y[:1500], 300, alpha=1.0, seed=0))
    found = {}
    for name, way in WAYS.items():
        plan = insitu.Plan(FedAvg(lr=0.5, epochs=5), LogisticLearner(classes=10), world=PHONES, **way)
        count = rounds * (2 if "buffered" in way else 1)  # as many answers
        result = insitu.run(
            plan, clients, rounds=count, evaluate=(x[1500:], y[1500:]), engine="inline", store=None, observers=()
        )
        found[name] = result.history
        print(line(name, result.history))
    if picture:
        draw(found, picture)
    return found


def line(name, history, goal=0.85):
    """When the goal is reached, in rounds, simulated minutes and answers."""
    there = next((i for i, row in enumerate(history) if row["accuracy"] >= goal), None)
    if there is None:
        return f"{name:26} accuracy {history[-1]['accuracy']:.3f} after {len(history)} rounds"
    rows = history[: there + 1]
    sent = sum(row["clients"] for row in rows)
    lost = sum(row["dropped"] + row.get("late", 0) for row in rows)
    return (
        f"{name:26} {goal:.0%} after {len(rows):3} rounds and {rows[-1]['clock'] / 60:5.1f} simulated minutes,"
        f" {sent:4} answers; {lost:3} late or lost"
    )


def draw(found, picture):
    """Accuracy against the simulated clock."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="simulated minutes", ylabel="accuracy on the test set", ylim=(0.5, 1))
    for name, history in found.items():
        axes.plot([row["clock"] / 60 for row in history], [row["accuracy"] for row in history], label=name)
    axes.set_xlim(0, max(history[-1]["clock"] for history in found.values()) / 60)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main(picture=sys.argv[1] if len(sys.argv) > 1 else None)
