"""PowerSGD: its published volume, its power method, and what becomes of zeros and of one direction twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from resnet18 import shapes

from insitu.compress.powersgd import PowerSGD, orthonormal
from insitu.core import tree
from insitu.core.types import Context, Update

STEPS = 24
MIB = 2**20


def test_the_model_is_the_papers():
    assert sum(map(math.prod, shapes())) == 11_173_962


@pytest.mark.parametrize(("rank", "published"), [(1, 4.2), (2, 7.5), (4, 14.2)])
def test_the_volume_of_an_epoch_is_as_published(rank, published):
    """Table 3 of the paper (which writes MB): packed for real, and by the formula."""
    model = {f"{i:02}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes())}
    assert round(tree.nbytes(model) * STEPS / MIB) == 1023
    stage = PowerSGD(rank, feedback=False)
    packed, _ = stage.encode(Update({"shared": model}, {"shared": 1.0}), None, Context(1, 0))
    volume = tree.nbytes(packed.value) * STEPS
    assert round(volume / MIB, 1) == published
    by_hand = sum(4 * rank * (s[0] + math.prod(s[1:])) if len(s) > 1 else 4 * s[0] for s in shapes())
    assert volume == by_hand * STEPS


def told(stage, x, memory=None, round=1):
    packed, memory = stage.encode(Update({"shared": {"x": x}}, {"shared": 1.0}), memory, Context(round, 0, client="a"))
    return stage.decode_each(packed, Context(round, 0, client="a")).value["shared"]["x"], memory


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_on_a_matrix_that_stays_it_comes_to_the_best_of_its_rank(rank):
    """Eckart and Young: the singular value decomposition cut off; warm starts make one power method of many rounds."""
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.normal(size=(20, 8)))[0], np.linalg.qr(rng.normal(size=(12, 8)))[0]
    singular = 0.5 ** np.arange(8)
    m, memory = (u * singular) @ v.T, None
    for round in range(1, 40):
        found, memory = told(PowerSGD(rank, feedback=False, smallest=0), m, memory, round)
    np.testing.assert_allclose(found, (u[:, :rank] * singular[:rank]) @ v[:, :rank].T, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_of_low_rank_is_told_whole_in_one_round(dtype):
    rng = np.random.default_rng(0)
    m = (rng.normal(size=(20, 2)) @ rng.normal(size=(2, 12))).astype(dtype)
    found, _ = told(PowerSGD(2, feedback=False), m)
    np.testing.assert_allclose(found, m, atol=2e-5 if dtype == np.float32 else 1e-12)


def test_columns_are_those_of_a_qr_decomposition():
    p = np.random.default_rng(0).normal(size=(30, 4))
    q, r = np.linalg.qr(p)
    np.testing.assert_allclose(orthonormal(p), q * np.sign(np.diag(r)), atol=1e-13)


def test_a_column_that_adds_nothing_is_zero_and_not_rounding():
    p = np.random.default_rng(0).normal(size=(30, 2))
    for dtype in (np.float32, np.float64):
        found = orthonormal(np.stack([p[:, 0], 3 * p[:, 0], p[:, 1], 0 * p[:, 0]], axis=1).astype(dtype))
        assert not found[:, [1, 3]].any()
        np.testing.assert_allclose(found[:, [0, 2]].T @ found[:, [0, 2]], np.eye(2), atol=1e-6)


def test_it_starts_again_after_zeros():
    """Q = Mᵀ P is zero after an update of zeros, and a power method from zero would stay there."""
    stage, m = PowerSGD(2, feedback=False), np.random.default_rng(0).normal(size=(20, 12))
    zeros, memory = told(stage, 0 * m)
    assert not zeros.any()
    found, memory = told(stage, m, memory, 2)
    assert 0 < np.linalg.norm(m - found) < np.linalg.norm(m)
    assert memory["shared"]["x"]["q"].any(axis=0).all()
