"""Stacked layers: the gradient of many clients at once is each client's own, and a fused step is w − lr·g."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from insitu.core import tree
from insitu.core.types import Client, Data, Variables
from insitu.learners.torch import TorchLearner
from insitu.learners.torch.stacked.gradient import Stacked
from insitu.learners.torch.stacked.layers import Conv
from insitu.learners.torch.stacked.recurrent import Recurrent

SIZES = (4, 3, 1)
"""Examples in each lane's batch; B is 4."""
CLASSES = 3
LR = 0.3
BOUND = {torch.float64: 1e-12, torch.float32: 2e-5}


class Net(nn.Module):
    """Named layers and a forward of one's own."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._own = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self._own(self, x)


def table(*shape, words=0, seed=0):
    """[K, B, *shape]: numbers, or with ``words`` indices below it."""
    rng = np.random.default_rng(seed)
    shape = (len(SIZES), max(SIZES), *shape)
    return rng.integers(0, words, shape) if words else rng.normal(size=shape)


def agree(make, x, loss="cross_entropy", dtype=torch.float64, sizes=SIZES, y=None, **roles):
    """Gradients, metric sums and fused steps of all lanes against the learner on each client's exact batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        learner = TorchLearner(make().to(dtype), loss=loss, **roles)
    y = np.random.default_rng(1).integers(0, CLASSES, (len(sizes), max(sizes))) if y is None else y
    one = tree.map(lambda c: c.reshape(-1, *c.shape[2:]), x)
    learner.check(Client("c", Data(one, y.reshape(-1, *y.shape[2:]))))
    start = learner.init(0)
    trained = {"shared": start.shared, "personal": start.personal.get("params", {})}
    models = [tree.map(lambda w, k=k: w * (1 - 0.2 * k) + 0.01 * k, trained) for k in range(len(sizes))]
    full, exact = zip(*(rows(learner, x, y, k, n) for k, n in enumerate(sizes)), strict=True)
    steps = torch.arange(len(sizes))
    found = [
        learner.gradient(variables(model, start), batch, step)
        for model, batch, step in zip(models, exact, steps, strict=True)
    ]
    truth, sums = (tree.map(lambda *v: torch.stack(v), *(f[i] for f in found)) for i in (0, 2))
    assert float(sums["loss"].min()) > 0
    assert sums["examples"].tolist() == list(sizes)

    model = learner.stacked()
    assert isinstance(model, Stacked), model
    stack = tree.map(lambda *v: torch.stack(v), *models)
    batch = tree.map(lambda *v: torch.stack(v), *full)
    descended = tree.copy(stack)
    fresh = learner.stacked()  # whose first pass is a fused step
    fresh_sums = fresh.descend(variables(descended, start), batch, steps, LR)
    grads, _, own = model.gradient(variables(stack, start), batch, steps)
    again = tree.copy(stack)
    model.descend(variables(again, start), batch, steps, LR)
    bound = BOUND[dtype]
    assert tree.norm(truth) > 1e-3
    near(grads, truth, bound)
    near(own, sums, bound)
    near(fresh_sums, sums, bound)
    expected = tree.map(lambda w, g: w - LR * g, stack, truth)
    near(descended, expected, bound)
    near(again, expected, bound)


def variables(trained, start):
    return Variables(trained["shared"], {}, {"params": trained["personal"], "buffers": {}}, start.frozen)


def rows(learner, x, y, k, n):
    """One lane's batch, filled up with its last example again, and the exact one."""
    index = np.minimum(np.arange(y.shape[1]), n - 1)
    data = Data(tree.map(lambda c: c[k], x), y[k])
    seed = torch.tensor(17 + 1000 * k)
    weight = torch.from_numpy(np.arange(len(index)) < n).to(learner.roles.dtype)
    full = {**learner.batch(data, index), "weight": weight, "share": weight / n, "seed": seed}
    return full, {**learner.batch(data, np.arange(n)), "weight": weight[:n], "seed": seed}


def near(found, truth, bound):
    assert [path for path, _ in tree.leaves(found)] == [path for path, _ in tree.leaves(truth)]
    for (path, a), b in zip(tree.leaves(found), tree.values(truth), strict=True):
        assert float((a - b).norm()) <= bound * (1 + float(b.norm())), path


