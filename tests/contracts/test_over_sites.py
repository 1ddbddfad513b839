"""Same plan, same seed, same answer: four sites in processes of their own against ``inline``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import insitu
from insitu.config import of_tables, toml
from insitu.core import tree
from insitu.data import Clients, sets

sys.path.append(str(Path(__file__).parent.parent / "federation"))
from processes import Federation

SITES = ("berlin", "paris", "rome", "vienna")
LOGISTIC = {"learner": {"name": "logistic"}}
PLANS = {
    "fedavg": {"algorithm": {"name": "fedavg", "lr": 0.1, "batch_size": 16}, **LOGISTIC},
    "fedprox": {"algorithm": {"name": "fedprox", "mu": 0.5, "lr": 0.1, "batch_size": 16}, **LOGISTIC},
    "scaffold": {"algorithm": {"name": "scaffold", "lr": 0.1, "batch_size": 16}, **LOGISTIC},
    "kmeans": {"algorithm": {"name": "kmeans", "k": 3}},
    "knn": {"algorithm": {"name": "knn", "k": 3}},
}
ROUNDS = 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("contract"))
    try:
        made.coordinator()
        for part, name in enumerate(SITES):
            made.join(part, name, of=len(SITES))
            made.site(name)
        yield made
    finally:
        made.close()


def population():
    found = sets.load("breast_cancer")
    owner = np.arange(len(found.x)) % len(SITES)
    return Clients.from_arrays(found.x, found.y, [np.flatnonzero(owner == part) for part in range(4)], ids=SITES)


@pytest.mark.long
@pytest.mark.parametrize("name", PLANS)
def test_four_sites_say_what_inline_says(federation, name):
    told = {"run": {"rounds": ROUNDS, "seed": 7}, **PLANS[name]}
    (federation.folder / f"{name}.toml").write_text(toml.dumps(told), encoding="utf-8")
    federation.call("submit", f"{name}.toml", "--federation", "study", "--watch")
    federation.call("model", "last", "--to", f"{name}.npz", "--federation", "study")
    plan = of_tables({**told, "data": {"source": "breast_cancer"}}).plan()
    meant = insitu.run(plan, population(), rounds=ROUNDS, seed=7, engine="inline", store=None, observers=[])
    expected = {path: np.asarray(leaf) for path, leaf in tree.leaves(vars(meant.variables))}
    with np.load(federation.folder / f"{name}.npz") as found:
        assert set(found) == set(expected)
        for path, value in expected.items():
            assert found[path].dtype == value.dtype
            np.testing.assert_allclose(found[path], value, rtol=1e-6, atol=1e-6)
    x = sets.load("breast_cancer").x[:40] + 0.01
    for examples in (x, x[:7]):
        np.save(federation.folder / "x.npy", examples)
        federation.call("predict", "last", "--data", "x.npy", "--to", "y.npy", "--federation", "study")
        np.testing.assert_allclose(np.load(federation.folder / "y.npy"), meant.predict(examples), rtol=1e-6, atol=1e-6)
