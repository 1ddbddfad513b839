"""What the peers' scripts share: the workload, the line to the harness, and the models in PyTorch.

``python NAME.py lr --cohort 100`` says ``{"ready": true}`` and then does a round whenever it is told to; see
``src/insitu/bench/entrant.py``. Nothing of insitu is imported: the workload's file is loaded by its path.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

WORKLOAD = Path(__file__).resolve().parents[2] / "src" / "insitu" / "bench" / "workload.py"


def _workload():
    spec = importlib.util.spec_from_file_location("workload", WORKLOAD)
    module = importlib.util.module_from_spec(spec)
    sys.modules["workload"] = module
    spec.loader.exec_module(module)
    return module


workload = _workload()


def arguments(models=("lr", "mlp", "cnn")):
    """The command line; ends the process where this script has no such model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=workload.CLIENTS)
    parser.add_argument("--cohort", type=int, default=workload.COHORT)
    given = parser.parse_args()
    if given.model not in models:
        sys.exit(f"this script has {', '.join(models)}, not {given.model}")
    return given


class Line:
    """Questions come on stdin, answers go to stdout; what libraries print goes to stderr."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **answer):
        """One answer."""
        print(json.dumps(answer), file=self._answers)

    def next(self):
        """The next cohort (places), or None at the end."""
        text = sys.stdin.readline()
        return json.loads(text)["cohort"] if text.strip() else None


def torch_model(name):
    """The workload's model of this name, as a researcher writes it."""
    from torch import manual_seed, nn

    manual_seed(0)
    if name == "lr":
        return nn.Sequential(nn.Linear(784, 10))
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip
