"""DiLoCo: workers run AdamW for many steps; an outer Nesterov step takes their mean change as its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from insitu.core.local_sgd import LocalSGD
from insitu.core.optim import Optimizer
from insitu.core.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class DiLoCo(LocalSGD):
    r"""Every worker takes H steps of AdamW on its own shard; the mean change is a gradient for an outer optimiser.

    .. math:: \Delta_t = \frac{1}{n} \sum_i \left( w_t - w_t^{i,H} \right), \qquad
              w_{t+1} = \mathrm{Nesterov}(w_t, \Delta_t)

    AdamW's state stays with its worker from round to round, and so does its place in the shard's epochs: workers only
    ever exchange a model every H steps. That is 1/H of the bytes of synchronous training.

    lr         the inner learning rate, by round; what AdamW takes in synchronous training is a good start
    steps      H; 50 where neither ``steps`` nor ``epochs`` is given (the paper's runs, far longer, take 500)
    optimizer  the inner optimiser
    server     the outer one; the paper's choice, Nesterov (0.9) with ``server_lr=0.7``, is the default
    others     those of :class:`~insitu.core.local_sgd.LocalSGD`

    Limit case: with the outer optimiser ``"sgd"`` of ``server_lr=1`` and the inner one ``"sgd"`` it is local SGD, bit
    for bit.

    Reference: Douillard et al., *DiLoCo: Distributed Low-Communication Training of Language Models*, 2023, algorithm 1.
    Deviation: the learning rate is constant within a round, where the paper's follows its schedule step by step.
    """

    lr: float | Schedule = 1e-3
    batches: Literal["anew", "onward"] = "onward"
    optimizer: str | Optimizer = "adamw"
    keep_optimizer: bool = True
    server: str | Optimizer | None = "nesterov"
    server_lr: float = 0.7
    weights: Literal["examples", "uniform"] = "uniform"
    usual_steps: ClassVar[int | None] = 50
    limit: ClassVar[str | None] = "sgd within and without is local_sgd"

    @classmethod
    def example(cls) -> DiLoCo:
        return cls(lr=0.02, steps=5, batch_size=8)
