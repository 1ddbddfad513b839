"""TorchLearner: which tensor has which role, dropout that every engine draws alike, and refusals that say why."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core import events, tree
from insitu.core.errors import DataError, PlanError
from insitu.core.types import Client, Data
from insitu.data.clients import Clients
from insitu.engines.vectorized import Vectorized
from insitu.learners.torch import TorchLearner
from insitu.learners.torch.dropout import Masks, keep

LANES = Vectorized(lanes=3, compile=False, device="cpu")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6))
Y = np.digitize(X[:, 0], [-0.5, 0.5])
PARTS = [np.arange(0, 11), np.arange(11, 18), np.arange(18, 30), np.arange(30, 40)]
CLIENTS = Clients.from_arrays(X, Y, PARTS, holdout=0.2)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def train(learner, engine="inline", rounds=3, algorithm=None, clients=CLIENTS, observers=(), seed=2, **more):
    plan = insitu.Plan(algorithm or FedAvg(lr=0.1, epochs=2, batch_size=4), learner=learner, block=2)
    return insitu.run(
        plan, clients, rounds=rounds, engine=engine, seed=seed, store=None, observers=list(observers), **more
    )


def both(make, rounds=3, **more):
    """The same run inline and in lanes, which must agree; returns both."""
    a, b = train(make(), rounds=rounds, **more), train(make(), LANES, rounds=rounds, **more)
    x, y = tree.flatten(vars(a.variables)), tree.flatten(vars(b.variables))
    assert np.abs(x - y).max() / np.abs(x).max() < 1e-10
    return a, b


# ------------------------------------------------------------ roles


def mlp(norm=False):
    def make():
        return nn.Sequential(nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Linear(8, 3))

    return seeded(make).double()


def test_every_tensor_has_one_role():
    module = mlp(norm=True)
    module[0].bias.requires_grad_(False)
    start = TorchLearner(module, personal=("3",), frozen=("1.weight",)).init(0)
    assert set(start.shared) == {"0.weight", "1.bias"}
    assert set(start.frozen) == {"0.bias", "1.weight"}
    assert set(start.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(start.personal["params"]) == {"3.weight", "3.bias"}
    assert start.personal["buffers"] == {}


def test_patterns_are_names_prefixes_or_wildcards():
    for pattern in ("1", "1.*", "1.running_*"):
        start = TorchLearner(mlp(norm=True), personal=(pattern,)).init(0)
        assert set(start.personal["buffers"]) >= {"1.running_mean", "1.running_var"}
        assert ("1.weight" in start.personal["params"]) == (pattern != "1.running_*")
    assert "1.weight" in TorchLearner(mlp(norm=True), frozen=("*.weight",)).init(0).frozen


def test_the_module_that_was_given_is_never_changed():
    module = mlp(norm=True)
    before = copy.deepcopy(module.state_dict())
    result = train(TorchLearner(module))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not torch.equal(result.model()[0].weight, module[0].weight)
    module[0].weight.data.zero_()
    assert TorchLearner(mlp(norm=True)).init(0).shared["0.weight"].abs().sum() > 0


@pytest.mark.parametrize("engine", ["inline", LANES])
def test_frozen_parameters_stay_bit_for_bit(engine):
    module = mlp()
    module[0].weight.requires_grad_(False)
    result = train(TorchLearner(module, frozen=("2.bias",)), engine)
    assert set(result.params) == {"0.bias", "2.weight"}
    model = result.model()
    assert torch.equal(model[0].weight, module[0].weight)
    assert torch.equal(model[2].bias, module[2].bias)
    assert not torch.equal(model[2].weight, module[2].weight)


def test_personal_parameters_stay_with_their_client_and_come_back():
    a, b = both(lambda: TorchLearner(mlp(), personal=("2",)))
    assert set(a.params) == {"0.weight", "0.bias"}
    heads = [a.model(client)[2].weight for client in "0123"]
    assert all(not torch.equal(heads[0], head) for head in heads[1:])
    for client in "0123":
        mine = a.memories[client]["algorithm"]["personal"]["params"]["2.weight"]
        assert torch.equal(a.model(client)[2].weight, mine)
        np.testing.assert_allclose(
            mine, b.memories[client]["algorithm"]["personal"]["params"]["2.weight"], rtol=1e-9, atol=1e-12
        )
        assert torch.equal(a.model(client)[0].weight, a.model()[0].weight)
        plain = a.model(client)
        with torch.no_grad():
            np.testing.assert_array_equal(a.predict(X, client), plain(torch.from_numpy(X)).argmax(1))
    with pytest.raises(PlanError, match="'9'"):
        a.model("9")


def test_a_personal_model_is_evaluated_with_its_own_head():
    result = train(TorchLearner(mlp(), personal=("2",)))
    right = total = 0
    for client in CLIENTS:
        with torch.no_grad():
            output = result.model(client.id)(torch.from_numpy(client.holdout.x)).argmax(1).numpy()
        right, total = right + (output == client.holdout.y).sum(), total + len(client.holdout)
    assert result.history[-1]["clients_accuracy"] == pytest.approx(right / total)


def test_the_model_without_a_client_has_the_start_that_predict_has():
    """A callable makes the module under the run's seed: so also what is personal in it."""

    def make():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()

    result = train(TorchLearner(make, personal=("2",)), seed=5)
    with torch.no_grad():
        by_model = result.model()(torch.from_numpy(X)).argmax(1).numpy()
    np.testing.assert_array_equal(result.predict(X), by_model)


