"""XGBoost over worker processes: one process's trees, groups, text labels, missing values; deaths and silences end."""

import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from insitu.core.errors import DataError, EngineError, MissingExtra, PlanError
from insitu.estimators import DistributedXGBClassifier, DistributedXGBRegressor
from insitu.estimators.boosted import team

xgboost = pytest.importorskip("xgboost")

PLAIN = {"tree_method": "hist", "nthread": 1, "seed": 0}


def table(n=240, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 30, (n, 4)) / 8
    return x, np.sin(x[:, 0]) + 0.3 * x[:, 1] * x[:, 2] + rng.normal(scale=0.2, size=n)


def alone(x, y, trees, **params):
    """XGBoost in this process."""
    booster = xgboost.train(
        {**PLAIN, **params}, xgboost.QuantileDMatrix(x, y, max_bin=params.get("max_bin", 256)), trees
    )
    return lambda x: booster.predict(xgboost.DMatrix(x))


# ---------------------------------------------------------------- one process's trees


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_have_the_trees_of_one_process(workers):
    x, y = table()
    x[::7, 2] = np.nan
    model = DistributedXGBRegressor(10, max_depth=4, learning_rate=0.2, workers=workers).fit(x, y)
    assert model.n_workers_ == workers
    expected = alone(x, y, 10, max_depth=4, learning_rate=0.2)(x)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-5, atol=1e-6)


def test_a_worker_a_group_and_labels_of_text():
    """Groups of one species each: no worker sees another class, and all have the same trees."""
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = DistributedXGBClassifier(5, max_depth=3, params={"reg_lambda": 2.0}).fit(x, names, groups=names)
    assert model.n_workers_ == 3
    assert model.classes_.tolist() == sorted(set(names))
    expected = alone(x, y, 5, max_depth=3, reg_lambda=2.0, objective="multi:softprob", num_class=3)(x)
    np.testing.assert_allclose(model.predict_proba(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x), model.classes_[expected.argmax(axis=1)])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))


