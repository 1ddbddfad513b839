"""The floor of a step: what its matrix products and its update take at the rates that this machine was measured at.

Counted is one client's step of SGD with a batch of 10. A product [M, K] @ [K, N] is 2·M·K·N operations; a layer has
one forward, one for its weight's gradient, and, unless it is the first, one for its input's. A convolution is the
product of its unfolded input: M = B·H·W, K = channels·5·5, counted at the rate of a large square product, since its
kernel may cut it as it likes; other products are timed in their shapes, alone and 16 at once. The batch is read once
from memory. Every parameter is read and written once by the update (8 bytes), at the rate of memory where those of 16
clients at once do not fit 2 MB of cache; else at no cost. Not counted are activations, pooling, the loss, and
everything in Python: nobody reaches the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from insitu.bench import machine
from insitu.bench.workload import BATCH, FEATURES, LENGTH, LETTERS

Product = tuple[int, int, int, int]
"""How often, and M, K, N."""

CACHE = 2**21


@dataclass(frozen=True)
class Count:
    """One step's products, the parameters that its update reads and writes, and the bytes of a batch."""

    products: tuple[Product, ...]
    parameters: int
    batch: int = BATCH * FEATURES * 4
    convolutions: tuple[Product, ...] = ()

    def operations(self) -> int:
        """Floating-point operations of the products."""
        return sum(2 * often * m * k * n for often, m, k, n in (*self.products, *self.convolutions))

    def bytes(self) -> int:
        """Bytes that must come from or go to memory, beyond the caches."""
        cached = 4 * self.parameters * machine.MANY <= CACHE
        return self.batch + (0 if cached else 8 * self.parameters)


def _layer(m: int, k: int, n: int, *, first: bool = False, often: int = 1) -> tuple[Product, ...]:
    """Forward, the weight's gradient, and the input's."""
    forward, weight, back = (often, m, k, n), (often, k, m, n), (often, m, n, k)
    return (forward, weight) if first else (forward, weight, back)


def _cell() -> tuple[Product, ...]:
    """80 steps of a recurrent product, there and back; the input's share and the weights' gradients all at once."""
    steps = BATCH * LENGTH
    return (
        (LENGTH, BATCH, 128, 512), (LENGTH, BATCH, 512, 128), (1, 128, steps, 512),
        *_layer(steps, 8, 512),
    )  # fmt: skip


COUNTS = {
    "lr": Count(_layer(BATCH, 784, 10, first=True), 7_850),
    "mlp": Count((*_layer(BATCH, 784, 200, first=True), *_layer(BATCH, 200, 200), *_layer(BATCH, 200, 10)), 199_210),
    "cnn": Count(
        (*_layer(BATCH, 3136, 512), *_layer(BATCH, 512, 10)),
        1_663_370,
        convolutions=(*_layer(BATCH * 784, 25, 32, first=True), *_layer(BATCH * 196, 800, 64)),
    ),
    "lstm": Count(
        (*_cell(), *_layer(BATCH, 128, LETTERS)), LETTERS * 8 + 512 * (8 + 128 + 2) + LETTERS * 129, BATCH * LENGTH * 8
    ),
}


def measured(name: str) -> dict[str, float]:
    """``{"operations", "bytes", "products_ms", "memory_ms", "ms", "gflops"}`` of one client's step of this model."""
    count = COUNTS[name]
    products = sum(often * machine.product_seconds(m, k, n) for often, m, k, n in count.products)
    square = machine.product_seconds(1024, 1024, 1024) / (2 * 1024**3)
    products += square * sum(2 * often * m * k * n for often, m, k, n in count.convolutions)
    memory = count.bytes() / machine.bytes_per_second()
    return {
        "operations": count.operations(),
        "bytes": count.bytes(),
        "products_ms": 1000 * products,
        "memory_ms": 1000 * memory,
        "ms": 1000 * (products + memory),
        "gflops": count.operations() / products / 1e9,
    }