# ------------------------------------------------------------ layer by layer


def ready(make, *shape):
    """The module with its lazy layer's shape settled."""

    def made():
        module = make()
        module(torch.zeros(2, *shape))
        return module

    return made


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(2, 4, 3), (2, 7)),
    "1d strided": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), (2, 9)),
    "1d replicate": (lambda: nn.Conv1d(2, 4, 3, padding=2, padding_mode="replicate"), (2, 7)),
    "2d": (lambda: nn.Conv2d(2, 4, 3), (2, 5, 6)),
    "2d same": (lambda: nn.Conv2d(2, 4, (3, 1), padding="same", bias=False), (2, 5, 6)),
    "2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=(1, 2), padding=(0, 1)), (4, 5, 6)),
    "2d depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), (3, 5, 5)),
    "2d circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "2d reflect": (lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 5, 6)),
    "3d": (lambda: nn.Conv3d(1, 3, 2, stride=(1, 2, 1), padding=1), (1, 4, 4, 3)),
    "3d zeros": (lambda: nn.Conv3d(2, 4, 3, groups=2), (2, 4, 4, 3)),
}


@pytest.mark.parametrize("route", [Conv._one_by_one, Conv._as_groups], ids=["lane by lane", "as groups"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, route, monkeypatch):
    """Both routes, whatever the device: groups are for GPUs."""
    monkeypatch.setattr(Conv, "_one_by_one", route)
    layer, shape = CONVOLUTIONS[name]
    agree(ready(lambda: nn.Sequential(layer(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES)), *shape), table(*shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", BOUND)
def test_linear(bias, dtype):
    agree(lambda: nn.Linear(6, CLASSES, bias=bias), table(6), dtype=dtype)
    agree(lambda: nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, CLASSES)), table(6), dtype=dtype)


def test_linear_over_a_sequence_and_other_losses():
    net = lambda out: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, out))  # noqa: E731
    labels = np.random.default_rng(0).integers(0, CLASSES, (3, 4, 5))
    agree(lambda: net(CLASSES), table(5, 6), y=labels)
    agree(lambda: net(1), table(6), loss="mse", y=table(seed=2))
    agree(lambda: net(2), table(6), loss=lambda out, y: (out - y).abs().sum(1), y=table(2, seed=2))
    agree(lambda: net(1), table(6), loss="binary_cross_entropy", y=table(words=2))


@pytest.mark.parametrize("padding", [None, 0, -1])
def test_embedding(padding):
    def make():
        return Net(
            lambda m, x: m.head(m.embed(x).tanh().mean(1)),
            embed=nn.Embedding(5, 4, padding_idx=padding), head=nn.Linear(4, CLASSES),
        )  # fmt: skip

    agree(make, table(6, words=5))


@pytest.mark.parametrize("word", [5, -1])
def test_an_index_beyond_the_table_is_an_error_and_not_another_clients_row(word):
    learner = TorchLearner(Net(lambda m, x: m.embed(x).sum(1), embed=nn.Embedding(5, CLASSES)).double())
    model, batch = learner.stacked(), torch.zeros(2, 1, 3, dtype=torch.int64)
    batch[0, 0, 1] = word
    ones = torch.ones(2, 1, dtype=torch.float64)
    held = Variables({"embed.weight": torch.ones(2, 5, CLASSES, dtype=torch.float64)})
    given = {"x": batch, "y": torch.zeros(2, 1, dtype=torch.int64), "weight": ones, "share": ones}
    given["seed"] = steps = torch.zeros(2, dtype=torch.int64)
    for step in (lambda: model.gradient(held, given, steps), lambda: model.descend(held, given, steps, LR)):
        with pytest.raises(RuntimeError, match="not one of 0 … 4"):
            step()
    assert bool((held.shared["embed.weight"] == 1).all())


def test_norms():
    agree(lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES)), table(6))
    agree(lambda: nn.Sequential(nn.LayerNorm((5, 6)), nn.Flatten(), nn.Linear(30, CLASSES)), table(5, 6))
    agree(lambda: nn.Sequential(nn.LayerNorm(6, bias=False), nn.Linear(6, CLASSES)), table(6))
    agree(lambda: nn.Sequential(nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, CLASSES)), table(6))
    for shape in ((4,), (4, 3), (4, 3, 2)):
        for groups in (1, 2, 4) if len(shape) > 1 else (1, 2):
            width = int(np.prod(shape))
            agree(
                lambda g=groups, w=width: nn.Sequential(nn.GroupNorm(g, 4), nn.Flatten(), nn.Linear(w, CLASSES)),
                table(*shape),
            )


