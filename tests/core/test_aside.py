"""A tree whose large arrays lie in a file is the same tree."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from residence import resident

from insitu.core import aside, backed, wire

DTYPES = ["float16", "float32", "float64", "bfloat16", "int64", "bool"]


def tree_of(kind, shapes, random):
    made = {}
    for i, (dtype, shape) in enumerate(shapes):
        numbers = random.normal(size=shape)
        if kind == "torch":
            made[f"x{i}"] = torch.as_tensor(numbers).to(getattr(torch, dtype))
        else:
            made[f"x{i}"] = np.asarray(numbers).astype("float32" if dtype == "bfloat16" else dtype)
    return {"shared": {"deep": made}, "round": 3, "name": "x", "none": None, "list": [1, 2]}


@given(
    st.sampled_from(["numpy", "torch"]),
    st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from([(), (0,), (7,), (300, 5), (5, 301, 2)])), max_size=6),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_a_tree_comes_back_bit_for_bit(tmp_path_factory, kind, shapes, seed):
    value = tree_of(kind, shapes, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aside, "LEAST", 1000)
        found = aside.laid(value, tmp_path_factory.getbasetemp())
    assert wire.encode(found) == wire.encode(value)
    for name, x in value["shared"]["deep"].items():
        other = found["shared"]["deep"][name]
        large = "float" in str(x.dtype) and x.nbytes >= 1000
        assert (other is not x) == large
        assert type(other) is type(x)
        assert other.dtype == x.dtype
        if large:
            other[...] = 1  # whoever writes into its state may go on doing so
            assert (other == 1).all()
            assert not (x == 1).all()


def test_a_state_that_lies_in_a_file_already_is_laid_anew(tmp_path):
    first = aside.laid({"w": np.random.default_rng(0).normal(size=2**18)}, tmp_path)
    second = aside.laid(first, tmp_path)
    first["w"][0] = 9.0
    assert second["w"][0] != 9.0
    assert np.array_equal(second["w"][1:], first["w"][1:])
    assert os.listdir(tmp_path) == []


def test_where_the_disk_is_full_the_tree_stays_in_memory(tmp_path, monkeypatch):
    value = {"w": np.ones(2**18)}

    def full(handle, data, at):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(aside.os, "pwrite", full)
    assert aside.laid(value, tmp_path) is value
    assert os.listdir(tmp_path) == []


def test_without_its_folder_the_tree_stays_in_memory(tmp_path):
    value = {"w": np.ones(2**18)}
    assert aside.laid(value, tmp_path / "gone") is value


def test_small_arrays_and_those_of_a_graph_are_left_alone(tmp_path):
    value = {"small": np.ones(10), "graph": torch.ones(2**20, requires_grad=True), "whole": np.ones(2**20, np.int64)}
    assert aside.laid(value, tmp_path)["graph"] is value["graph"]
    assert aside.laid(value, tmp_path) == value


def test_numbers_that_do_not_lie_as_this_machine_has_them_are_left_alone(tmp_path):
    other = np.ones(2**20, np.dtype("f8").newbyteorder())
    assert aside.laid({"w": other}, tmp_path)["w"] is other
    wide = {"w": np.ones(2**20, np.longdouble)}
    assert aside.laid(wide, tmp_path) is wide


def test_a_disk_that_has_lost_something_is_heard_of(tmp_path, monkeypatch):
    value = aside.laid({"w": np.ones(2**20), "small": np.ones(3)}, tmp_path)
    aside.check(value)
    monkeypatch.setattr(backed, "_found", lambda x: (Lost(), 0, 0))
    with pytest.raises(OSError, match="lost"):
        aside.check(value)


class Lost:
    def flush(self):
        raise OSError(errno.EIO, "lost")


def test_what_is_laid_takes_no_memory_until_it_is_looked_at(tmp_path):
    value = aside.laid({"w": np.ones(2**20)}, tmp_path)
    assert resident(value["w"]) == 0
    assert value["w"].sum() == 2**20
    assert resident(value["w"]) == value["w"].nbytes
