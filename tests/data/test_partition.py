"""Partitions: what every one of them promises, and what each is for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core.errors import DataError, PlanError
from insitu.data.partition import by_key, describe, dirichlet, iid, quantity_skew, shards

MAKERS = {
    "iid": lambda y, k, **a: iid(y, k, **a),
    "iid of n": lambda y, k, **a: iid(len(y), k, **a),
    "dirichlet": lambda y, k, **a: dirichlet(y, k, 0.5, **a),
    "dirichlet, skewed": lambda y, k, **a: dirichlet(y, k, 0.01, **a),
    "shards": lambda y, k, **a: shards(y, k, 1, **a),
    "quantity_skew": lambda y, k, **a: quantity_skew(y, k, **a),
    "quantity_skew, wide": lambda y, k, **a: quantity_skew(len(y), k, 3.0, **a),
    "quantity_skew by alpha": lambda y, k, **a: quantity_skew(y, k, alpha=0.1, **a),
}


@pytest.fixture(params=MAKERS, scope="module")
def make(request):
    return MAKERS[request.param]


def check_is_partition(parts, n, clients, least):
    assert len(parts) == clients
    assert all(part.dtype == np.int64 and part.ndim == 1 for part in parts)
    assert all(len(part) >= least for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)), "disjoint, and covers all"
    assert all((np.diff(part) > 0).all() for part in parts), "ascending"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_example_has_one_client_and_every_client_enough(make, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=80), label="labels"))
    clients = data.draw(st.integers(1, len(labels)), label="clients")
    least = data.draw(st.integers(1, len(labels) // clients), label="least")
    seed = data.draw(st.integers(-3, 2**40), label="seed")
    check_is_partition(make(labels, clients, seed=seed, least=least), len(labels), clients, least)


def test_the_seed_decides(make):
    y = np.random.default_rng(0).integers(0, 10, 500)
    first, again, other = (make(y, 20, seed=seed) for seed in (7, 7, 8))
    assert all(map(np.array_equal, first, again))
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(first, other, strict=True))


def test_as_many_clients_as_examples(make):
    check_is_partition(make(np.arange(30) % 3, 30, seed=1), 30, 30, 1)


@pytest.mark.parametrize("clients", [0, -1, 2.5, "3", True, None, np.nan])
def test_the_number_of_clients_is_whole(make, clients):
    with pytest.raises(PlanError, match="clients="):
        make(np.zeros(10, int), clients)


@pytest.mark.parametrize("least", [0, 1.5])
def test_least_is_whole(make, least):
    with pytest.raises(PlanError, match="least="):
        make(np.zeros(10, int), 2, least=least)


def test_too_few_examples(make):
    with pytest.raises(PlanError, match=r"clients=4 times least=3 .* 10 examples .* at most 3 clients"):
        make(np.zeros(10, int), 4, least=3)


def test_seed_is_whole(make):
    with pytest.raises(PlanError, match=r"seed=0\.5"):
        make(np.zeros(10, int), 2, seed=0.5)


@pytest.mark.parametrize("maker", [iid, dirichlet, shards, quantity_skew])
class TestLabels:
    def test_not_one_dimensional(self, maker):
        with pytest.raises(DataError, match=r"labels have shape \(4, 2\): expected .* \[n\]"):
            maker(np.zeros((4, 2)), 2)

    @pytest.mark.parametrize(
        "labels", [[1.0, np.nan, 2.0], ["a", None, "b"], np.array([1, np.nan, 2], object)], ids=repr
    )
    def test_missing(self, maker, labels):
        with pytest.raises(DataError, match="at row 1"):
            maker(labels, 2)

    def test_text_lists_frames_and_tensors(self, maker):
        pandas, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")
        text = ["ill", "well", "ill", "well", "well", "ill"]
        codes = np.array([0, 1, 0, 1, 1, 0])
        expected = maker(codes, 3)
        for labels in (text, np.array(text, object), pandas.Series(text), torch.as_tensor(codes), codes > 0):
            assert all(map(np.array_equal, maker(labels, 3), expected))


@pytest.mark.parametrize("n", [2.0, "many", None, True])
def test_n_is_whole(n):
    with pytest.raises(PlanError, match="n="):
        iid(n, 1)


def test_mixed_types_cannot_be_sorted():
    with pytest.raises(DataError, match="mix types"):
        shards(np.array([1, "a"], object), 1)


def test_iid_is_even():
    assert sorted(len(part) for part in iid(103, 10)) == [10] * 7 + [11] * 3


class TestDirichlet:
    labels = np.random.default_rng(0).integers(0, 10, 20_000)

    def test_large_alpha_is_nearly_iid_and_small_alpha_is_not(self):
        distances = [describe(dirichlet(self.labels, 20, a), self.labels).distance for a in (1000, 1, 0.05)]
        assert distances[0] < 0.05 < 0.2 < distances[1] < 0.5 < 0.7 < distances[2]

    def test_shares_have_the_moments_of_a_dirichlet(self):
        # Of 10 classes over 20 clients with alpha 0.5: mean 1/20, variance (1/20)(19/20)/(20·0.5 + 1).
        shares = []
        for seed in range(40):
            summary = describe(dirichlet(self.labels, 20, 0.5, seed=seed), self.labels)
            shares.append(summary.table / summary.table.sum(axis=0))
        assert np.var(shares) == pytest.approx(0.05 * 0.95 / 11, rel=0.05)

    @pytest.mark.parametrize("alpha", [1e-300, 1e-10, 1e6])
    def test_ends_whatever_alpha_is(self, alpha):
        check_is_partition(dirichlet(self.labels, 1000, alpha, least=15), 20_000, 1000, 15)

    @pytest.mark.parametrize("alpha", [0, -1.0, np.nan, np.inf, "1", None])
    def test_alpha_is_positive(self, alpha):
        with pytest.raises(PlanError, match="alpha="):
            dirichlet(self.labels, 2, alpha)

    def test_measures_are_no_classes(self):
        with pytest.raises(DataError, match=r"such as 0\.5.*numpy\.digitize"):
            dirichlet([0.0, 0.5, 1.0], 2)

    def test_whole_numbers_as_floats_are_classes(self):
        assert len(dirichlet([0.0, 1.0, 1.0], 2)) == 2


class TestShards:
    def test_two_shards_are_at_most_four_classes(self):
        labels = np.random.default_rng(1).integers(0, 10, 6000)
        summary = describe(shards(labels, 100), labels)
        assert (summary.sizes == 60).all()
        assert ((summary.table > 0).sum(axis=1) <= 4).all()
        assert describe(shards(np.arange(6000) % 10, 10, 1), np.arange(6000) % 10).one_class == 10

    @given(n=st.integers(6, 200), clients=st.integers(1, 3), each=st.integers(1, 2), seed=st.integers(0, 99))
    @settings(deadline=None)
    def test_clients_differ_by_at_most_one(self, n, clients, each, seed):
        sizes = [len(part) for part in shards(np.arange(n), clients, each, seed)]
        assert max(sizes) - min(sizes) <= 1

    def test_measures_are_cut_by_rank(self):
        parts = shards(np.array([0.3, 9.5, 0.1, 7.5]), 2, 1)
        assert sorted(part.tolist() for part in parts) == [[0, 2], [1, 3]]

    @pytest.mark.parametrize("each", [0, 1.5])
    def test_shards_are_whole(self, each):
        with pytest.raises(PlanError, match="shards_per_client="):
            shards(np.zeros(10), 2, each)

    def test_more_shards_than_examples(self):
        with pytest.raises(PlanError, match="at most 2 shards a client"):
            shards(np.zeros(10), 4, 3)


class TestQuantitySkew:
    def test_zero_sigma_is_even(self):
        assert {len(part) for part in quantity_skew(100, 10, 0.0)} == {10}

    def test_log_sizes_are_normal(self):
        sizes = np.array([len(part) for part in quantity_skew(2_000_000, 2000, 0.8)])
        assert np.std(np.log(sizes)) == pytest.approx(0.8, rel=0.1)

    @pytest.mark.parametrize("arguments", [{"sigma": -1}, {"sigma": np.nan}, {"alpha": 0}, {"alpha": -1}])
    def test_bad_spread(self, arguments):
        with pytest.raises(PlanError, match=f"{next(iter(arguments))}="):
            quantity_skew(100, 10, **arguments)

    def test_one_spread(self):
        with pytest.raises(PlanError, match="not both"):
            quantity_skew(100, 10, 1.0, alpha=1.0)


class TestByKey:
    def test_sorted_keys(self):
        parts = by_key(["va", "cleveland", "va", "hungarian"])
        assert [part.tolist() for part in parts] == [[1], [3], [0, 2]]

    def test_least(self):
        with pytest.raises(DataError, match="key '2' has 1 examples, fewer than least=2"):
            by_key([1, 1, 2], least=2)

    def test_missing(self):
        with pytest.raises(DataError, match="keys hold nan at row 1"):
            by_key([1.0, np.nan])
