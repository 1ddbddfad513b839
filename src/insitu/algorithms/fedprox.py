"""FedProx: FedAvg whose clients are held near the global model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from insitu.core import checks, tree
from insitu.core.local_sgd import LocalSGD
from insitu.core.tree import Tree


@dataclass(frozen=True, kw_only=True)
class FedProx(LocalSGD):
    r"""Each client minimises its loss plus a proximal term, so that clients with odd data do not drift far.

    .. math:: \min_w F_i(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2

    mu      strength of the pull towards the global model; 0.001 to 1, more for more uneven clients
    others  those of :class:`~insitu.core.local_sgd.LocalSGD`

    Limit case: ``mu=0`` is FedAvg, bit for bit.

    Reference: Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020, algorithm 2. The local
    problem is solved by the plan's epochs or steps rather than to a given inexactness γ.
    """

    mu: float = 0.1
    limit: ClassVar[str | None] = "mu=0 is fedavg"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu=self.mu)

    def correct(self, grads: Tree, shared: Tree, message: Tree, memory: Tree | None) -> Tree:
        if self.mu == 0:
            return grads
        return tree.map(lambda g, w, start: g + self.mu * (w - start), grads, shared, message["shared"])

    @classmethod
    def example(cls) -> FedProx:
        return cls(mu=0.5, lr=0.1, epochs=2, batch_size=8)
