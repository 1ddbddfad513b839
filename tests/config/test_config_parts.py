"""Configuration files: what they make."""

from __future__ import annotations

import tomllib
from datetime import timedelta

import numpy as np
import pytest
from config_cases import FILE, error_of, needs_torch, plan_of, population_of

import insitu
from insitu.algorithms.choco import Choco
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.fedprox import FedProx
from insitu.compress.quantize import Quantize
from insitu.compress.signs import Signs
from insitu.compress.topk import TopK
from insitu.config import load, of_tables, toml
from insitu.core.errors import ConfigError, DataError
from insitu.core.optim import Adam
from insitu.core.schedules import Cosine
from insitu.engines.inline import Inline
from insitu.learners.numpy import LogisticLearner
from insitu.privacy.clip import Clip
from insitu.reduce.neighbours import Neighbours
from insitu.rounds.buffered import Buffered
from insitu.rounds.cohort import Poisson, Uniform


def test_a_file_becomes_a_run(folder):
    built = load(folder / "insitu.toml").build()
    assert built.plan == insitu.Plan(FedAvg(), learner=LogisticLearner())
    assert len(built.clients) == 10
    assert built.clients.has_holdout()
    assert built.options == {"rounds": 3, "seed": 0, "engine": None, "store": None, "memory_budget": None}
    result = insitu.run(built.plan, built.clients, evaluate=built.evaluate, observers=[], **built.options)
    assert result.history[-1]["accuracy"] > 0.5
    assert "clients_accuracy" in result.history[-1]


def test_every_kind_of_part(folder):
    plan = plan_of(
        folder,
        'algorithm={ name = "fedprox", mu = 1, lr = { name = "cosine", lr = 0.1, rounds = 9 }, optimizer = "adam" }',
        "algorithm.server={ name = 'adam', beta1 = 0.5 }",
        "cohort={ name = 'uniform', clients = 4 }",
        "run.evaluate_cohort={ name = 'poisson', rate = 0.5 }",
        "run.evaluate_every=5",
        "run.block=2",
        "policy={ quorum = 0.5, deadline = 90 }",
        "stages=[{ name = 'clip', norm = 2 }]",
        "reduce.name=mean",
    )
    assert plan.algorithm == FedProx(mu=1.0, lr=Cosine(0.1, 9), optimizer="adam", server=Adam(beta1=0.5))
    assert plan.cohort == Uniform(4)
    assert plan.evaluate_cohort == Poisson(0.5)
    assert (plan.evaluate_every, plan.block) == (5, 2)
    assert (plan.policy.quorum, plan.policy.deadline) == (0.5, timedelta(seconds=90))
    assert plan.stages == (Clip(2.0),)
    assert plan.reduce.part_name() == "mean"


def test_compressors_are_found_by_name_like_other_stages(folder):
    stages = "stages=[{ name = 'clip' }, { name = 'topk', fraction = 0.05 }, { name = 'quantize', bits = 4, feedback = false }]"
    assert plan_of(folder, stages).stages == (Clip(1.0), TopK(0.05), Quantize(4))
    choco = plan_of(
        folder, "algorithm={ name = 'choco', gamma = 0.2 }", "stages=[{ name = 'signs', feedback = false }]"
    )
    assert (choco.algorithm, choco.stages) == (Choco(gamma=0.2), (Signs(feedback=False),))
    assert "did you mean 'powersgd'" in error_of(folder, "stages=[{ name = 'powersdg' }]")
    assert "bits" in error_of(folder, "stages=[{ name = 'quantize', bits = 5 }]")


def test_what_has_no_name_to_choose(folder):
    assert plan_of(folder, "buffered.size=3").buffered == Buffered(3)
    assert plan_of(folder, 'policy.deadline="00:05:00"').policy.deadline == timedelta(minutes=5)
    assert isinstance(plan_of(folder, "algorithm.name=gossip", "reduce.name=neighbours").reduce, Neighbours)


def test_methods_without_a_learner(folder):
    text = FILE.replace('[learner]\nname = "logistic"\n', "").replace('"fedavg"', '"kmeans"\nk = 10')
    (folder / "insitu.toml").write_text(text, encoding="utf-8")
    assert plan_of(folder).learner is None


def test_engines_and_stores(folder):
    config = load(folder / "insitu.toml", ["run.engine=inline", "run.store=runs/here.db"])
    assert config.engine() == Inline()
    assert config.store() == folder / "runs" / "here.db"
    assert load(folder / "insitu.toml", ["run.engine=auto"]).engine() is None


@needs_torch
def test_engines_with_settings(folder):
    engine = load(folder / "insitu.toml", ["run.engine.name=vectorized", "run.engine.lanes=4"]).engine()
    assert engine.config() == {"name": "vectorized", "lanes": 4, "compile": "auto", "device": None}


def test_what_is_written_is_read_again(folder):
    changes = ["algorithm.lr={ name = 'cosine', lr = 1e-5, rounds = 9 }", "stages=[{ name = 'clip', norm = 2 }]"]
    config = load(folder / "insitu.toml", changes)
    again = folder / "again.toml"
    again.write_text(config.to_toml(), encoding="utf-8")
    assert load(again).to_dict() == config.to_dict()
    assert load(again).plan() == config.plan()
    assert config.to_dict()["run"]["seed"] == 0  # defaults are filled in


def test_toml_says_values_as_toml_does():
    tables = {
        "a": {"text": 'tab\t "quoted" \x7f é', "odd key": True, "none": None, "inf": float("inf"), "list": [1, [2.5]]},
        "b": [{"table": {"deep": "er"}}, {"empty": {}}],
    }
    path_free = toml.dumps(tables)
    assert tomllib.loads(path_free) == {
        "a": {key: value for key, value in tables["a"].items() if value is not None},
        "b": tables["b"],
    }


# ---------------------------------------------------------------- data


def test_a_test_set_keeps_each_class_its_share(folder):
    _, test = population_of(folder, "data.test=0.1")
    assert len(test) == pytest.approx(180, abs=5)
    assert np.bincount(test.y).min() >= 17
    again, _ = population_of(folder, "data.test=0.1")
    assert not set(test.rows or ()) & set(again.pooled().rows)


def test_no_example_is_in_two_places(coded):
    text = "import numpy as np\ndef load(): return np.arange(200.0)[:, None], np.arange(200) % 4\n"
    (coded / "counted.py").write_text(text, encoding="utf-8")
    clients, test = population_of(coded, "data.source=counted.py:load")
    every = [clients.pooled().x, clients.pooled(holdout=True).x, test.x]
    assert sorted(np.concatenate(every).ravel()) == list(range(200))


def test_seeds_of_the_data_are_not_the_runs(folder):
    one, other = (population_of(folder, f"run.seed={seed}")[1] for seed in (0, 1))
    assert np.array_equal(one.x, other.x)
    assert not np.array_equal(one.x, population_of(folder, "data.seed=1")[1].x)


def test_files_that_are_not_there_say_where_they_can_be_had(folder):
    said = error_of(folder, 'data.source={ name = "mnist", root = "nowhere" }', kind=DataError)
    assert str(folder / "nowhere" / "mnist") in said


def test_tables_need_no_file():
    config = of_tables({"run": {"rounds": 1}, "data": {"source": "iris"}, "algorithm": {"name": "knn"}})
    with pytest.raises(ConfigError, match=r"the configuration, \[data\.partition\]: the source does not say who has"):
        config.build()
