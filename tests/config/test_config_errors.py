"""Overrides, and what is said of configurations that make nothing."""

from __future__ import annotations

import re

import pytest
from config_cases import FILE, error_of, plan_of

from insitu.config import load
from insitu.core.errors import ConfigError
from insitu.core.optim import Adam
from insitu.core.schedules import Cosine
from insitu.privacy.clip import Clip


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("algorithm.lr=0.5", 0.5),
        ("algorithm.lr = 1", 1.0),
        ('algorithm.lr.name="cosine"', None),
        ("algorithm.batch_size=7", None),
        ("algorithm.optimizer=adam", None),
        ('algorithm.optimizer="adam"', None),
    ],
)
def test_overrides_are_toml_or_bare_words(folder, change, value):
    if "cosine" in change:
        plan = plan_of(folder, change, "algorithm.lr.lr=0.5", "algorithm.lr.rounds=3")
        assert plan.algorithm.lr == Cosine(0.5, 3)
    elif value is not None:
        assert plan_of(folder, change).algorithm.lr == value
    else:
        key, _, said = change.partition("=")
        assert str(getattr(plan_of(folder, change).algorithm, key.partition(".")[2])) == said.strip('"')


def test_overrides_reach_into_names_and_lists(folder):
    changes = ["stages=[{ name = 'clip' }]", "stages.0.norm=3", "algorithm.server=adam", "algorithm.server.beta1=0.5"]
    plan = plan_of(folder, *changes)
    assert plan.stages == (Clip(3.0),)
    assert plan.algorithm.server == Adam(beta1=0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("algorithm.lr", "give TABLE.KEY=VALUE"),
        ("=3", "give TABLE.KEY=VALUE"),
        ("run.rounds.more=3", "there is 3 where 'more' should be a key"),
        ("stages=[1,", "--set stages=[1,: "),
        ("stages.x.norm=3", "'x' is not a place in a list of 1"),
    ],
)
def test_overrides_that_make_no_sense(folder, change, said):
    (folder / "insitu.toml").write_text(FILE + "[[stages]]\nname = 'clip'\n", encoding="utf-8")
    assert said in error_of(folder, change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("algoritm.lr=1", "insitu.toml: a configuration has no key 'algoritm': did you mean 'algorithm'?"),
        ("algorithm.epoch=1", "insitu.toml, [algorithm]: fedavg has no key 'epoch': did you mean 'epochs'?"),
        ("algorithm.zzz=1", "fedavg has no key 'zzz': there are lr, epochs, steps"),
        ("algorithm.epochs=three", 'insitu.toml, [algorithm] epochs = "three": expected a whole number'),
        ("algorithm.epochs=1.5", "epochs = 1.5: expected a whole number"),
        ("algorithm.epochs=true", "epochs = true: expected a whole number"),
        ("algorithm.lr=fast", "[algorithm.lr]: there is no schedule 'fast': there are exponential, step, cosine"),
        ("algorithm.lr=nan", "[algorithm]: Expected lr=nan to be a finite number"),
        ("algorithm.lr=-1", "insitu.toml, [algorithm]: Expected lr=-1.0 > 0"),
        ("algorithm.lr={ name = 'cosine', lr = 1 }", "[algorithm.lr]: cosine needs the key 'rounds' (a whole number)"),
        ("algorithm.weights=most", 'weights = "most": expected "examples" or "uniform"'),
        ("algorithm.server=adem", "[algorithm.server]: there is no optimizer 'adem': did you mean 'adam'?"),
        ("algorithm.server={ beta1 = 0.5 }", "[algorithm.server]: the key name is missing"),
        ("algorithm.name=fedprx", "algorithms has no 'fedprx': did you mean 'fedprox'?"),
        ("algorithm.name=3", "[algorithm] name = 3: expected text"),
        ("algorithm=fedavg", 'insitu.toml: algorithm = "fedavg": expected a table'),
        ("learner.name=logistics", "[learner]: there is no learner 'logistics': did you mean 'logistic'?"),
        ("learner.classes=1", "[learner]: Expected classes=1 to hold at least two labels"),
        ("learner.name=torch", "[learner]: torch needs the key 'module' (code, such as 'model.py:Net')"),
        ("run.rounds=many", 'insitu.toml, [run] rounds = "many": expected a whole number'),
        ("run.store=true", "[run] store = true: expected text or false"),
        ("run.engine=inlin", "[run.engine]: engines has no 'inlin': did you mean 'inline'?"),
        ("run.engine.name=inline", "[run.engine]: inline has no key 'lanes', nor any other"),
        ("data.source=digit", "[data.source]: there is no data set 'digit': did you mean 'digits'?"),
        ("data.source.scal=true", "[data.source]: digits has no key 'scal': did you mean 'scale'?"),
        ("data.partition=dirichle", "[data.partition]: there is no partition 'dirichle': did you mean 'dirichlet'?"),
        ("data.partition=by_key", "there is no partition 'by_key'"),
        ("data.partition=natural", "the source has no natural clients"),
        ("data.partition.alpha=0", "insitu.toml, [data.partition]: Expected alpha=0.0 > 0"),
        ("data.partition.clients=9999", "Expected clients=9999 times least=1 to be at most the 1438 examples"),
        ("data.holdout=1", "Expected holdout=1.0 < 1"),
        ("data.test=1.0", "[data] test = 1.0: expected a fraction between 0 and 1"),
        ("data.test=0.0001", "that is 0 of 1797 examples"),
        ("cohort.name=unifrom", "[cohort]: there is no cohort 'unifrom': did you mean 'uniform'?"),
        ("cohort.name=uniform", "[cohort]: Uniform(clients=None, fraction=None): give one of clients and fraction"),
        ("policy.quorum=2", "[policy]: Expected 0 <= quorum=2.0 <= 1"),
        ("policy.deadline=soon", 'deadline = "soon": expected a duration (seconds, or "hh:mm:ss")'),
        ("stages=[{ name = 'clap' }]", "[stages]: there is no stage 'clap': did you mean 'clip'?"),
        ("reduce.name=meen", "[reduce]: reduce has no 'meen'"),
        ("buffered.siz=3", "[buffered]: this table has no key 'siz': did you mean 'size'?"),
        ("algorithm.name=knn", "[algorithm]: "),
    ],
)
def test_errors_name_the_place_and_the_nearest_right_word(folder, change, said):
    changes = [change] if "engine.name" not in change else [change, "run.engine.lanes=3"]
    if change == "algorithm.name=knn":
        changes.append("algorithm.lr=1")
    assert said in error_of(folder, *changes)


def test_parts_that_do_not_fit(folder):
    text = (folder / "insitu.toml").read_text(encoding="utf-8").replace('[learner]\nname = "logistic"\n', "")
    (folder / "insitu.toml").write_text(text, encoding="utf-8")
    assert error_of(folder).startswith("insitu.toml: FedAvg trains a model")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nrounds = 0,1\n", "bad.toml, line 2: `rounds = 0,1`: "),
        ("[run]\n[run]\n", "bad.toml, line 2: `[run]`: "),
        ("[run\n", "bad.toml, line 1: `[run`: "),
        ('[run]\nstore = "', 'bad.toml, line 2: `store = "`: '),
        ("", "bad.toml: a configuration needs the key 'run' (a table)"),
    ],
)
def test_text_that_is_not_toml(tmp_path, text, said):
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(tmp_path / "bad.toml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"[run] # \xe9")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load(tmp_path / "latin.toml")