@pytest.mark.parametrize("engine", ["inline", LANES])
def test_a_model_that_is_all_personal_trains_alone(engine):
    """The baseline of every paper on personalisation: nothing is shared."""
    result = train(TorchLearner(mlp(), personal=("*",)), engine)
    assert result.params == {}
    assert [row["clients"] for row in result.history] == [4] * 3
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_buffers_are_averaged_by_examples_and_counters_by_their_largest():
    """One round of one full batch: the running statistics by hand."""
    result = train(TorchLearner(mlp(norm=True)), rounds=1, algorithm=FedAvg(lr=0.1, batch_size=None, epochs=2))
    sizes, means = [], []
    for client in CLIENTS:
        module = mlp(norm=True).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(module(torch.from_numpy(client.data.x)), torch.from_numpy(client.data.y)).backward()
            optimizer.step()
        sizes.append(len(client.data))
        means.append(module[1].running_mean.numpy())
    buffers = result.variables.buffers
    np.testing.assert_allclose(buffers["1.running_mean"], np.average(means, axis=0, weights=sizes), rtol=1e-11)
    assert int(buffers["1.num_batches_tracked"]) == 2
    assert buffers["1.num_batches_tracked"].dtype == torch.int64


def test_counters_take_the_largest_of_uneven_clients():
    _, b = both(lambda: TorchLearner(mlp(norm=True)), rounds=1)
    largest = max(-(-len(c.data) // 4) - (len(c.data) % 4 == 1) for c in CLIENTS)
    assert int(b.variables.buffers["1.num_batches_tracked"]) == 2 * largest


def test_personal_batch_norm():
    """FedBN: statistics and scales stay at home."""
    a, b = both(lambda: TorchLearner(mlp(norm=True), personal=("1",)))
    assert a.variables.buffers == {} == b.variables.buffers
    own = [a.memories[c]["algorithm"]["personal"]["buffers"]["1.running_mean"] for c in "01"]
    assert not torch.equal(*own)


def test_tied_weights_are_one_tensor():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.b(torch.tanh(self.a(x))))

    a, _ = both(lambda: TorchLearner(seeded(Tied).double()))
    assert set(a.params) == {"a.weight", "head.weight", "head.bias"}
    model = a.model()
    assert model.a.weight is model.b.weight
    module = seeded(Tied).double()
    one = train(
        TorchLearner(seeded(Tied).double()), rounds=2, algorithm=FedAvg(lr=0.1, batch_size=None),
        clients=Clients.from_arrays(X, Y),
    )  # fmt: skip
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        optimizer.step()
    np.testing.assert_allclose(one.params["a.weight"], module.a.weight.detach(), rtol=1e-10)


def test_a_constant_buffer_does_not_travel():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(6), persistent=False)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(x + self.table)

    start = TorchLearner(Positions().double()).init(0)
    assert (set(start.buffers), set(start.frozen)) == (set(), {"table"})
    both(lambda: TorchLearner(seeded(Positions).double()))


