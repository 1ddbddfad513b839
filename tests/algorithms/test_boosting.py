"""Boosting: XGBoost's trees, whoever holds the rows; with few bins as good ones; what cannot be grown is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import Raw
from sklearn.metrics import roc_auc_score

import insitu
from insitu.algorithms.boosting import BoostedTrees, Boosting, _edges, _summaries
from insitu.core.errors import DataError, PlanError, RoundError
from insitu.core.types import Client, Data
from insitu.data import Clients
from insitu.engines.inline import Inline

OBJECTIVES = {"squared": "reg:squarederror", "logistic": "binary:logistic"}


def table(n=200, values=20, seed=0):
    """x [n, 4] of so many distinct values, and numbers y [n] that depend on several columns at once."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-values // 2, values // 2, (n, 4)) / 4
    return x, np.sin(x[:, 0]) + 0.3 * x[:, 1] * x[:, 2] + rng.normal(scale=0.3, size=n)


def grow(algorithm, x, y, parts=None, rounds=None, **options):
    plan = insitu.Plan(algorithm)
    clients = Clients.from_arrays(x, y, parts, **options)
    rounds = algorithm.rounds if rounds is None else rounds
    return insitu.run(plan, clients, rounds=rounds, engine=Inline(), seed=0, store=None, observers=())


def by_xgboost(x, y, trees, loss, **params):
    """Scores [n] of XGBoost's histogram training in one process."""
    xgboost = pytest.importorskip("xgboost")
    params = {"tree_method": "hist", "objective": OBJECTIVES[loss], "nthread": 1, **params}
    booster = xgboost.train(params, xgboost.QuantileDMatrix(x, y, max_bin=params.get("max_bin", 256)), trees)
    return lambda x: booster.predict(xgboost.DMatrix(x), output_margin=True)


# ---------------------------------------------------------------- XGBoost's trees


