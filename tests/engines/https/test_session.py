"""Runs over sites in this process: the same answer as inline, whatever happens to the coordinator in between."""

from __future__ import annotations

import numpy as np
import pytest
from federations import Federation, fedavg, inline, tables

from insitu.algorithms.kmeans import KMeans
from insitu.algorithms.knn import KNN
from insitu.algorithms.scaffold import Scaffold
from insitu.compress.quantize import Quantize
from insitu.core import tree
from insitu.learners.numpy import LogisticLearner
from insitu.rounds.cohort import Uniform
from insitu.rounds.plan import Plan


def same(one, other):
    a, b = tree.flatten(tree.asnumpy(one.state)), tree.flatten(tree.asnumpy(other.state))
    assert np.array_equal(a, b)


def plans(clients):
    def of(algorithm, **more):
        return Plan(algorithm, evaluate_every=0, **more).resolve(clients.schema())

    return {
        "fedavg": fedavg(clients),
        "fedavg by eight bits": fedavg(clients, stages=(Quantize(bits=8),)),
        "fedavg of some": fedavg(clients, cohort=Uniform(3)),
        "scaffold": of(Scaffold(lr=0.1, epochs=1, batch_size=4), learner=LogisticLearner()),
        "kmeans": of(KMeans(k=3)),
        "knn": of(KNN(k=3)),
    }


@pytest.mark.parametrize("name", list(plans(tables())))
def test_the_answer_is_inlines_bit_for_bit(name):
    clients = tables()
    plan = plans(clients)[name]
    federation = Federation(clients, plan)
    with federation.coordinator():
        result = federation.run()
        same(result, inline(plan, clients))
        if name == "knn":
            x = clients.at(0).data.x
            assert list(result.predict(x)) == list(inline(plan, clients).predict(x))