def test_a_callable_is_called_under_the_runs_seed():
    def make():
        return nn.Linear(6, 3)

    learner = TorchLearner(make)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    a, b = learner.init(1).shared["weight"], learner.init(2).shared["weight"]
    assert torch.equal(a, TorchLearner(make).init(1).shared["weight"])
    assert not torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())  # the user's generator is left alone


# ------------------------------------------------------------ dropout


def tensor(n):
    return torch.tensor(n, dtype=torch.int64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200, 100), (20, 10, 10, 10), (20000,)])
def test_masks_drop_with_probability_p(p, shape):
    dropped = [1 - keep(torch.Size(shape), p, tensor(s), tensor(s % 3), 1).double().mean().item() for s in range(10)]
    assert np.mean(dropped) == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 200_000))
    assert max(abs(d - p) for d in dropped) < 6 * np.sqrt(p * (1 - p) / 20_000)


def test_rows_columns_steps_calls_and_seeds_are_unrelated():
    def mask(seed=7, step=3, call=1):
        return keep(torch.Size((300, 300)), 0.5, tensor(seed), tensor(step), call).double() - 0.5

    base = mask()
    bound = 5 * 0.25 / 300
    for other in (
        mask(seed=8),
        mask(step=4),
        mask(call=2),
        mask(seed=7 + 2**40),
        base.T,
        base.roll(1, 0),
        base.roll(1, 1),
    ):
        assert abs((base * other).mean().item()) < bound
    assert torch.equal(base, mask())
    lines = torch.cat([base.mean(0), base.mean(1)])
    assert lines.abs().max() < 6 * 0.5 / np.sqrt(300)


def test_a_mask_does_not_depend_on_padding():
    for dim in (0, 1):
        shape = [5, 7]
        small = keep(torch.Size(shape), 0.5, tensor(1), tensor(2), 3)
        shape[dim] += 4
        large = keep(torch.Size(shape), 0.5, tensor(1), tensor(2), 3)
        assert torch.equal(large.narrow(dim, 0, small.shape[dim]), small)


