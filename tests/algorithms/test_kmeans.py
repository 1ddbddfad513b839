"""KMeans: Lloyd's algorithm on the pooled data, whoever holds them; what cannot be clustered is refused."""

import numpy as np
import pytest
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import Raw

import insitu
from insitu.algorithms.kmeans import Centers, KMeans, assign, cluster
from insitu.core.errors import DataError, PlanError, RoundError
from insitu.core.types import Client, Data
from insitu.data import Clients, load
from insitu.data.partition import dirichlet, iid

IRIS = load("iris")
BLOBS = np.concatenate([np.random.default_rng(7).normal(c, 0.3, size=(40, 2)) for c in (0, 4, 8)])


def train(algorithm, clients, rounds, **options):
    return insitu.run(insitu.Plan(algorithm), clients, rounds=rounds, store=None, observers=(), **options)


def people(x, parts=None, **options):
    return Clients.from_arrays(x, None, parts, **options)


def sorted_rows(centers):
    return centers[np.lexsort(centers.T)]


# ---------------------------------------------------------------- Lloyd's algorithm


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("parts", [None, iid(150, 10), dirichlet(IRIS.y, 7, alpha=0.2)], ids=["one", "iid", "skewed"])
def test_a_round_is_an_iteration_of_lloyd(rounds, parts):
    start = IRIS.x[[0, 60, 120]]
    model = train(KMeans(k=3, start=start), people(IRIS.x, parts), rounds).model()
    central = sklearn.cluster.KMeans(3, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=rounds)
    np.testing.assert_allclose(model.cluster_centers_, central.fit(IRIS.x).cluster_centers_, rtol=0, atol=1e-12)


def test_the_history_has_inertia_at_the_rounds_start_and_shift():
    start = IRIS.x[[0, 60, 120]]
    clients = people(IRIS.x, iid(150, 6))
    history = train(KMeans(k=3, start=start), clients, 3).history
    first, second = history[0], history[1]
    d2 = ((IRIS.x[:, None] - start) ** 2).sum(2)
    assert first["inertia"] == pytest.approx(d2.min(1).sum())
    after = train(KMeans(k=3, start=start), clients, 1).model().cluster_centers_
    assert first["shift"] == pytest.approx(np.linalg.norm(after - start))
    assert second["inertia"] < first["inertia"]
    assert first["train_loss"] == pytest.approx(first["inertia"] / 150)


def test_it_stands_still_once_it_has_converged():
    history = train(KMeans(k=3, start=IRIS.x[[0, 60, 120]]), people(IRIS.x, iid(150, 6)), 20).history
    assert history[-1]["shift"] == 0
    assert history[-1]["inertia"] == history[-2]["inertia"]


def test_a_centre_without_examples_stays_where_it_is():
    start = np.array([[0.0, 0.0], [4.0, 4.0], [99.0, -99.0]])
    centers = train(KMeans(k=3, start=start), people(BLOBS, iid(120, 5)), 4).model().cluster_centers_
    np.testing.assert_array_equal(centers[2], start[2])
    assert np.isfinite(centers).all()


def test_an_example_between_two_centres_goes_to_the_first():
    x = np.array([[0.0], [2.0], [1.0]])
    centers = train(KMeans(k=2, start=[[0.0], [2.0]]), people(x, [[0], [1, 2]]), 1).model().cluster_centers_
    np.testing.assert_array_equal(centers, [[0.5], [2.0]])


def test_more_centres_than_examples_may_be_given_as_a_start():
    x = np.array([[0.0], [5.0]])
    result = train(KMeans(k=3, start=[[0.0], [4.0], [9.0]]), people(x, [[0], [1]]), 1)
    np.testing.assert_array_equal(result.model().cluster_centers_, [[0.0], [5.0], [9.0]])


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_the_partition_does_not_matter(seed, clients):
    start = BLOBS[[0, 50, 100]]
    pooled = train(KMeans(k=3, start=start), people(BLOBS), 3).model().cluster_centers_
    parted = train(KMeans(k=3, start=start), people(BLOBS, iid(len(BLOBS), clients, seed)), 3).model()
    np.testing.assert_allclose(parted.cluster_centers_, pooled, rtol=1e-12)


