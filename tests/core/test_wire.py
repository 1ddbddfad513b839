"""Trees survive the wire bit for bit, and damaged or forged bytes give a WireError and nothing else."""

import copy
import hashlib
import json
import math
import random
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from insitu.core import wire
from insitu.core.errors import MissingExtra, WireError

torch = pytest.importorskip("torch")

NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
TORCH = [name for name in NUMBERS.split() if hasattr(torch, name)] + ["bfloat16"]


def same(a, b):
    """Whether two trees agree in every type, key order, dtype, shape and bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b)
    elif isinstance(a, (np.ndarray, np.generic)):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert not a.numel() or torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    else:
        assert a == b


def frame(header, payload=b"", version=wire.VERSION):
    """A frame as a liar would make it: any header, with a digest that fits."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<8sIQ", b"\x8cinsitu\n", version, len(text)) + text + payload
    return body + hashlib.sha256(body).digest()


def parts(data):
    """The header and payload of an honest frame."""
    (length,) = struct.unpack_from("<Q", data, 12)
    return json.loads(data[20 : 20 + length]), data[20 + length : -32]


# NumPy cuts NULs off the end of a text.
LETTERS = st.characters(codec="utf-8", exclude_characters="\0")
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
numpy_dtypes = st.sampled_from([np.dtype(name) for name in NUMBERS.split()])
texts = hnp.arrays(np.dtype("U4"), shapes, elements=st.text(LETTERS, max_size=4))
arrays = st.one_of(hnp.arrays(numpy_dtypes, shapes), texts)