def test_masks_in_vmap_are_each_clients_own():
    seeds, steps = torch.arange(4) * 10**12, torch.tensor([0, 5, 5, 9])
    stacked = torch.func.vmap(lambda s, t: keep(torch.Size((6, 5)), 0.3, s, t, 2))(seeds, steps)
    for i in range(4):
        assert torch.equal(stacked[i], keep(torch.Size((6, 5)), 0.3, seeds[i], steps[i], 2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout(0.4), (400, 50)),
        (nn.Dropout1d(0.4), (400, 50, 3)),
        (nn.Dropout2d(0.4), (400, 50, 2, 2)),
        (nn.Dropout3d(0.4), (400, 50, 2, 2, 2)),
        (nn.AlphaDropout(0.4), (400, 50)),
        (nn.FeatureAlphaDropout(0.4), (400, 50, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_dropout_has_torchs_distribution(layer, shape):
    """Mean and variance, which elements go together, and that torch's own generator is not touched."""
    x = torch.ones(shape, dtype=torch.float64)
    before = torch.get_rng_state()
    with Masks(tensor(3), tensor(1)) as masks:
        ours = layer.train()(x)
    assert torch.equal(before, torch.get_rng_state())
    assert masks.drew
    theirs = seeded(lambda: layer(x))
    assert ours.unique().tolist() == pytest.approx(theirs.unique().tolist())
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.05)
    assert ours.var().item() == pytest.approx(theirs.var().item(), abs=0.05)
    whole = (ours.flatten(2).var(2) == 0).all() if ours.dim() > 2 else True
    assert whole == ((theirs.flatten(2).var(2) == 0).all() if theirs.dim() > 2 else True)
    with Masks(tensor(3), tensor(1)):
        assert torch.equal(layer.eval()(x), x)


def test_p_of_zero_and_one():
    x = torch.ones(50)
    with Masks(tensor(3), tensor(1)):
        assert torch.equal(F.dropout(x, 0.0), x)
        assert torch.equal(F.dropout(x, 1.0), torch.zeros(50))


class Recurrent(nn.Module):
    def __init__(self, kind="LSTM", both=False, batch_first=True):
        super().__init__()
        self.first = batch_first
        self.rnn = getattr(nn, kind)(2, 3, num_layers=2, dropout=0.5, bidirectional=both, batch_first=batch_first)
        self.head = nn.Linear(6 if both else 3, 3)

    def forward(self, x):
        x = x.reshape(len(x), 3, 2)
        if not self.first:
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self, weights=False):
        super().__init__()
        self.weights = weights
        self.layer = nn.TransformerEncoderLayer(2, 2, 5, dropout=0.3, batch_first=True)
        self.attention = nn.MultiheadAttention(2, 1, dropout=0.3, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.layer(x.reshape(len(x), 3, 2))
        return self.head(self.attention(x, x, x, need_weights=self.weights)[0].flatten(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recurrent(),
        lambda: Recurrent("GRU"),
        lambda: Recurrent("RNN", both=True),
        lambda: Recurrent("LSTM", batch_first=False),
        lambda: Transformer(),
        lambda: Transformer(weights=True),
    ],
    ids=["lstm", "gru", "rnn-both-ways", "lstm-time-first", "transformer", "attention-weights"],
)
def test_dropout_inside_layers_is_the_same_in_lanes(make):
    a, b = both(lambda: TorchLearner(seeded(make).double()), rounds=2)
    assert "sequential" not in b.choices
    plain = seeded(make).double()
    for part in plain.modules():
        if hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0.0
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    without = train(TorchLearner(plain), rounds=2)
    assert np.abs(tree.flatten(a.variables.shared) - tree.flatten(without.variables.shared)).max() > 1e-4


def test_a_recurrent_layer_without_dropout_is_torchs():
    """The layer-by-layer rewrite, with a mask that keeps all, is the plain LSTM."""
    lstm = seeded(lambda: nn.LSTM(2, 3, num_layers=3, dropout=1e-12, bidirectional=True)).double().train()
    x = torch.from_numpy(RNG.normal(size=(5, 4, 2)))
    with Masks(tensor(3), tensor(1)) as masks:
        ours, (h, c) = lstm(x)
    assert masks.calls == 2
    lstm.dropout = 0.0
    theirs, (h2, c2) = lstm(x)
    for found, expected in ((ours, theirs), (h, h2), (c, c2)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_dropout_is_torchs(causal):
    q, k, v = (torch.from_numpy(RNG.normal(size=(2, 3, 5, 4))) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    with Masks(tensor(3), tensor(1)):
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=1e-12, is_causal=causal)
    torch.testing.assert_close(found, expected)


class Noisy(nn.Module):
    """Randomness that is no dropout, next to a dropout."""

    def __init__(self, rrelu):
        super().__init__()
        self.rrelu, self.a, self.b = rrelu, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = F.dropout(self.a(x), 0.2, self.training)
        return self.b(F.rrelu(x, training=self.training) if self.rrelu else x + 0.1 * torch.rand(x.shape[1]))


@pytest.mark.parametrize("rrelu", [True, False])
def test_other_randomness_runs_one_by_one_with_a_notice_and_agrees(rrelu):
    seen = []
    a = train(TorchLearner(seeded(lambda: Noisy(rrelu)).double()))
    torch.manual_seed(123)
    b = train(TorchLearner(seeded(lambda: Noisy(rrelu)).double()), LANES, observers=[seen.append])
    np.testing.assert_array_equal(tree.flatten(a.variables.shared), tree.flatten(b.variables.shared))
    notices = [event.text for event in seen if isinstance(event, events.Notice)]
    assert len(notices) == 1
    assert "one after another" in notices[0]
    assert "sequential" in b.choices


def test_a_module_without_dropout_draws_nothing():
    state = torch.get_rng_state()
    train(TorchLearner(mlp()))
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------ losses, metrics, predictions


def test_regression_with_one_output():
    y = X @ np.arange(6.0)
    clients = Clients.from_arrays(X, y, PARTS)
    a, _ = both(
        lambda: TorchLearner(seeded(lambda: nn.Linear(6, 1)).double(), "mse", metrics=("mae",)),
        clients=clients, evaluate=(X, y),
    )  # fmt: skip
    output = a.model()(torch.from_numpy(X)).detach().numpy()[:, 0]
    assert a.history[-1]["loss"] == pytest.approx(((output - y) ** 2).mean())
    assert a.history[-1]["mae"] == pytest.approx(np.abs(output - y).mean())
    np.testing.assert_allclose(a.predict(X).reshape(-1), output)


def test_binary_cross_entropy():
    y = (X[:, 0] > 0).astype(int)
    clients = Clients.from_arrays(X, y, PARTS)
    a, _ = both(
        lambda: TorchLearner(seeded(lambda: nn.Linear(6, 1)).double(), "binary_cross_entropy"),
        clients=clients, evaluate=(X, y),
    )  # fmt: skip
    logits = a.model()(torch.from_numpy(X))[:, 0]
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(y).double())
    assert a.history[-1]["loss"] == pytest.approx(float(expected.detach()))
    assert a.history[-1]["accuracy"] == pytest.approx(((logits.detach().numpy() > 0) == y).mean())
    np.testing.assert_array_equal(a.predict(X), (logits.detach().numpy() > 0).astype(int))


def test_a_loss_and_metric_of_ones_own():
    def huber(output, y):
        return F.huber_loss(output[:, 0], y, reduction="none")

    def within_one(output, y):
        return ((output[:, 0] - y).abs() < 1).to(output.dtype)

    y = X[:, 0] * 2
    result = train(
        TorchLearner(seeded(lambda: nn.Linear(6, 1)).double(), huber, metrics=[within_one]),
        clients=Clients.from_arrays(X, y, PARTS), evaluate=(X, y),
    )  # fmt: skip
    assert set(result.history[-1]) >= {"loss", "within_one", "train_loss", "train_within_one"}


def test_a_sequence_of_labels():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            return self.head(x.reshape(len(x), 3, 2))

    y = np.digitize(X.reshape(40, 3, 2)[:, :, 0], [-0.5, 0.5])
    a, _ = both(
        lambda: TorchLearner(seeded(Tagger).double()), clients=Clients.from_arrays(X, y, PARTS), evaluate=(X, y)
    )
    with torch.no_grad():
        output = a.model()(torch.from_numpy(X))
    expected = F.cross_entropy(output.reshape(-1, 3), torch.from_numpy(y).reshape(-1))
    assert a.history[-1]["loss"] == pytest.approx(float(expected))
    assert a.history[-1]["accuracy"] == pytest.approx((output.argmax(-1).numpy() == y).mean())


def test_labels_that_are_whole_numbers_in_floats_are_labels():
    result = train(TorchLearner(mlp()), clients=Clients.from_arrays(X, Y.astype(float), PARTS))
    expected = train(TorchLearner(mlp()), clients=Clients.from_arrays(X, Y, PARTS))
    np.testing.assert_array_equal(result.params["0.weight"], expected.params["0.weight"])


def test_predicting_does_not_change_the_users_data():
    module = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))).double()
    x = X.copy()
    learner = TorchLearner(module)
    learner.predict(learner.init(0), x)
    np.testing.assert_array_equal(x, X)
    learner.evaluate(learner.init(0), Data(x, Y))
    np.testing.assert_array_equal(x, X)
    train(learner, clients=Clients.from_arrays(x, Y, PARTS, holdout=0.2), evaluate=(x, Y))
    np.testing.assert_array_equal(x, X)