# ------------------------------------------------------------ recurrent layers


def sequence(kind, use, **options):
    width = 5 * (2 if options.get("bidirectional") else 1)

    def forward(m, x):
        x = x if options.get("batch_first", True) else x.transpose(0, 1)
        return m.head(use(m, *m.turns(x)))

    options = {"batch_first": True, **options}
    return lambda: Net(forward, turns=kind(4, 5, **options), head=nn.Linear(width, CLASSES))


KINDS = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS = [
    {}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
    {"bias": False}, {"batch_first": False},
]  # fmt: skip


@pytest.fixture(params=["lane after lane", "side by side"])
def way(request, monkeypatch):
    """Recurrent layers go lane after lane on a CPU, and side by side on a GPU: both are tried here."""
    if request.param == "side by side":
        monkeypatch.setattr(
            Recurrent,
            "_one_by_one",
            lambda self, x, start: self._side_by_side(x, start, self.lanes.lr is not None and not self.again),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("way")
def test_recurrent_layers(kind, options):
    first = options.get("batch_first", True)
    agree(sequence(kind, lambda m, y, end: y.mean(1) if first else y.mean(0), **options), table(3, 4))


@pytest.mark.usefixtures("way")
def test_recurrent_layer_with_relu():
    agree(sequence(nn.RNN, lambda m, y, end: y[:, -1], nonlinearity="relu"), table(3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"batch_first": False}], ids=str)
@pytest.mark.usefixtures("way")
def test_last_states_alone_and_with_outputs(kind, options):
    pairs = kind is nn.LSTM

    def last(m, y, end):
        return end[0][-1] * end[1][0].tanh() if pairs else end[-1] + end[0]

    agree(sequence(kind, last, **options), table(3, 4))
    # of an LSTM the cells alone, so that no gradient comes from its outputs
    agree(sequence(kind, lambda m, y, end: (end[1] if pairs else end)[-1], **options), table(3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("way")
def test_given_states_that_are_learnt_and_asked_for_in_the_usual_words(kind):
    """States from a layer, sizes read off the layer, weights laid out in a row: what people write."""

    def forward(m, x):
        m.turns.flatten_parameters()
        first = m.first(x[:, 0]).tanh().unsqueeze(0).expand(m.turns.num_layers, -1, -1).contiguous()
        assert first.shape[-1] == m.turns.hidden_size
        state = (first, torch.zeros_like(first) + 0.5) if kind is nn.LSTM else first
        y, end = m.turns(x, state)
        return m.head(y[:, -1] + (end[0] if kind is nn.LSTM else end)[0])

    def make():
        turns = kind(4, 5, num_layers=2, batch_first=True)
        return Net(forward, first=nn.Linear(4, 5), turns=turns, head=nn.Linear(5, CLASSES))

    agree(make, table(3, 4))


# ------------------------------------------------------------ what users write


def test_a_layer_called_twice_takes_one_step():
    agree(
        lambda: Net(
            lambda m, x: m.head(m.body(torch.tanh(m.body(x)))), body=nn.Linear(6, 6), head=nn.Linear(6, CLASSES)
        ),
        table(6),
    )
    agree(lambda: Net(lambda m, x: m.e(x).sum(1) * m.e(x[:, :1]).sum(1), e=nn.Embedding(5, 3)), table(4, words=5))
    turns = lambda m, x: m.head(m.turns(m.turns(x)[0])[0][:, -1])  # noqa: E731
    agree(lambda: Net(turns, turns=nn.LSTM(4, 4, batch_first=True), head=nn.Linear(4, CLASSES)), table(3, 4))


def test_a_forward_of_ones_own():
    def residual(m, x):
        h = m.conv(x)
        h = h + m.more(h).relu()
        return m.head(F.max_pool2d(h, 2).view(x.size(0), -1))

    layers = {"conv": (2, 4), "more": (4, 4)}
    agree(
        lambda: Net(
            residual, head=nn.Linear(16, CLASSES),
            **{name: nn.Conv2d(a, b, 3, padding=1) for name, (a, b) in layers.items()},
        ),
        table(2, 4, 4),
    )  # fmt: skip


def test_dict_inputs_and_several_outputs():
    x = {"words": table(6, words=5), "numbers": {"a": table(3), "b": table(2, seed=4)}}

    def forward(m, x):
        numbers = torch.cat([x["numbers"]["a"], x["numbers"]["b"]], 1)
        return m.embed(x["words"]).mean(1), m.dense(numbers)

    agree(
        lambda: Net(forward, embed=nn.Embedding(5, 3), dense=nn.Linear(5, 3)),
        x, loss=lambda out, y: F.cross_entropy(out[0] * out[1], y, reduction="none"),
    )  # fmt: skip


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("way", ["by hand", "by torch"])
def test_attention(way, drop):
    def forward(m, x):
        b, t, _ = x.shape
        q, k, v = (m.qkv(m.norm(x))).view(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if way == "by hand":
            out = F.dropout((q @ k.mT / 2).softmax(-1), drop, m.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=drop)
        return m.head((x + m.out(out.transpose(1, 2).reshape(b, t, 8))).mean(1))

    def make():
        return Net(forward, norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), head=nn.Linear(8, CLASSES))

    agree(make, table(5, 8))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout, (6,)), (nn.Dropout2d, (6, 2, 2)), (nn.AlphaDropout, (6,))])