@st.composite
def tensors(draw):
    dtype = getattr(torch, draw(st.sampled_from(TORCH)))
    shape = draw(shapes)
    size = torch.empty((), dtype=dtype).element_size() * math.prod(shape)
    raw = bytes(b & 1 for b in draw(st.binary(min_size=size, max_size=size)))
    if dtype is not torch.bool:
        raw = draw(st.binary(min_size=size, max_size=size))
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), st.text(max_size=8)
)
leaves = st.one_of(scalars, arrays, arrays.filter(lambda a: a.size).map(lambda a: a.reshape(-1)[0]), tensors())
keys = st.one_of(st.text(max_size=5), st.sampled_from(["", "/", "a/b", "a.b", "dict", "tensor", "\ud800", "\x00"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(keys, inner, max_size=4),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=8,
)


@given(trees)
@settings(max_examples=300, deadline=None)
def test_a_tree_survives_bit_for_bit(tree):
    data = wire.encode(tree)
    same(tree, wire.decode(data))
    assert data == wire.encode(tree)
    assert data == wire.encode(wire.decode(data))


@given(trees, st.data())
@settings(max_examples=200, deadline=None)
def test_any_flipped_or_missing_byte_is_noticed(tree, data):
    good = wire.encode(tree)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(bad), good[:at], good + b"\0", good[at + 1 :]):
        with pytest.raises(WireError):
            wire.decode(damaged)


def mutate(rng, value):
    """``value`` with one part of it replaced by something else that JSON can say."""
    odd = [
        None,
        True,
        -1,
        0,
        1,
        2**62,
        2**70,
        1.5,
        "",
        "float64",
        "bfloat16",
        "object",
        "O",
        "U0",
        "U99999999999",
    ]
    odd += [
        [],
        {},
        [1],
        {"tensor": 0},
        {"dict": []},
        {"list": {}},
        {"int": "zz"},
        {"float": "00"},
        [2**62, 2**62],
    ]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            changed[str(key) + "x"] = changed.pop(key)
        else:
            changed[key] = mutate(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.1:
            return value[:i] + value[i + 1 :]
        if choice < 0.2:
            return [*value, value[i]]
        return [*value[:i], mutate(rng, value[i]), *value[i + 1 :]]
    return copy.deepcopy(rng.choice(odd))


def test_forged_headers_with_a_fitting_digest_give_a_tree_or_a_wire_error():
    tree = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": {"c": torch.ones(2, dtype=torch.bfloat16), "d": np.float32(1), "": np.array(["x", "yz"])},
        "e": [1, 2.5, None, "s", (math.nan, 2**80, np.array([True, False]))],
    }
    header, payload = parts(wire.encode(tree))
    rng = random.Random(0)
    outcomes = {"tree": 0, "error": 0}
    for _ in range(4000):
        forged = mutate(rng, header)
        if rng.random() < 0.3:
            forged = mutate(rng, forged)
        cut = payload[: rng.randrange(len(payload) + 1)] if rng.random() < 0.1 else payload
        try:
            wire.encode(wire.decode(frame(forged, cut)))
            outcomes["tree"] += 1
        except WireError:
            outcomes["error"] += 1
    assert outcomes["error"] > 2000
    assert outcomes["tree"] > 0  # a changed number or text is still a tree: the digest of who sent it tells


def entry(**changes):
    good = {"path": [], "dtype": "float32", "shape": [2], "offset": 0, "nbytes": 8, "kind": "numpy"}
    return {"tree": {"tensor": 0}, "tensors": [{**good, **changes}]}


def twice(second):
    tensors = [
        {"path": ["a"], "dtype": "float32", "shape": [2], "offset": 0, "nbytes": 8, "kind": "numpy"},
        {"path": ["b"], "dtype": "float32", "shape": [2], "offset": second, "nbytes": 8, "kind": "numpy"},
    ]
    return {"tree": {"dict": {"a": {"tensor": 0}, "b": {"tensor": 1}}}, "tensors": tensors}


FORGED = {
    "overlapping tensors": frame(twice(4), b"\0" * 12),
    "the same bytes twice": frame(twice(0), b"\0" * 8),
    "a gap between tensors": frame(twice(12), b"\0" * 20),
    "one tensor used twice": frame(
        {"tree": {"list": [{"tensor": 0}, {"tensor": 0}]}, "tensors": entry()["tensors"]}, b"\0" * 8
    ),
    "a tensor that is not in the table": frame({"tree": {"tensor": 0}, "tensors": []}),
    "a tensor that nobody uses": frame({"tree": None, "tensors": entry()["tensors"]}, b"\0" * 8),
    "another path": frame(entry(path=["x"]), b"\0" * 8),
    "too short a payload": frame(entry(), b"\0" * 7),
    "too long a payload": frame(entry(), b"\0" * 9),
    "nbytes that lies": frame(entry(nbytes=4), b"\0" * 8),
    "nbytes as true": frame(entry(shape=[1], dtype="int8", nbytes=[1]), b"\0"),
    "a negative shape": frame(entry(shape=[-2]), b"\0" * 8),
    "a shape that overflows": frame(entry(shape=[2**32, 2**32], nbytes=0)),
    "a shape that overflows behind a zero": frame(entry(shape=[0, 2**62, 2**62], nbytes=0)),
    "a petabyte": frame(entry(shape=[2**48], nbytes=2**50), b"\0" * 8),
    "too many dimensions": frame(entry(shape=[1] * 33, nbytes=4), b"\0" * 4),
    "a scalar with a shape": frame(entry(kind="scalar"), b"\0" * 8),
    "an unknown kind": frame(entry(kind="pickle"), b"\0" * 8),
    "dtype object": frame(entry(dtype="object"), b"\0" * 8),
    "dtype O": frame(entry(dtype="O"), b"\0" * 8),
    "dtype void": frame(entry(dtype="V8"), b"\0" * 8),
    "dtype as a list": frame(entry(dtype=["float32"]), b"\0" * 8),
    "a big-endian dtype": frame(entry(dtype=">f4"), b"\0" * 8),
    "bfloat16 in NumPy": frame(entry(dtype="bfloat16", nbytes=4), b"\0" * 4),
    "text in torch": frame(entry(dtype="U1", kind="torch"), b"\0" * 8),
    "text that is no character": frame(entry(dtype="U1"), b"\xff" * 8),
    "a bool that is 2": frame(entry(dtype="bool", nbytes=2), b"\2\0"),
    "a header of nothing": frame(b""),
    "a header that is no JSON": frame(b"{"),
    "a header that is no text": frame(b'{"tree": "\xff"}'),
    "a header with NaN": frame(b'{"tree": NaN, "tensors": []}'),
    "a key twice": frame(b'{"tree": null, "tree": 1, "tensors": []}'),
    "a key twice in the tree": frame(b'{"tree": {"dict": {"a": 1, "a": 2}}, "tensors": []}'),
    "an extra part": frame({"tree": None, "tensors": [], "code": "import os"}),
    "a number of a million digits": frame(b'{"tree": ' + b"9" * 10**6 + b', "tensors": []}'),
    "JSON nested too deeply": frame(b"[" * 10**6),
    "a tree nested too deeply": frame(b'{"tree": ' + b'{"list": [' * 66 + b"]}" * 66 + b', "tensors": []}'),
    "a header as long as can be said": struct.pack("<8sIQ", b"\x8cinsitu\n", 1, 2**64 - 1) + b"\0" * 40,
    "version 0": frame({"tree": None, "tensors": []}, version=0),
    "nothing": b"",
    "the magic alone": b"\x8cinsitu\n",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED.keys())
def test_each_forgery_is_refused_in_little_memory(data):
    tracemalloc.start()
    with pytest.raises(WireError):
        wire.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23 + 40 * len(data)


def test_an_honest_frame_made_by_hand_is_read():
    assert wire.decode(frame(entry(), np.float32([1, 2]).tobytes())).tolist() == [1, 2]


def test_a_newer_version_says_so():
    with pytest.raises(WireError, match="wire format 2 is newer than 1: install a newer insitu"):
        wire.decode(frame({"tree": None, "tensors": []}, version=2))


def test_decoding_needs_the_payload_once_more_and_little_else():
    data = wire.encode({str(i): np.zeros(2**17) for i in range(16)})
    tracemalloc.start()
    tree = wire.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tree) == 16
    assert peak < 1.1 * len(data)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_decoded_arrays_are_writable_and_independent(kind):
    array = np.arange(4.0) if kind == "numpy" else torch.arange(4.0)
    data = bytearray(wire.encode({"w": array}))
    tree = wire.decode(data)
    data[:] = bytes(len(data))
    tree["w"] += 1
    assert tree["w"].tolist() == [1, 2, 3, 4]
    assert array.tolist() == [0, 1, 2, 3]


