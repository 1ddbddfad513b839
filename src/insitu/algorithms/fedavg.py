"""FedAvg: local training, then the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from insitu.core.local_sgd import LocalSGD


@dataclass(frozen=True, kw_only=True)
class FedAvg(LocalSGD):
    r"""Every client of the cohort trains from the global model; the changes are averaged by example counts.

    .. math:: w_{t+1} = w_t + \sum_i \frac{n_i}{\sum_j n_j} (w_t^i - w_t)

    The arguments are :class:`~insitu.core.local_sgd.LocalSGD`'s. Start with ``lr`` near what central SGD would use,
    ``epochs`` 1 to 5 and ``batch_size`` 10 to 32; more local work saves rounds while clients are alike and costs
    accuracy where they are not. With ``server=Adam()`` (and ``server_lr`` near 0.01) this is FedAdam.

    Limit case: one client, one full batch and one epoch is gradient descent.
    Learners without gradients (scikit-learn, any ``fit``) work too: their fitted parameters are averaged.

    Reference: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS
    2017, algorithm 1; server optimisers: Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, algorithm 2.
    Deviation: ``Adam()`` on the server corrects its bias and starts its second average at zero, where the paper's
    FedAdam does neither; the paper's degree of adaptivity is ``Adam(epsilon=1e-3)``.
    """

    learner_needed: ClassVar[Literal["gradient", "any", "none"]] = "any"

    @classmethod
    def example(cls) -> FedAvg:
        return cls(lr=0.1, epochs=2, batch_size=8)