# ------------------------------------------------------------ refusals


def client(x=X, y=Y):
    return Client("st-mary", Data(x, y))


def nothing():
    return None


PLAN_ERRORS = {
    "no module": (lambda: TorchLearner(5), "module=5"),
    "makes no module": (lambda: TorchLearner(nothing), "NoneType"),
    "no parameters": (lambda: TorchLearner(nn.ReLU()), "no parameters"),
    "all frozen": (lambda: TorchLearner(nn.Linear(2, 2), frozen=("*",)), "all parameters"),
    "unknown loss": (lambda: TorchLearner(nn.Linear(2, 2), "cross-entropy"), "cross_entropy"),
    "a loss's class": (lambda: TorchLearner(nn.Linear(2, 2), nn.CrossEntropyLoss), "reduction='none'"),
    "no loss": (lambda: TorchLearner(nn.Linear(2, 2), 3), "loss=3"),
    "unknown metric": (lambda: TorchLearner(nn.Linear(2, 2), metrics=("acuracy",)), "'acuracy'"),
    "a metric alone": (lambda: TorchLearner(nn.Linear(2, 2), metrics="accuracy"), r"\('accuracy',\)"),
    "a pattern alone": (lambda: TorchLearner(nn.Linear(2, 2), personal="bias"), r"\('bias',\)"),
    "a pattern that matches nothing": (lambda: TorchLearner(nn.Linear(2, 2), frozen=("head.*",)), "head"),
    "both personal and frozen": (lambda: TorchLearner(nn.Linear(2, 2), personal=("bias",), frozen=("*",)), "bias"),
    "two dtypes": (lambda: TorchLearner(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())), "float64"),
    "a reduced loss": (lambda: TorchLearner(mlp(), nn.CrossEntropyLoss()).check(client()), "reduction='none'"),
    "a loss that does not fit": (lambda: TorchLearner(mlp(), "mse").check(client()), "loss"),
}


