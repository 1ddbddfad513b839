"""FederatedKMeans: scikit-learn's centres from the same start, on data that is in many places."""

import pickle
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score

from insitu.core.errors import DataError, PlanError
from insitu.data import load
from insitu.estimators import FederatedKMeans

IRIS = load_iris().data
DIGITS = load_digits().data
# Whole numbers are often equally far from two centres; then rounding decides in scikit-learn, and here their order.
DIGITS = DIGITS + np.random.default_rng(0).normal(0, 0.01, DIGITS.shape)
BLOBS, WHICH = make_blobs(400, centers=5, cluster_std=0.6, random_state=3)


def first(x, k):
    return x[np.random.default_rng(1).choice(len(x), k, replace=False)]


def lloyd(x, start, **options):
    return KMeans(len(start), init=start, n_init=1, algorithm="lloyd", **options).fit(x)


# ---------------------------------------------------------------- scikit-learn's answer


@pytest.mark.parametrize(("x", "k"), [(IRIS, 3), (BLOBS, 5), (DIGITS, 10)], ids=["iris", "blobs", "digits"])
def test_the_same_start_gives_scikit_learns_centres(x, k):
    start = first(x, k)
    ours = FederatedKMeans(k, init=start, tol=0).fit(x, groups=np.arange(len(x)) ** 2 % 11)
    central = lloyd(x, start, tol=0)
    np.testing.assert_allclose(ours.cluster_centers_, central.cluster_centers_, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(ours.labels_, central.labels_)
    assert ours.inertia_ == pytest.approx(central.inertia_, rel=1e-9)
    assert ours.n_iter_ == central.n_iter_


@pytest.mark.parametrize("tol", [1e-4, 1e-2, 0.3])
def test_tol_means_what_it_means_in_scikit_learn(tol):
    start = first(DIGITS, 10)
    ours = FederatedKMeans(10, init=start, tol=tol).fit(DIGITS)
    central = lloyd(DIGITS, start, tol=tol)
    assert ours.n_iter_ == central.n_iter_
    np.testing.assert_allclose(ours.cluster_centers_, central.cluster_centers_, rtol=0, atol=1e-9)
    assert len(ours.history_) == ours.n_iter_


def test_max_iter():
    start = first(DIGITS, 10)
    ours = FederatedKMeans(10, init=start, max_iter=2, tol=0).fit(DIGITS)
    central = lloyd(DIGITS, start, max_iter=2, tol=0)
    assert ours.n_iter_ == 2
    np.testing.assert_allclose(ours.cluster_centers_, central.cluster_centers_, rtol=0, atol=1e-9)
    assert ours.inertia_ == pytest.approx(central.inertia_, rel=1e-9)


def test_predict_transform_and_score_are_scikit_learns():
    start = first(IRIS, 3)
    ours, central = FederatedKMeans(3, init=start).fit(IRIS[:100]), lloyd(IRIS[:100], start)
    np.testing.assert_array_equal(ours.predict(IRIS), central.predict(IRIS))
    np.testing.assert_allclose(ours.transform(IRIS), central.transform(IRIS), atol=1e-9)
    assert ours.score(IRIS) == pytest.approx(central.score(IRIS))


# ---------------------------------------------------------------- the federated start


def test_the_clients_own_start_finds_the_blobs():
    model = FederatedKMeans(5).fit(BLOBS)
    assert adjusted_rand_score(WHICH, model.labels_) > 0.95
    assert model.inertia_ == pytest.approx(KMeans(5, n_init=10, random_state=0).fit(BLOBS).inertia_, rel=0.01)


def test_clients_that_each_have_one_cluster_are_no_harder():
    model = FederatedKMeans(5).fit(BLOBS, groups=WHICH)
    assert adjusted_rand_score(WHICH, model.labels_) > 0.95


def test_the_seed_decides():
    def centres(random_state):
        return FederatedKMeans(10, random_state=random_state, max_iter=2).fit(DIGITS).cluster_centers_

    np.testing.assert_array_equal(centres(4), centres(4))
    assert not np.array_equal(centres(4), centres(5))


def test_inertia_falls():
    history = FederatedKMeans(10).fit(DIGITS).history_
    _, inertia = history.column("inertia")
    assert all(later <= before for before, later in pairwise(inertia))


def test_heart_disease_at_four_hospitals():
    try:
        heart = load("heart")
    except DataError as error:
        pytest.skip(str(error).splitlines()[0])
    start = heart.x[[0, 300]]
    ours = FederatedKMeans(2, init=start, tol=0).fit(heart.x, groups=heart.keys)
    np.testing.assert_allclose(ours.cluster_centers_, lloyd(heart.x, start, tol=0).cluster_centers_, atol=1e-9)


# ---------------------------------------------------------------- manners


def test_frames_names_and_pickles():
    frame = pd.DataFrame(IRIS, columns=["a", "b", "c", "d"])
    model = FederatedKMeans(3).fit(frame, groups=pd.Series(np.arange(150) % 4))
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.get_feature_names_out().tolist() == [f"federatedkmeans{i}" for i in range(3)]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(frame), model.labels_)
    np.testing.assert_array_equal(FederatedKMeans(3).fit_predict(IRIS), FederatedKMeans(3).fit(IRIS).labels_)


def test_equal_rows():
    model = FederatedKMeans(2).fit(np.ones((6, 3)))
    assert model.inertia_ == 0
    assert model.n_iter_ == 1


def test_a_lost_centre_stays():
    start = np.vstack([first(IRIS, 2), np.full((1, 4), 1e3)])
    np.testing.assert_array_equal(FederatedKMeans(3, init=start).fit(IRIS).cluster_centers_[2], start[2])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": 151}, "n_samples=150 should be >= n_clusters=151"),
        ({"init": "k-means++"}, r"init='k-means\+\+'"),
        (
            {"n_clusters": 2, "init": IRIS[:3]},
            r"init has shape \(3, 4\): give n_clusters centres in the shape \(2, 4\)",
        ),
        ({"n_clusters": 3, "init": IRIS[:3, :2]}, r"init has shape \(3, 2\)"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1}, "tol=-1"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises((PlanError, DataError), match=match):
        FederatedKMeans(**options).fit(IRIS)


def test_before_fit():
    for method in ("predict", "transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(FederatedKMeans(), method)(IRIS)


def test_numbers_too_large_to_be_squared():
    with pytest.raises(DataError, match=r"client '.' cannot be clustered"), np.errstate(all="ignore"):
        FederatedKMeans(2, init=np.zeros((2, 4))).fit(IRIS * 1e200)
