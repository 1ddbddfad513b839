"""A plan refuses what does not fit together when it is built, with the reason and the cure."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import SGDClassifier

from insitu import Everyone, Plan, Policy, Uniform
from insitu.algorithms.choco import Choco
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.algorithms.fedsgd import FedSGD
from insitu.algorithms.gossip import Gossip
from insitu.algorithms.kmeans import KMeans
from insitu.algorithms.scaffold import Scaffold
from insitu.algorithms.streaming_diloco import StreamingDiLoCo
from insitu.compress.half import Half
from insitu.compress.quantize import Quantize
from insitu.compress.randomk import RandomK
from insitu.compress.topk import TopK
from insitu.core.errors import PlanError
from insitu.core.mean import Mean
from insitu.core.protocols import Stage
from insitu.core.schedules import Cosine
from insitu.core.types import Schema
from insitu.learners.numpy import LogisticLearner
from insitu.learners.sklearn import SklearnLearner
from insitu.learners.torch import TorchLearner
from insitu.privacy.clip import Clip
from insitu.reduce.concat import Concat
from insitu.reduce.neighbours import Neighbours
from insitu.rounds.buffered import Buffered


@dataclasses.dataclass(frozen=True)
class Hide(Stage):
    """A stand-in for secure aggregation: undone for the sum only."""

    decodes = "sum"

    def encode(self, update, memory, context):
        return update, memory


@dataclasses.dataclass(frozen=True)
class Squeeze(Stage):
    """A stand-in for a quantiser: undone for each update."""

    decodes = "each"

    def encode(self, update, memory, context):
        return update, memory


MODEL = LogisticLearner(4, 3)
BLACK_BOX = SklearnLearner(SGDClassifier(), classes=[0, 1])
NET = torch.nn.Linear(4, 3)

# What is refused: how it is made, what the reason names, what the cure names.
REFUSED = {
    "no algorithm": (lambda: Plan("fedavg", MODEL), "'fedavg'", "FedAvg("),
    "an algorithm's class": (lambda: Plan(FedAvg, MODEL), "FedAvg is a class", "instance"),
    "no learner": (lambda: Plan(FedAvg()), "FedAvg", "learner="),
    "a bare module": (lambda: Plan(FedAvg(), NET), "Linear", "TorchLearner"),
    "a bare estimator": (lambda: Plan(FedAvg(), SGDClassifier()), "SGDClassifier", "SklearnLearner"),
    "a learner's class": (lambda: Plan(FedAvg(), TorchLearner), "TorchLearner", "instance"),
    "a learner for none": (lambda: Plan(KMeans(), MODEL), "KMeans needs no learner", "leave"),
    "no gradients for fedprox": (lambda: Plan(FedProx(), BLACK_BOX), "FedProx needs gradients", "FedAvg"),
    "no gradients for scaffold": (lambda: Plan(Scaffold(), BLACK_BOX), "Scaffold needs gradients", "FedAvg"),
    "no gradients for fedsgd": (lambda: Plan(FedSGD(), BLACK_BOX), "FedSGD needs gradients", "FedAvg"),
    "steps of a black box": (lambda: Plan(FedAvg(steps=3), BLACK_BOX), "steps=3", "leave"),
    "clip of a black box": (lambda: Plan(FedAvg(clip=1.0), BLACK_BOX), "clip=1.0", "leave"),
    "optimizer of a black box": (lambda: Plan(FedAvg(optimizer="adam"), BLACK_BOX), "optimizer='adam'", "leave"),
    "gossip with a mean": (lambda: Plan(Gossip(), MODEL, reduce=Mean()), "'mean'", "leave reduce out"),
    "a mean's method with neighbours": (lambda: Plan(FedAvg(), MODEL, reduce=Neighbours()), "eighbours", "Gossip"),
    "kmeans with a mean": (lambda: Plan(KMeans(), reduce=Mean()), "mean", "leave reduce out"),
    "a reduce's class": (lambda: Plan(FedAvg(), MODEL, reduce=Mean), "Mean is a class", "instance"),
    "no reduce": (lambda: Plan(FedAvg(), MODEL, reduce="mean"), "'mean'", "Mean()"),
    "a cohort's class": (lambda: Plan(FedAvg(), MODEL, cohort=Everyone), "Everyone is a class", "instance"),
    "no cohort": (lambda: Plan(FedAvg(), MODEL, cohort=10), "cohort=10", "Uniform(10)"),
    "no evaluation cohort": (lambda: Plan(FedAvg(), MODEL, evaluate_cohort=0.1), "evaluate_cohort=0.1", "Uniform"),
    "no policy": (lambda: Plan(FedAvg(), MODEL, policy=0.5), "policy=0.5", "Policy()"),
    "a stage's class": (lambda: Plan(FedAvg(), MODEL, stages=(Clip,)), "Clip is a class", "instance"),
    "no stage": (lambda: Plan(FedAvg(), MODEL, stages=("clip",)), "'clip'", "Clip(1.0)"),
    "one stage alone": (lambda: Plan(FedAvg(), MODEL, stages=Clip(1.0)), "stages", "tuple"),
    "each before sum": (lambda: Plan(FedAvg(), MODEL, stages=(Squeeze(), Hide())), "Squeeze", "last"),
    "a sum where each is needed": (lambda: Plan(Gossip(), MODEL, stages=(Hide(),)), "Hide", "mean"),
    "clipping gossip's models": (lambda: Plan(Gossip(), MODEL, stages=(Clip(1.0),)), "Clip", "leave"),
    "clipping what a black box fits": (lambda: Plan(FedAvg(), BLACK_BOX, stages=(Clip(1.0),)), "Clip", "leave"),
    "clipping what is packed": (
        lambda: Plan(FedAvg(), MODEL, stages=(Squeeze(), Clip(1.0))),
        "packed form",
        "put Clip before",
    ),
    "largest changes of a black box": (
        lambda: Plan(FedAvg(), BLACK_BOX, stages=(TopK(),)),
        "TopK",
        "Half and Quantize",
    ),
    "packing no model": (lambda: Plan(KMeans(), stages=(Half(),)), "Half", "leave it out"),
    "feedback where it is told again": (lambda: Plan(Choco(), MODEL, stages=(TopK(),)), "Choco", "feedback=False"),
    "feedback for another part": (
        lambda: Plan(StreamingDiLoCo(), MODEL, stages=(TopK(),)),
        "StreamingDiLoCo tells another part",
        "feedback=False",
    ),
    "feedback for what was packed": (
        lambda: Plan(FedAvg(), MODEL, stages=(TopK(), Quantize(feedback=True))),
        "TopK",
        "Quantize(…, feedback=False)",
    ),
    "neighbours' copies in buffered rounds": (
        lambda: Plan(Choco(), MODEL, buffered=Buffered(2)),
        "Choco",
        "leave buffered",
    ),
    "copies mixed by a mean": (lambda: Plan(Choco(), MODEL, reduce=Mean()), "'mean'", "leave reduce out"),
    "copies mixed by neighbours": (
        lambda: Plan(Choco(), MODEL, reduce=Neighbours()),
        "'neighbours'",
        "leave reduce out",
    ),
    "copies with a server": (lambda: Choco(server="adam"), "no server", "FedAvg"),
    "copies by examples": (lambda: Choco(weights="examples"), "weights='examples'", "leave"),
    "no gradients for copies": (lambda: Plan(Choco(), BLACK_BOX), "Choco needs gradients", "FedAvg"),
    "unbiased and fed back": (lambda: RandomK(unbiased=True), "unbiased=True", "feedback=False"),
    "a block of none": (lambda: Plan(FedAvg(), MODEL, block=0), "block=0", ">= 1"),
    "evaluation every half round": (lambda: Plan(FedAvg(), MODEL, evaluate_every=0.5), "evaluate_every=0.5", ">= 1"),
    "scaffold with adam": (lambda: Scaffold(optimizer="adam"), "optimizer='adam'", "FedAvg"),
    "scaffold that clips": (lambda: Scaffold(clip=1.0), "clip=1.0", "biased"),
    "gossip with a server": (lambda: Gossip(server="adam"), "no server", "FedAvg"),
    "gossip by examples": (lambda: Gossip(weights="examples"), "weights='examples'", "leave"),
    "batches of one for batch norm": (
        lambda: Plan(
            FedAvg(batch_size=1), TorchLearner(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)))
        ),
        "batch_size=1",
        "GroupNorm",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_reason_and_cure(case):
    make, reason, cure = REFUSED[case]
    with pytest.raises(PlanError) as refused:
        make()
    assert reason in str(refused.value)
    assert cure in str(refused.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan(FedAvg(), MODEL),
        lambda: Plan(FedAvg(epochs=3, batch_size=5), BLACK_BOX),
        lambda: Plan(Gossip(), BLACK_BOX),
        lambda: Plan(KMeans()),
        lambda: Plan(Scaffold(), TorchLearner(NET), stages=[Clip(1.0)], cohort=Uniform(3), evaluate_every=0),
        lambda: Plan(FedAvg(), MODEL, stages=(Clip(1.0), Squeeze())),
        lambda: Plan(FedAvg(), MODEL, stages=(Clip(1.0), Hide())),
        lambda: Plan(FedAvg(), MODEL, stages=(Clip(1.0), TopK(), Quantize(4))),
        lambda: Plan(FedAvg(), BLACK_BOX, stages=(Quantize(),)),
        lambda: Plan(Gossip(), MODEL, stages=(Half(),)),
        lambda: Plan(Choco(), MODEL, stages=(TopK(feedback=False),)),
        lambda: Plan(KMeans(), reduce=Concat(("candidates",))),
    ],
)
def test_what_fits_is_accepted(make):
    plan = make()
    assert isinstance(plan.stages, tuple)


# ------------------------------------------------------------ config and digest

START = LogisticLearner(4, 3).init(0)
BASE = Plan(FedAvg(lr=0.1), MODEL)


def test_the_same_plan_has_the_same_digest():
    assert Plan(FedAvg(lr=0.1), LogisticLearner(4, 3)).digest(START) == BASE.digest(START)


@pytest.mark.parametrize(
    "other",
    [
        Plan(FedAvg(lr=0.2), MODEL),
        Plan(FedAvg(lr=Cosine(0.1, 10)), MODEL),
        Plan(FedProx(lr=0.1), MODEL),
        Plan(FedAvg(lr=0.1), LogisticLearner(4, 3, l2=0.1)),
        Plan(FedAvg(lr=0.1), MODEL, stages=(Clip(1.0),)),
        Plan(FedAvg(lr=0.1), MODEL, cohort=Uniform(3)),
        Plan(FedAvg(lr=0.1), MODEL, policy=Policy(quorum=0.5)),
        Plan(FedAvg(lr=0.1), MODEL, block=7),
        Plan(FedAvg(lr=0.1, server="adam"), MODEL),
    ],
    ids=range(9),
)
def test_another_plan_has_another_digest(other):
    assert other.digest(START) != BASE.digest(START)


def test_the_first_parameters_count_whatever_their_role():
    def digest(**roles):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        learner = TorchLearner(net, **roles)
        torch.manual_seed(1)
        changed = torch.nn.Sequential(net[0], torch.nn.Linear(2, 2))
        other = TorchLearner(changed, **roles)
        return Plan(FedAvg(), learner).digest(learner.init(0)), Plan(FedAvg(), other).digest(other.init(0))

    for roles in ({}, {"frozen": ("1",)}, {"personal": ("1",)}):
        one, two = digest(**roles)
        assert one != two, roles


def test_config_is_json_and_complete():
    import json

    plan = Plan(FedAvg(lr=Cosine(0.1, 10), server="adam"), MODEL, stages=(Clip(2.0),), evaluate_cohort=Uniform(2))
    config = json.loads(json.dumps(plan.config()))
    assert config["algorithm"]["lr"] == {"name": "cosine", "lr": 0.1, "rounds": 10, "least": 0.0, "warmup": 0}
    assert config["stages"] == [{"name": "clip", "norm": 2.0}]
    assert config["evaluate_cohort"] == {"name": "uniform", "clients": 2, "fraction": None}
    assert {f.name for f in dataclasses.fields(Plan)} == set(config)


@pytest.mark.parametrize(("cohort", "size"), [(1, 1), (3, 1), (4, 1), (5, 2), (100, 25), (10_000, 256)])
def test_a_block_is_a_quarter_of_the_cohort_and_at_most_256(cohort, size):
    assert BASE.block_size(cohort) == size
    assert dataclasses.replace(BASE, block=7).block_size(cohort) == 7


def test_resolve_fills_in_what_the_data_tell():
    plan = Plan(FedAvg(), LogisticLearner()).resolve(Schema((4,), np.array([0, 1, 2])))
    assert plan.learner.init(0).shared["weight"].shape == (3, 4)
    assert Plan(KMeans()).resolve(Schema((4,), None)) == Plan(KMeans())
