"""FedLab: its serial trainer for many clients in one process, and its mean."""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the library's name: the folder of the script must not be searched first.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(Path(__file__).resolve().parent))

import torch  # noqa: E402


class StandIn(type):
    """A class for every name that is asked of it."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name, (), {})


# FedLab imports torchvision for data sets and models that are not used here, and its wheels fit few builds of torch.
for _place in ("", ".datasets", ".transforms", ".models", ".datasets.folder", ".datasets.utils"):
    sys.modules["torchvision" + _place] = StandIn("torchvision", (), {})

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.utils.aggregator import Aggregators  # noqa: E402
from fedlab.utils.serialization import SerializationTool  # noqa: E402
from told import Line, arguments, torch_model, workload  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402


class Loaders:
    """A data loader by client, as FedLab asks for it."""

    def __init__(self, data):
        self.data = data

    def get_dataloader(self, place, batch_size):
        """Batches in a new order."""
        x, y = (torch.from_numpy(column) for column in self.data.client(place))
        return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)


def main():
    given, line = arguments(), Line()
    torch.set_num_threads(1)
    data = workload.features(given.clients, given.cohort)
    model = torch_model(given.model)
    trainer = SGDSerialClientTrainer(model, len(data))
    trainer.setup_dataset(Loaders(data))
    trainer.setup_optim(1, workload.BATCH, workload.LR)
    parameters = SerializationTool.serialize_model(model)
    line.say(ready=True)
    while (cohort := line.next()) is not None:
        trainer.local_process([parameters], cohort)
        told = [pack[0] for pack in trainer.uplink_package]
        weights = [float(len(data.client(place)[1])) for place in cohort]
        parameters = Aggregators.fedavg_aggregate(told, weights)
        line.say()


if __name__ == "__main__":
    main()
