"""FedJAX: its federated averaging with the compiled step for each client, which is its default."""

from __future__ import annotations

import sys
from pathlib import Path

# This file has the library's name: the folder of the script must not be searched first.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
sys.path.append(str(Path(__file__).resolve().parent))

import fedjax  # noqa: E402
import jax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from told import Line, arguments, workload  # noqa: E402


def layers(name):
    """(init, apply) of the model, from JAX's own small library."""
    from jax.example_libraries import stax

    shape = jax.nn.initializers.glorot_uniform()
    if name == "lr":
        return stax.serial(stax.Dense(10, shape))
    if name == "mlp":
        return stax.serial(stax.Dense(200, shape), stax.Relu, stax.Dense(200, shape), stax.Relu, stax.Dense(10, shape))
    pool = stax.MaxPool((2, 2), strides=(2, 2))
    image = (lambda _, shape: ((shape[0], 28, 28, 1), ()), lambda _, x, **__: x.reshape(-1, 28, 28, 1))
    return stax.serial(
        image, stax.Conv(32, (5, 5), padding="SAME"), stax.Relu, pool, stax.Conv(64, (5, 5), padding="SAME"),
        stax.Relu, pool, stax.Flatten, stax.Dense(512, shape), stax.Relu, stax.Dense(10, shape),
    )  # fmt: skip


def main():
    given, line = arguments(), Line()
    data = workload.features(given.clients, given.cohort)
    init, apply = layers(given.model)

    def loss(params, batch, rng):
        logits = jax.nn.log_softmax(apply(params, batch["x"]))
        return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1).mean()

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss), fedjax.optimizers.sgd(workload.LR), fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=workload.BATCH, num_epochs=1),
    )  # fmt: skip
    _, params = init(jax.random.PRNGKey(0), (-1, 784))
    state = algorithm.init(params)
    line.say(ready=True)
    keys = jax.random.PRNGKey(1)
    while (cohort := line.next()) is not None:
        keys, *own = jax.random.split(keys, len(cohort) + 1)
        clients = []
        for place, key in zip(cohort, own, strict=True):
            x, y = data.client(place)
            clients.append((str(place), fedjax.ClientDataset({"x": x, "y": y}), key))
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        line.say()


if __name__ == "__main__":
    main()