# ---------------------------------------------------------------- first centres


def test_first_centres_of_the_clients_find_the_clusters():
    clients = people(BLOBS, dirichlet(np.repeat([0, 1, 2], 40), 6, alpha=0.3))
    centers = train(KMeans(k=3), clients, 6).model().cluster_centers_
    np.testing.assert_allclose(sorted_rows(centers), [[0, 0], [4, 4], [8, 8]], atol=0.2)


def test_first_centres_lead_near_the_best_that_there_is():
    best = sklearn.cluster.KMeans(3, n_init=20, random_state=0).fit(IRIS.x).inertia_
    for seed in range(8):
        clients = people(IRIS.x, dirichlet(IRIS.y, 8, alpha=0.3, seed=seed))
        assert train(KMeans(k=3), clients, 12, seed=seed).history[-1]["inertia"] < 1.02 * best


def test_round_one_makes_the_centres_and_measures_nothing():
    history = train(KMeans(k=3), people(BLOBS, iid(120, 6)), 2).history
    assert "inertia" not in history[0]
    assert history[1]["inertia"] > 0


def test_the_seed_decides_the_first_centres():
    clients = people(IRIS.x, iid(150, 10))
    one, again, other = (train(KMeans(k=5), clients, 1, seed=seed).model().cluster_centers_ for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_clients_smaller_than_k_tell_what_they_have():
    x = np.arange(6.0)[:, None]
    centers = train(KMeans(k=4), people(x, [[0], [1], [2, 3], [4, 5]]), 3).model().cluster_centers_
    assert centers.shape == (4, 1)
    assert np.isfinite(centers).all()


def test_equal_examples_make_equal_centres():
    x = np.ones((9, 2))
    result = train(KMeans(k=3), people(x, iid(9, 3)), 3)
    np.testing.assert_array_equal(result.model().cluster_centers_, np.ones((3, 2)))
    assert result.history[-1]["inertia"] == 0


def test_cluster_weighs_points():
    x = np.array([[0.0], [1.0], [10.0]])
    centers, counts = cluster(x, np.array([3.0, 1.0, 2.0]), 2, np.random.default_rng(0))
    np.testing.assert_allclose(sorted_rows(centers), [[0.25], [10.0]])
    assert sorted(counts) == [2.0, 4.0]


def test_assign_counts_sums_and_inertia():
    sums, counts, inertia = assign(np.array([[1.0], [2.0], [7.0]]), np.array([1.0, 2.0, 1.0]), np.array([[0.0], [8.0]]))
    np.testing.assert_array_equal(sums, [[5.0], [7.0]])
    np.testing.assert_array_equal(counts, [3.0, 1.0])
    assert inertia == 1 + 2 * 4 + 1


# ---------------------------------------------------------------- evaluation and the model


@pytest.mark.parametrize("labelled", [True, False])
def test_evaluation_measures_the_mean_squared_distance(labelled):
    train_x, test_x = IRIS.x[::2], IRIS.x[1::2]
    evaluate = (test_x, IRIS.y[1::2]) if labelled else test_x
    result = train(KMeans(k=3), people(train_x, iid(75, 5)), 4, evaluate=evaluate)
    d2 = ((test_x[:, None] - result.model().cluster_centers_) ** 2).sum(2)
    assert result.history[-1]["loss"] == pytest.approx(d2.min(1).mean())


def test_clients_evaluate_on_what_they_hold_out():
    clients = people(IRIS.x, iid(150, 5), holdout=0.2)
    result = train(KMeans(k=3), clients, 3)
    held = clients.pooled(holdout=True).x
    d2 = ((held[:, None] - result.model().cluster_centers_) ** 2).sum(2)
    assert result.history[-1]["clients_loss"] == pytest.approx(d2.min(1).mean())


def test_the_model_predicts_the_nearest_centre():
    model = Centers(np.array([[0.0, 0.0], [10.0, 0.0]]))
    np.testing.assert_array_equal(model.predict([[1, 0], [9, 1], [5, 0]]), [0, 1, 0])
    with pytest.raises(DataError, match="x has 3 features, the centres have 2"):
        model.predict([[1, 2, 3]])


def test_labels_play_no_part():
    names = np.array(["a", "b", "c"])[IRIS.y]
    parts = iid(150, 4)
    labelled = train(KMeans(k=3), Clients.from_arrays(IRIS.x, names, parts), 2).model().cluster_centers_
    np.testing.assert_array_equal(labelled, train(KMeans(k=3), people(IRIS.x, parts), 2).model().cluster_centers_)


def test_images_are_points_like_any_other():
    x = np.random.default_rng(0).normal(size=(20, 3, 4))
    assert train(KMeans(k=2), people(x, iid(20, 2)), 2).model().cluster_centers_.shape == (2, 12)


def test_equal_plans_have_equal_digests():
    given = IRIS.x[[0, 60, 120]]
    assert KMeans(k=3, start=given) == KMeans(k=3, start=given.tolist())
    assert hash(KMeans(k=3, start=given)) == hash(KMeans(k=3, start=given.tolist()))
    assert insitu.Plan(KMeans(k=3, start=given)).config()["algorithm"]["start"] == given.tolist()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 2.5}, "k=2.5"),
        ({"k": 3, "start": [[0.0], [1.0]]}, r"start has shape \(2, 1\): give k=3 centres"),
        ({"k": 2, "start": [0.0, 1.0]}, "start has shape"),
        ({"k": 1, "start": [[np.nan]]}, "NaN or Inf"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(PlanError, match=match):
        KMeans(**options)


def test_more_centres_than_examples():
    with pytest.raises(DataError, match="k=9 centres, but all clients together told 6"):
        train(KMeans(k=9), people(np.arange(6.0)[:, None], iid(6, 3)), 1)


def test_a_start_of_another_width():
    with pytest.raises(RoundError, match="client '0' has 4 features, the centres have 2"):
        train(KMeans(k=1, start=[[0.0, 0.0]]), people(IRIS.x, iid(150, 3)), 1)


def test_clients_of_different_widths():
    clients = Raw(Client("a", Data(np.ones((3, 2)))), Client("b", Data(np.ones((3, 5)))))
    with pytest.raises(DataError, match=r"client 'b' told candidates/centers in shape \(2, 5\), client 'a'.*\(2, 2\)"):
        train(KMeans(k=2), clients, 1)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.array([[1.0], [np.nan]]), "client 'b' has NaN or Inf in x"),
        (np.array([["red"], ["blue"]]), "client 'b' has x of type <U4"),
        ({"age": np.ones(2), "height": np.ones(2)}, r"client 'b' has x as columns \{age, height\}: stack them"),
    ],
    ids=["nan", "text", "columns"],
)
def test_data_that_cannot_be_clustered(x, match):
    plan = insitu.Plan(KMeans(k=1), policy=insitu.Policy(quorum=1.0, retries=0))
    clients = Raw(Client("a", Data(np.ones((2, 1)))), Client("b", Data(x)))
    with pytest.raises(RoundError, match=match):
        insitu.run(plan, clients, rounds=1, store=None, observers=())


def test_a_client_that_fails_is_left_out_and_counted():
    clients = Raw(Client("a", Data(np.array([[1.0], [3.0]]))), Client("b", Data(np.array([[np.inf]]))))
    result = train(KMeans(k=1, start=[[0.0]]), clients, 1)
    assert result.history[-1]["failed"] == 1
    np.testing.assert_array_equal(result.model().cluster_centers_, [[2.0]])


def test_a_learner_is_not_needed():
    with pytest.raises(PlanError, match="KMeans needs no learner"):
        insitu.Plan(KMeans(k=2), learner=object())