@pytest.mark.parametrize("clients", [1, 3, 7])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_trees_are_xgboosts(loss, clients):
    x, y = table()
    y = y if loss == "squared" else (y > 0.2).astype(int)
    parts = np.array_split(np.random.default_rng(clients).permutation(len(x)), clients)
    algorithm = Boosting(trees=8, depth=4, loss=loss)
    ours = grow(algorithm, x, y, parts).model().margins(x)
    assert np.std(ours) > 0.1
    np.testing.assert_allclose(ours, by_xgboost(x, y, 8, loss, max_depth=4)(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"lr": 0.05}, {"eta": 0.05}),
        ({"reg_lambda": 7.5}, {"reg_lambda": 7.5}),
        ({"min_child_weight": 12.0}, {"min_child_weight": 12.0}),
        ({"depth": 1}, {"max_depth": 1}),
        ({"reg_lambda": 0.0, "min_child_weight": 0.0}, {"reg_lambda": 0.0, "min_child_weight": 0.0}),
    ],
)
def test_each_argument_is_xgboosts(ours, theirs):
    x, y = table(seed=3)
    algorithm = Boosting(**{"trees": 5, "depth": 3, "loss": "squared", **ours})
    found = grow(algorithm, x, y, np.array_split(np.arange(len(x)), 3)).model().margins(x)
    np.testing.assert_allclose(
        found, by_xgboost(x, y, 5, "squared", **{"max_depth": 3, **theirs})(x), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_fewer_bins_than_values_it_is_as_good(seed):
    """Bins are other quantiles than XGBoost's sketch gives."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6000, 5))
    score = x[:, 0] + np.sin(2 * x[:, 1]) + x[:, 2] ** 2 / 2 - 0.5
    y = (score + rng.normal(scale=0.5, size=6000) > 0).astype(int)
    parts = np.array_split(rng.permutation(3000), 4)
    model = grow(Boosting(trees=20, depth=4, bins=64), x[:3000], y[:3000], parts).model()
    theirs = by_xgboost(x[:3000], y[:3000], 20, "logistic", max_depth=4, max_bin=64)(x[3000:])
    scores = [roc_auc_score(y[3000:], each) for each in (model.margins(x[3000:]), theirs)]
    assert min(scores) > 0.9
    assert abs(scores[0] - scores[1]) <= 0.002


def test_trees_that_end_early_spare_their_rounds():
    x = np.repeat([[0.0], [1.0]], 10, axis=0)
    y = np.repeat([1.0, 5.0], 10)
    algorithm = Boosting(trees=3, depth=6, loss="squared")
    result = grow(algorithm, x, y, np.array_split(np.arange(20), 2))
    trees = result.history.column("trees")[1]
    assert trees[:6] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]  # bins; then a split, and a level without one
    assert trees[-1] == 3.0
    # By hand: around the mean 3, G = ±20 and H = 10 on each side, so that a tree leaves 1 - 0.3 · 10/11 of the rest.
    left = 2 * (1 - 0.3 * 10 / 11) ** 3
    np.testing.assert_allclose(result.model().predict(x), y + np.sign(3 - y) * left, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 99))
def test_no_matter_who_holds_which_rows(n, clients, seed):
    x, _ = table(n, 8, seed)
    # Whole numbers add without rounding, so that the first tree is the same to the bit.
    y = np.random.default_rng(seed).integers(0, 2, n).astype(float)
    y[:2] = 0, 1
    algorithm = Boosting(trees=1, depth=3, loss="squared", min_child_weight=0.5)
    whole = grow(algorithm, x, y).model()
    parts = [p for p in np.array_split(np.random.default_rng(seed).permutation(n), clients) if len(p)]
    split = grow(algorithm, x, y, parts).model()
    np.testing.assert_allclose(split.margins(x), whole.margins(x), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what it tells


def test_the_loss_is_that_of_whole_trees():
    x, y = table()
    result = grow(Boosting(trees=2, depth=2, loss="squared"), x, y, np.array_split(np.arange(200), 3))
    losses = [row.get("train_loss") for row in result.history]
    assert losses[0] is None
    assert losses[1] == losses[2] == pytest.approx(np.var(y), rel=1e-5)
    one = grow(Boosting(trees=1, depth=2, loss="squared"), x, y).model()
    assert losses[3] == losses[4] == pytest.approx(np.mean((one.predict(x) - y) ** 2), rel=1e-5)


def test_probabilities_and_labels():
    x, y = table()
    model = grow(Boosting(trees=3, depth=2), x, (y > 0).astype(int)).model()
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-model.margins(x).astype(float))), rtol=1e-5)
    np.testing.assert_array_equal(model.predict(x), p.argmax(axis=1))
    with pytest.raises(PlanError, match="squared"):
        BoostedTrees("squared", model.base, model.trees).predict_proba(x)
    with pytest.raises(DataError, match="features"):
        model.predict(x[:, :1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=300), st.integers(2, 16), st.integers(1, 4))
def test_bins_hold_about_as_much(column, bins, clients):
    x = np.array(column, np.float32)
    told = [_summaries(part[:, None], 8 * bins)["0"] for part in np.array_split(x, clients) if len(part)]
    assert sum(t["count"].sum() for t in told) == len(x)
    edges = _edges(*(np.concatenate([t[name] for t in told]) for name in ("value", "count")), bins)
    distinct = np.unique(x)
    assert len(edges) < bins
    assert (np.diff(edges) > 0).all()
    assert np.isin(edges, distinct[1:]).all()
    if len(distinct) <= bins:
        np.testing.assert_array_equal(edges, distinct[1:])
        return
    # No bin holds much more than its share, but for a value that does so by itself.
    held = np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1)
    assert held.max() <= 2 * len(x) / bins + np.unique(x, return_counts=True)[1].max() + clients * len(x) / (8 * bins)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([[1.0], [2.0]], [0, 2], "label 2"),
        ([[1.0], [np.nan]], [0, 1], "NaN"),
        ([[1.0], [1e300]], [0, 1], "float32"),
        ([[1.0], [2.0]], None, "no labels"),
    ],
)
def test_what_cannot_be_grown_on_names_the_client(x, y, says):
    with pytest.raises((DataError, RoundError), match=says):
        grow(Boosting(trees=1), np.array(x), None if y is None else np.array(y))


def test_one_class_only_is_refused():
    with pytest.raises(DataError, match="both classes"):
        grow(Boosting(trees=1), np.eye(3), np.ones(3, int))


def test_clients_of_different_width_are_refused():
    clients = [Client(str(d), Data(np.ones((3, d)), np.arange(3.0))) for d in (2, 3)]
    plan = insitu.Plan(Boosting(trees=1, loss="squared"))
    with pytest.raises(DataError, match="client '3' told columns"):
        insitu.run(plan, Raw(*clients), rounds=3, engine=Inline(), store=None, observers=())


def test_bounds_of_arguments():
    with pytest.raises(PlanError, match="depth=13"):
        Boosting(depth=13)
    with pytest.raises(PlanError, match="bins=1"):
        Boosting(bins=1)