def test_with_a_sketch_it_is_as_good():
    """More distinct values than bins: within 0.002 of the area under the curve."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 5))
    score = x[:, 0] + np.sin(2 * x[:, 1]) + x[:, 2] ** 2 / 2 - 0.5
    y = (score + rng.normal(scale=0.5, size=6000) > 0).astype(int)
    model = DistributedXGBClassifier(20, max_depth=4, max_bin=64).fit(x[:3000], y[:3000])
    theirs = alone(x[:3000], y[:3000], 20, max_depth=4, max_bin=64, objective="binary:logistic")(x[3000:])
    scores = [roc_auc_score(y[3000:], each) for each in (model.predict_proba(x[3000:])[:, 1], theirs)]
    assert min(scores) > 0.9
    assert abs(scores[0] - scores[1]) <= 0.002


@pytest.mark.skipif("INSITU_DATA" not in os.environ, reason="adult is no bundled set: say where it is in INSITU_DATA")
@pytest.mark.long
def test_adult_is_as_good():
    from insitu.data import load

    adult = load("adult")
    x, y = np.asarray(adult.x, float)[:12000], np.asarray(adult.y)[:12000]
    train, test = slice(0, 8000), slice(8000, 12000)
    model = DistributedXGBClassifier(30).fit(x[train], y[train])
    theirs = alone(x[train], y[train], 30, objective="binary:logistic")(x[test])
    scores = [roc_auc_score(y[test], each) for each in (model.predict_proba(x[test])[:, 1], theirs)]
    assert abs(scores[0] - scores[1]) <= 0.002


@parametrize_with_checks(
    [DistributedXGBClassifier(5, max_depth=3, workers=1), DistributedXGBRegressor(5, max_depth=3, workers=1)]
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


# ---------------------------------------------------------------- deaths and silences


def start(monkeypatch, trees=100_000, timeout=60.0, world=2):
    """A training too long to end, in a thread: its processes once each has grown a tree, and what it raises."""
    processes, raised = [], []
    started = team._started
    folders = []

    def noted(folder, rank):
        folders.append(folder)
        processes.append(started(folder, rank))
        return processes[-1]

    def run():
        try:
            team.train([table(60, rank) for rank in range(world)], {**PLAIN, "max_bin": 256}, trees, timeout)
        except Exception as error:
            raised.append(error)

    monkeypatch.setattr(team, "_started", noted)
    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 100
    while time.monotonic() < until and not raised:
        if len(processes) == world and all(team._trees(folders[0], rank) for rank in range(world)):
            break
        time.sleep(0.02)
    assert not raised
    return processes, raised, thread


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_killed_ends_the_fit_with_its_name(monkeypatch, rank):
    processes, raised, thread = start(monkeypatch)
    os.kill(processes[rank].pid, signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(raised[0], EngineError)
    assert f"worker {rank} of 2 was killed by SIGKILL after" in str(raised[0])
    assert all(process.poll() is not None for process in processes)


@pytest.mark.long
def test_a_worker_that_is_stopped_ends_the_fit_after_the_timeout(monkeypatch):
    processes, raised, thread = start(monkeypatch, timeout=10.0)
    os.kill(processes[1].pid, signal.SIGSTOP)
    thread.join(90)
    assert not thread.is_alive()
    assert isinstance(raised[0], EngineError)
    assert all(process.poll() is not None for process in processes)
    # Either we see the silence first, or the other worker, whose wait is as long, gives up and says so.
    assert "worker 1 is stopped" in str(raised[0]) or "worker 0 of 2 ended" in str(raised[0])


def test_what_xgboost_refuses_is_told_with_its_words():
    x, y = table(40)
    with pytest.raises(
        EngineError, match=r"worker \d of 2 ended with status 1 .*\n.*Unknown objective function: `no_such`"
    ):
        DistributedXGBRegressor(2, params={"objective": "no_such"}).fit(x, y)


# ---------------------------------------------------------------- refused before anything starts


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"workers": 0}, PlanError, "workers=0"),
        ({"workers": 41}, DataError, "workers=41 and n_samples=40"),
        ({"n_estimators": 0}, PlanError, "n_estimators=0"),
        ({"max_depth": 0}, PlanError, "max_depth=0"),
        ({"learning_rate": -1}, PlanError, "learning_rate=-1"),
        ({"timeout": 0}, PlanError, "timeout=0"),
        ({"params": {"tree_method": "exact"}}, PlanError, "tree_method='exact'"),
        ({"params": {"device": "cuda"}}, PlanError, "device='cuda'"),
        ({"params": {"eta": 0.1}}, PlanError, "eta=0.1"),
        ({"params": {"objective": "reg:squarederror"}}, PlanError, "objective"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_value(monkeypatch, arguments, error, says):
    monkeypatch.setattr(team, "_started", lambda *_: pytest.fail("a worker was started"))
    x, y = table(40)
    with pytest.raises(error, match=says):
        DistributedXGBClassifier(**arguments).fit(x, y > 0)


def test_too_many_groups_are_refused():
    x, y = table(100)
    with pytest.raises(PlanError, match="100 worker processes are more than 64"):
        DistributedXGBRegressor().fit(x, y, groups=np.arange(100))
    with pytest.raises(DataError, match="only one class"):
        DistributedXGBClassifier().fit(x, np.zeros(100))


def test_without_xgboost_the_cure_is_told(monkeypatch):
    x, y = load_breast_cancer(return_X_y=True)
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtra, match=r"pip install 'insitu\[trees\]'"):
        DistributedXGBClassifier().fit(x, y)


def test_it_is_cloned_with_its_arguments():
    model = DistributedXGBClassifier(7, workers=3, params={"subsample": 0.5})
    assert clone(model).get_params() == model.get_params()