def test_layout_and_byte_order_do_not_travel():
    plain = np.arange(12.0).reshape(3, 4)
    for odd in (plain.astype(">f8"), np.asfortranarray(plain), np.repeat(plain, 2, axis=1)[:, ::2]):
        assert wire.encode({"w": odd}) == wire.encode({"w": plain})
    back = wire.decode(wire.encode({"w": plain.astype(">f8"), "s": np.array(["aé"], dtype=">U2")}))
    assert back["w"].dtype.isnative
    assert back["w"].tolist() == plain.tolist()
    assert back["s"].tolist() == ["aé"]


def test_tensors_that_track_gradients_are_views_or_conjugates_travel_as_numbers():
    leaf = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tree = wire.decode(wire.encode({"p": leaf, "t": leaf.t(), "c": torch.tensor([1 + 2j]).conj()}))
    assert type(tree["p"]) is torch.Tensor
    assert not tree["p"].requires_grad
    assert tree["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tree["c"].tolist() == [1 - 2j]


REFUSED = {
    "objects": np.array([object()], dtype=object),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "records": np.zeros(2, dtype=[("a", "f4")]),
    "bytes in an array": np.array([b"ab"]),
    "long doubles": np.zeros(2, dtype=np.longdouble),
    "masked": np.ma.masked_array([1.0], [True]),
    "a set": {1},
    "raw bytes": b"ab",
    "a function": len,
    "a complex number": 1j,
    "a sparse tensor": torch.zeros(2, 2).to_sparse(),
    "a meta tensor": torch.zeros(2, device="meta"),
    "too many dimensions": np.zeros([1] * 33),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_travel_is_named_with_its_path(value):
    with pytest.raises(WireError, match=r"^shared/odd\.name/1 "):
        wire.encode({"shared": {"odd.name": [0, value]}})


def test_a_key_that_is_no_text_and_a_tree_inside_itself_are_named():
    with pytest.raises(WireError, match="shared has the key 3, a int"):
        wire.encode({"shared": {3: 1.0}})
    loop = {}
    loop["loop"] = loop
    with pytest.raises(WireError, match="deeper than 64 levels"):
        wire.encode(loop)


def test_a_header_too_large_says_what_to_do(monkeypatch):
    monkeypatch.setattr(wire, "MAX_HEADER", 1000)
    with pytest.raises(WireError, match="fewer, larger arrays"):
        wire.encode({"numbers": [0.5] * 1000})


def test_a_message_shows_no_control_characters_of_a_sender():
    with pytest.raises(WireError) as caught:
        wire.decode(frame({"tree": {"dict": {"\x1b[31m\n" + "x" * 10**5: {"tensor": 0}}}, "tensors": []}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_the_digest_is_of_the_content():
    a = {"x": np.arange(3.0), "y": {"b": 1, "a": np.float32(2)}}
    b = {"y": {"a": torch.tensor(2.0), "b": 1}, "x": np.arange(3.0).astype(">f8")}
    assert wire.digest(a) == wire.digest(b)
    assert wire.encode(a) != wire.encode(b)
    others = [
        {**a, "x": np.array([0.0, 1.0, np.nextafter(2.0, 3)])},
        {**a, "x": np.arange(3.0).reshape(3, 1)},
        {**a, "x": np.arange(3.0).astype("f4")},
        {**a, "x": np.array([-0.0, 1, 2])},
        {**a, "z": None},
        {"x": a["x"], "y": {"b": 1.0, "a": np.float32(2)}},
        {"x": a["x"], "y": [1, np.float32(2)]},
    ]
    assert len({wire.digest(tree) for tree in [a, *others]}) == 8


def test_the_format_and_the_digest_stay_as_they_are():
    """Stored runs must stay readable: these bytes were written by version 1 and never change."""
    tree = {
        "w": np.array([1.0, -2.5]),
        "n": [None, True, 7, math.inf, "é"],
        "t": torch.tensor([[3]]).bfloat16(),
    }
    assert hashlib.sha256(wire.encode(tree)).hexdigest() == GOLDEN_BYTES
    assert wire.digest(tree) == GOLDEN_DIGEST


GOLDEN_BYTES = "58a565d6f7ab39c85aafceae7c5ac41fd3bb36c21c43502c46b889f2e1105550"
GOLDEN_DIGEST = "7fd1c17bde301e25cb4c5583aab8c15a8f2fde47d5411824cab3048479f506e1"


def test_numpy_trees_need_no_torch_and_tensors_say_what_to_install():
    script = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from insitu.core import wire
from insitu.core.errors import MissingExtra
import numpy as np
assert wire.decode(wire.encode({"w": np.ones(2)}))["w"].sum() == 2
try:
    wire.decode(sys.stdin.buffer.read())
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=wire.encode({"w": torch.ones(2)}),
        capture_output=True,
        check=True,
    )
    assert b"needs torch" in done.stdout
    assert issubclass(MissingExtra, ImportError)
