"""LocalSGD: workers step by themselves and average every H steps; post-local SGD begins with a synchronous stretch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from insitu.core import local_sgd
from insitu.core.descent import Work
from insitu.core.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class LocalSGD(local_sgd.LocalSGD):
    r"""Every worker takes H steps on its own shard, then all take the mean of their models.

    .. math:: w_{t+1} = \frac{1}{n} \sum_i w_t^{i,H}, \qquad w_t^{i,h+1} = w_t^{i,h} - \eta \nabla f_i(w_t^{i,h})

    FedAvg in the manners of distributed learning: workers count once each, and a round's batches go on where those of
    the last one ended, so that every example of a shard is seen once an epoch, whatever H. Bytes fall by H against
    synchronous SGD; loss rises slowly with H, sooner the larger the learning rate.

    steps           H, batches in a round; 10 where neither ``steps`` nor ``epochs`` is given
    switch          post-local SGD: the first so many rounds are of one step, synchronous SGD; 0 for none. Lin et al.
                    switch at the first decay of the learning rate
    keep_optimizer  True keeps the state of a worker's own optimiser (momentum, AdamW) from round to round
    others          those of :class:`insitu.core.local_sgd.LocalSGD`

    Limit case: ``steps=1`` is FedSGD with uniform weights and the same batches, which is synchronous SGD.

    Reference: Stich, *Local SGD Converges Fast and Communicates Little*, ICLR 2019, algorithm 1; post-local SGD: Lin,
    Stich, Patel and Jaggi, *Don't Use Large Mini-Batches, Use Local SGD*, ICLR 2020.
    """

    batches: Literal["anew", "onward"] = "onward"
    weights: Literal["examples", "uniform"] = "uniform"
    switch: int = 0
    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "gradient"
    usual_steps: ClassVar[int | None] = 10
    limit: ClassVar[str | None] = "steps=1 is fedsgd with uniform weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.switch, bool) or not isinstance(self.switch, int) or self.switch < 0:
            raise PlanError(f"Expected switch={self.switch!r} to be a whole number of rounds >= 0")

    def work_in(self, round: int) -> Work:
        return Work(None, 1, self.batch_size) if round <= self.switch else self.work()

    def walked(self, round: int, epoch: int) -> int:
        if round - 1 <= self.switch:
            return round - 1
        return self.switch + super().walked(round - self.switch, epoch)

    @classmethod
    def example(cls) -> LocalSGD:
        return cls(lr=0.2, steps=4, batch_size=8, switch=2)
