"""pfl-research: its federated averaging on its simulated backend, in one process."""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the library's name: the folder of the script must not be searched first.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByDatapoints  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from told import Line, arguments, torch_model, workload  # noqa: E402


class Learnable(torch.nn.Module):
    """The model with the two methods that pfl asks for."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    def loss(self, x, y, eval=False):
        """The mean loss of a batch."""
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y, eval=False):
        """None: evaluation is off."""
        return {}


class Told(TrainingProcessCallback):
    """Holds every iteration until the next is asked for; ``waiting`` are the users of the present one."""

    def __init__(self, line):
        self.line, self.waiting = line, []

    def take(self):
        """Whether there is another round."""
        cohort = self.line.next()
        self.waiting = list(cohort or [])
        return cohort is not None

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.line.say()
        return not self.take(), Metrics()


def main():
    given, line = arguments(), Line()
    torch.set_num_threads(1)
    data = workload.features(given.clients, given.cohort)
    told = Told(line)

    def user(place):
        x, y = data.client(place)
        order = torch.randperm(len(y))
        return Dataset((torch.from_numpy(x)[order], torch.from_numpy(y)[order]), user_id=str(place))

    users = FederatedDataset(user, lambda: told.waiting.pop(0))
    module = Learnable(torch_model(given.model))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    line.say(ready=True)
    if told.take():
        FederatedAveraging().run(
            NNAlgorithmParams(
                central_num_iterations=100_000, evaluation_frequency=10**9, train_cohort_size=given.cohort,
                val_cohort_size=0,
            ),
            backend, model,
            NNTrainHyperParams(
                local_num_epochs=1, local_learning_rate=workload.LR, local_batch_size=workload.BATCH
            ),
            NNEvalHyperParams(local_batch_size=None), callbacks=[told],
        )  # fmt: skip


if __name__ == "__main__":
    main()
