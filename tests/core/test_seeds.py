"""Seeds: the same for the same four arguments for ever, and unrelated otherwise."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.seeds import generator, seed

names = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=8)
arguments = st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 10**9), names, names)


def test_the_numbers_never_change():
    """A stored run is resumed by later versions: these values are part of the format (BLAKE2b, by hashlib)."""
    from hashlib import blake2b

    text = b"7\x1f3\x1fclient\x1fbatches"
    assert seed(7, 3, "client", "batches") == int.from_bytes(blake2b(text, digest_size=8).digest(), "little") // 2


def test_another_process_with_another_hash_seed_gets_the_same():
    code = "from insitu.core.seeds import seed; print(seed(7, 3, 'é', 'dropout'))"
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(out.stdout) == seed(7, 3, "é", "dropout")


@given(arguments)
def test_it_is_a_seed(a):
    assert 0 <= seed(*a) < 2**63


@given(arguments, arguments)
def test_different_arguments_give_different_seeds(a, b):
    assert (seed(*a) == seed(*b)) == (a == b)


def test_neighbouring_seeds_are_unrelated():
    draws = np.array([generator(0, round, "a", "x").random() for round in range(4000)])
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(4000)
    bits = np.array([[seed(0, round, "a", "x") >> k & 1 for k in range(63)] for round in range(2000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * np.sqrt(0.25 / 2000)
