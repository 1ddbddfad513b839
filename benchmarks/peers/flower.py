"""Flower: its FedAvg on its simulation engine (Ray), an actor a core.

Clients are drawn by Flower, not told by the harness: it has no way to name them. Rounds have as many clients.
"""

from __future__ import annotations

import os
from pathlib import Path

import told
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

# Ray's actors are processes of their own and have to find `told` too.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)

held = {}
"""What an actor keeps from one client to the next: data and model."""


class One(NumPyClient):
    """A client: parameters in, one epoch, parameters out."""

    def __init__(self, data, model, place):
        self.data, self.model, self.place = data, model, place

    def fit(self, parameters, config):
        state = self.model.state_dict()
        self.model.load_state_dict(
            {name: torch.from_numpy(value) for name, value in zip(state, parameters, strict=True)}
        )
        x, y = (torch.from_numpy(column) for column in self.data.client(self.place))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=told.workload.LR)
        for rows in torch.randperm(len(y)).split(told.workload.BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(x[rows]), y[rows]).backward()
            optimizer.step()
        return [value.numpy() for value in self.model.state_dict().values()], len(y), {}


class Told(FedAvg):
    """Flower's FedAvg, every round held until it is asked for."""

    def __init__(self, line, **settings):
        super().__init__(**settings)
        self.line = line

    def configure_fit(self, server_round, parameters, client_manager):
        if self.line.next() is None:
            import ray

            ray.shutdown()
            os._exit(0)
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        mean = super().aggregate_fit(server_round, results, failures)
        self.line.say(clients=len(results), failed=len(failures))
        return mean


def main():
    given, line = told.arguments(), told.Line()
    model, clients = given.model, given.clients

    def client_fn(context):
        if not held:
            torch.set_num_threads(1)
            held.update(data=told.workload.features(clients), model=told.torch_model(model))
        return One(held["data"], held["model"], int(context.node_config["partition-id"])).to_client()

    def server_fn(context):
        start = [value.numpy() for value in told.torch_model(model).state_dict().values()]
        strategy = Told(
            line, fraction_fit=given.cohort / clients, fraction_evaluate=0.0, min_fit_clients=given.cohort,
            min_available_clients=clients, initial_parameters=ndarrays_to_parameters(start),
        )  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=100_000))

    line.say(ready=True)
    run_simulation(
        ServerApp(server_fn=server_fn), ClientApp(client_fn=client_fn), num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
