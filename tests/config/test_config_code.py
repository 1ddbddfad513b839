"""Code of the user's: found, called with checked arguments, and shown when it fails."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from config_cases import FILE, NET, error_of, needs_torch, plan_of, population_of

from insitu.core.errors import MissingExtra
from insitu.learners.numpy import LogisticLearner


def test_arrays_of_the_users(coded):
    clients, test = population_of(coded, "data.source=own_data.py:arrays", "data.source.n=90")
    assert len(clients.pooled().y) + len(clients.pooled(holdout=True).y) + len(test.y) == 90
    assert clients.schema().features == (3,)


def test_labels_that_are_text(coded):
    clients, test = population_of(coded, "data.source=own_data.py:named")
    assert list(clients.schema().classes) == ["a", "b", "c"]
    assert set(test.y) == {"a", "b", "c"}


def test_natural_clients_of_the_users(coded):
    text = FILE.replace('"digits"', '"own_data.py:keyed"')
    text = text.replace('partition = { name = "dirichlet", clients = 10, alpha = 0.5 }\n', "")
    (coded / "insitu.toml").write_text(text, encoding="utf-8")
    clients, test = population_of(coded)
    assert list(clients.ids) == ["0", "1", "2", "3"]
    assert len(test) == 12


def test_clients_of_the_users_are_made_already(coded):
    text = '[run]\nrounds = 1\n[data]\nsource = "own_data.py:clients"\n[algorithm]\nname = "knn"\n'
    (coded / "insitu.toml").write_text(text, encoding="utf-8")
    clients, test = population_of(coded)
    assert (len(clients), test) == (2, None)
    for change in ("data.test=0.2", "data.holdout=0.2", "data.partition=natural"):
        assert "the source gives clients, which are made already" in error_of(coded, change)


def test_examples_without_labels(coded):
    clients, _ = population_of(coded, "data.source=own_data.py:unlabelled", 'data.partition={name="iid",clients=4}')
    assert len(clients) == 4
    said = error_of(coded, "data.source=own_data.py:unlabelled")
    assert "[data.partition]" in said


def test_modules_by_their_name(coded):
    clients, _ = population_of(coded, "data.source=own_data:arrays")
    assert len(clients) == 10
    learner = plan_of(coded, 'learner={ name = "insitu.learners.numpy:LogisticLearner", l2 = 1 }').learner
    assert learner == LogisticLearner(l2=1.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("own_data.py:array", "own_data.py has no 'array': did you mean 'arrays'?"),
        ("own_dat.py:arrays", "did you mean 'own_data.py'?"),
        ("no_such_module:f", "there is no module 'no_such_module': give file.py:object for a file of your own"),
        ("own_data.py:number", "it is a int, expected a class"),
        ("own_data.py:wrong", "own_data.py:wrong returned dict: return (x, y), a DataSet or Clients"),
        ("own_data.py:broken", "ZeroDivisionError: division by zero (own_data.py, line 28: ratio = n / 0)"),
    ],
)
def test_code_that_does_not_work(coded, source, said):
    assert said in error_of(coded, f"data.source={source}")


def test_arguments_of_the_users_functions_are_checked(coded):
    said = error_of(coded, "data.source=own_data.py:keyed", "data.source.hospital=3")
    assert "own_data.py:keyed has no key 'hospital': did you mean 'hospitals'?" in said
    said = error_of(coded, "data.source=own_data.py:keyed", "data.source.hospitals=few")
    assert '[data.source] hospitals = "few": expected a whole number' in said


def test_files_that_do_not_compile_show_their_line(coded):
    (coded / "typo.py").write_text("x = 1\ndef f(:\n    pass\n", encoding="utf-8")
    assert "SyntaxError: invalid syntax (typo.py, line 2: def f(:)" in error_of(coded, "data.source=typo.py:f")
    (coded / "fails.py").write_text("import json\njson.loads('{')\n", encoding="utf-8")
    assert "(fails.py, line 2: json.loads('{'))" in error_of(coded, "data.source=fails.py:f")


def test_two_files_of_one_name_are_two_modules(coded, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "own_data.py").write_text("def arrays(): return [[0.0]] * 20, [0, 1] * 10", encoding="utf-8")
    assert len(population_of(coded, "data.source=own_data.py:arrays")[0]) == 10
    clients, _ = population_of(coded, "data.source=other/own_data.py:arrays", "data.partition={name='iid',clients=2}")
    assert clients.schema().features == (1,)


def test_a_file_named_like_a_library_does_not_replace_it(coded):
    (coded / "random.py").write_text("def load(): return [[0.0], [1.0]], [0, 1]", encoding="utf-8")
    import random

    assert error_of(coded, "data.source=random.py:load", "data.partition.clients=3")
    assert sys.modules["random"] is random


def test_an_algorithm_of_the_users(coded):
    text = (
        "from dataclasses import dataclass\nfrom insitu.core.local_sgd import LocalSGD\n"
        "@dataclass(frozen=True, kw_only=True)\nclass FedFoo(LocalSGD):\n    strength: float = 1.0\n"
        "    @classmethod\n    def example(cls): return cls()\n"
    )
    (coded / "fedfoo.py").write_text(text, encoding="utf-8")
    plan = plan_of(coded, "algorithm.name=fedfoo.py:FedFoo", "algorithm.strength=2")
    assert plan.algorithm.strength == 2.0
    assert "fedfoo.py:FedFoo has no key 'strenght'" in error_of(
        coded, "algorithm.name=fedfoo.py:FedFoo", "algorithm.strenght=2"
    )


def test_an_optimizer_of_the_users(coded):
    text = (
        "from dataclasses import dataclass\nfrom insitu.core.optim import Sgd\n"
        "@dataclass(frozen=True)\nclass Mine(Sgd):\n    pass\n"
    )
    (coded / "mine.py").write_text(text, encoding="utf-8")
    for change in ("algorithm.optimizer=mine.py:Mine", 'algorithm.optimizer={ name = "mine.py:Mine" }'):
        assert type(plan_of(coded, change).algorithm.optimizer).__name__ == "Mine"


def test_black_boxes(coded):
    learner = (
        'learner={ name = "sklearn", estimator = "sklearn.linear_model:SGDClassifier", arguments = { alpha = 1 } }'
    )
    plan = plan_of(coded, learner)
    assert plan.learner.config()["params"]["alpha"] == 1
    text = (
        "import numpy as np\n\nclass Mean:\n    def __init__(self, size=3): self.w = np.zeros(size)\n"
        "    def fit(self, x, y): self.w = x.mean(0)\n    def get_params(self): return self.w\n"
        "    def set_params(self, w): self.w = w\n\nmade = Mean(4)\n"
    )
    (coded / "boxes.py").write_text(text, encoding="utf-8")
    plan = plan_of(coded, 'learner={ name = "estimator", obj = "boxes.py:Mean", arguments = { size = 5 } }')
    assert plan.learner.obj.w.shape == (5,)
    plan = plan_of(coded, 'learner={ name = "estimator", obj = "boxes.py:made" }')
    assert plan.learner.obj.w.shape == (4,)
    said = error_of(coded, 'learner={ name = "estimator", obj = "boxes.py:made", arguments = { size = 5 } }')
    assert "is an object, not a class: leave arguments out" in said


@needs_torch
def test_modules_of_the_users(coded):
    (coded / "own_model.py").write_text(NET, encoding="utf-8")
    module = 'learner={ name = "torch", module = "own_model.py:Net", arguments = { hidden = 4 } }'
    learner = plan_of(coded, module).learner
    assert learner.init(0).shared["layers.0.weight"].shape == (4, 64)
    # Its first weights are the run's: another seed gives others.
    first, second = (learner.init(seed).shared["layers.0.weight"] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert learner.config()["module"] == {"object": "own_model.py:Net", "arguments": {"hidden": 4}}
    plan = plan_of(coded, module, "learner.loss=own_model.py:loss", 'learner.metrics=["accuracy", "own_model.py:loss"]')
    assert plan.learner.metric_names == ("loss", "accuracy", "loss")
    said = error_of(coded, module, "learner.arguments.hiden=4")
    assert "[learner.arguments]: Net has no key 'hiden': did you mean 'hidden'?" in said
    said = error_of(coded, 'learner={ name = "torch", module = "own_model.py:Broken" }')
    assert "NameError: name 'Linear' is not defined (own_model.py, line 15: self.layer = Linear(3))" in said


def test_a_library_of_an_extra_is_asked_for(coded, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    (coded / "frames.py").write_text("import pandas\n", encoding="utf-8")
    assert "pip install 'insitu[frames]'" in error_of(coded, "data.source=frames.py:load", kind=MissingExtra)