def test_masks_are_those_of_the_client_alone(layer, shape):
    def make():
        return nn.Sequential(
            layer(0.4), nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)
        )

    agree(make, table(*shape))


def test_personal_and_frozen_layers_and_constants():
    class Shifted(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, CLASSES))
            self.register_buffer("shift", torch.linspace(0, 1, 6), persistent=False)

        def forward(self, x):
            return super().forward(x + self.shift)

    agree(Shifted, table(6), personal=("3",), frozen=("2",))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    double=st.booleans(),
)
def test_any_number_of_lanes_and_examples(sizes, widths, double):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(len(sizes), max(sizes), 4)), rng.integers(0, CLASSES, (len(sizes), max(sizes)))
    widths = [4, *widths, CLASSES]

    def make():
        return nn.Sequential(*(layer for i, o in itertools.pairwise(widths) for layer in (nn.Linear(i, o), nn.ELU())))

    agree(make, x, y=y, sizes=tuple(sizes), dtype=torch.float64 if double else torch.float32)


# ------------------------------------------------------------ what has no stacked form


def tied():
    module = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    module.b.weight = module.a.weight
    return module


def scaled():
    module = Net(lambda m, x: m.a(x) * m.scale, a=nn.Linear(6, CLASSES))
    module.scale = nn.Parameter(torch.ones(()))
    return module


def hooked():
    module = nn.Sequential(nn.Linear(6, CLASSES))
    module[0].register_forward_hook(lambda m, x, y: y * 2)
    return module


def partly():
    module = nn.Linear(6, CLASSES)
    module.bias.requires_grad_(False)
    return nn.Sequential(module)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tied, "two layers share a parameter"),
        (scaled, r"Net has parameters of its own \(scale\)"),
        (hooked, "0 has hooks"),
        (partly, "0 is frozen in part"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), "buffers that change"),
        (lambda: nn.Sequential(nn.PReLU(), nn.Linear(6, 3)), "PReLU has parameters of its own"),
        (lambda: nn.LSTM(6, 4, proj_size=2), "projects its states"),
        (lambda: nn.LSTM(6, 4, num_layers=2, dropout=0.5), "batch_first=True"),
        (lambda: nn.Embedding(5, 3, max_norm=1.0), "renormalises"),
        (lambda: nn.Embedding(5, 3, sparse=True), "renormalises, scales or thins"),
        (lambda: nn.MultiheadAttention(4, 2), "parameters of its own"),
    ],
)
def test_what_has_no_stacked_form_says_why(make, reason):
    found = TorchLearner(make()).stacked()
    assert isinstance(found, str)
    assert re.search(reason, found)


def test_the_learners_own_module_stays_as_it_is():
    learner = TorchLearner(nn.Sequential(nn.Linear(6, CLASSES)))
    learner.stacked()
    assert type(learner.model(learner.init(0))[0]) is nn.Linear