@pytest.mark.parametrize("case", PLAN_ERRORS)
def test_a_learner_is_refused_with_the_reason(case):
    make, says = PLAN_ERRORS[case]
    with pytest.raises(PlanError, match=says):
        make()


DATA_ERRORS = {
    "a label too high": (mlp, "cross_entropy", X, Y + 1, "from 1 to 3.*3 outputs"),
    "a label below zero": (mlp, "cross_entropy", X, Y - 1, "from -1 to 1"),
    "labels between": (mlp, "cross_entropy", X, Y + 0.5, "whole numbers"),
    "no labels": (mlp, "cross_entropy", X, None, "no labels"),
    "a wrong width": (mlp, "cross_entropy", X[:, :4], Y, r"\[2, 4\]"),
    "one example under batch norm": (lambda: mlp(norm=True), "cross_entropy", X[:1], Y[:1], "GroupNorm"),
    "binary labels 1 and 2": (lambda: nn.Linear(6, 1).double(), "binary_cross_entropy", X, (Y > 1) + 1, "from 1 to 2"),
    "binary labels -1 and 1": (
        lambda: nn.Linear(6, 1).double(), "binary_cross_entropy", X, (Y > 1) * 2 - 1, "from -1 to 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA_ERRORS)
def test_data_that_cannot_be_learnt_from_are_refused_with_the_clients_name(case):
    make, loss, x, y, says = DATA_ERRORS[case]
    with pytest.raises(DataError, match=says) as refused:
        TorchLearner(make(), loss).check(client(x, y))
    assert "st-mary" in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train_alike(dtype):
    def make():
        return TorchLearner(seeded(lambda: nn.Linear(6, 3)).to(dtype))

    a, b = train(make(), rounds=4, evaluate=(X, Y)), train(make(), LANES, rounds=4, evaluate=(X, Y))
    x, y = tree.flatten(a.variables.shared).astype(float), tree.flatten(b.variables.shared).astype(float)
    assert np.abs(x - y).max() / np.abs(x).max() < 0.03
    assert a.history[-1]["loss"] < a.history[0]["loss"]
    assert a.params["weight"].shape == (3, 6)


def test_scaffold_with_personal_layers_frozen_layers_and_batch_norm():
    def make():
        module = mlp(norm=True)
        module[0].bias.requires_grad_(False)
        return TorchLearner(module, personal=("3",))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, _ = both(make, algorithm=Scaffold(lr=0.1, epochs=1, batch_size=4))
    assert set(a.state["control"]) == {"0.weight", "1.weight", "1.bias"}
