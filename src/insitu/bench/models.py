"""The four models that everyone is measured on, as a researcher writes them, and their data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from insitu.bench import workload
from insitu.bench.workload import Workload
from insitu.core.errors import DataError, PlanError


class Letters(nn.Module):
    """The next character after 80: embedding 8, one LSTM layer of 128, the last output into 65 letters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(workload.LETTERS, 8)
        self.lstm = nn.LSTM(8, 128, batch_first=True)
        self.head = nn.Linear(128, workload.LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        """x int64 [B, 80] → [B, 65]."""
        output, _ = self.lstm(self.embedding(x))
        return self.head(output[:, -1])


def _logistic() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 10))


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lr": _logistic,
    "mlp": _perceptron,
    "cnn": _convolutions,
    "lstm": Letters,
}


def make(name: str) -> nn.Module:
    """The model of this name, its first weights always the same. Raises PlanError for an unknown name."""
    if name not in MODELS:
        raise PlanError(f"there is no model {name!r}: there are {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]()


def data(name: str, clients: int | None = None, cohort: int = workload.COHORT) -> Workload:
    """The data of this model: Shakespeare for the LSTM, where the file is at hand, else text of the same shape."""
    if name != "lstm":
        return workload.features(clients or workload.CLIENTS, cohort)
    if clients is not None:
        return workload.synthetic_letters(clients, cohort)
    from insitu.data.shakespeare import shakespeare

    try:
        plays = shakespeare(step=workload.STEP, test=0.0)
    except DataError:
        return workload.synthetic_letters(cohort=cohort)
    return workload.letters(plays.x, plays.y, plays.keys, cohort)
