"""FederatedClassifier: as good as the same classifier on one machine, whatever it is given."""

import pickle
import signal
import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.algorithms.scaffold import Scaffold
from insitu.core.errors import DataError, PlanError, RoundError
from insitu.data import Clients, load
from insitu.data.partition import dirichlet, iid
from insitu.estimators import FederatedClassifier
from insitu.learners.numpy import LogisticLearner
from insitu.learners.sklearn import SklearnLearner


def split(loader):
    x, y = loader(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    scaler = StandardScaler().fit(x_train)
    return scaler.transform(x_train), scaler.transform(x_test), y_train, y_test


DIGITS, CANCER = split(load_digits), split(load_breast_cancer)
COLOURS = np.array(["red", "green", "blue"])


def three(n=90, seed=0):
    """Three blobs with labels of text."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    return rng.normal(size=(n, 2)) + 5 * np.eye(3)[codes][:, :2], COLOURS[codes]


class Centroids:
    """An object of one's own: the mean of each class, as a list of one array."""

    def __init__(self, classes=3):
        self.classes, self.means = classes, None

    def fit(self, x, y):
        self.means = np.array([x[y == c].mean(axis=0) if (y == c).any() else np.zeros(2) for c in range(self.classes)])

    def predict(self, x):
        return ((x[:, None] - self.means) ** 2).sum(2).argmin(1)

    def predict_proba(self, x):
        return np.eye(self.classes)[self.predict(x)]

    def get_params(self):
        return [] if self.means is None else [self.means]

    def set_params(self, params):
        (self.means,) = params


def small():
    """A perceptron for the blobs, with the same first weights every time."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


# ---------------------------------------------------------------- as good as on one machine


@pytest.mark.parametrize("data", [DIGITS, CANCER], ids=["digits", "breast_cancer"])
@pytest.mark.parametrize(
    ("estimator", "algorithm", "rounds"),
    [
        (SGDClassifier(loss="log_loss", alpha=0.01, random_state=0), FedAvg(batch_size=64), 6),
        (LogisticRegression(), None, 2),
    ],
    ids=["sgd", "logistic"],
)
def test_accuracy_is_the_central_ones(data, estimator, algorithm, rounds):
    x_train, x_test, y_train, y_test = data
    federated = FederatedClassifier(estimator, algorithm, rounds=rounds, clients=8).fit(x_train, y_train)
    central = estimator.fit(x_train, y_train).score(x_test, y_test)
    assert abs(federated.score(x_test, y_test) - central) < 0.03


def test_one_client_and_one_round_is_the_estimator_itself():
    x_train, x_test, y_train, _ = CANCER
    federated = FederatedClassifier(LogisticRegression(tol=1e-8), rounds=1, clients=1).fit(x_train, y_train)
    central = LogisticRegression(tol=1e-8).fit(x_train, y_train)
    np.testing.assert_allclose(federated.predict_proba(x_test), central.predict_proba(x_test), atol=1e-4)
    np.testing.assert_allclose(federated.decision_function(x_test), central.decision_function(x_test), atol=1e-3)


def test_it_is_insitu_run():
    x, y = three()
    codes = np.unique(y, return_inverse=True)[1]
    mine = FederatedClassifier(LogisticLearner(), FedAvg(lr=0.5), rounds=4, clients=5, random_state=3).fit(x, y)
    plan = insitu.Plan(FedAvg(lr=0.5), LogisticLearner())
    result = insitu.run(plan, Clients.from_arrays(x, codes, iid(90, 5, 3)), rounds=4, seed=3, store=None, observers=())
    np.testing.assert_array_equal(mine.result_.params["weight"], result.params["weight"])
    assert [row["train_loss"] for row in mine.history_] == [row["train_loss"] for row in result.history]


def test_heart_disease_at_four_hospitals():
    try:
        heart = load("heart")
    except DataError as error:
        pytest.skip(str(error).splitlines()[0])
    train = np.arange(len(heart)) % 4 > 0
    model = FederatedClassifier(LogisticLearner(), FedAvg(lr=0.1, batch_size=16), rounds=8)
    model.fit(heart.x[train], heart.y[train], groups=heart.keys[train])
    central = LogisticRegression(max_iter=500).fit(heart.x[train], heart.y[train])
    assert model.history_[-1]["clients"] == 4
    assert model.score(heart.x[~train], heart.y[~train]) > central.score(heart.x[~train], heart.y[~train]) - 0.03


# ---------------------------------------------------------------- whatever it is given


@pytest.mark.parametrize(
    ("estimator", "rounds"),
    [
        (SGDClassifier(loss="log_loss"), 5),
        (LogisticRegression(), 2),
        (LogisticLearner(), 20),
        (SklearnLearner(LogisticRegression()), 2),
        (Centroids(), 2),
        ("a module", 15),
        (small, 15),
    ],
    ids=["sgd", "logistic", "learner", "wrapped", "own", "module", "callable"],
)
def test_whatever_can_be_trained(estimator, rounds):
    if estimator in ("a module", small):
        pytest.importorskip("torch")
        estimator = small() if estimator == "a module" else small
    x, y = three()
    model = FederatedClassifier(estimator, rounds=rounds, clients=4).fit(x, y)
    assert model.score(x, y) > 0.9
    np.testing.assert_array_equal(model.classes_, ["blue", "green", "red"])
    p = model.predict_proba(x)
    assert p.shape == (90, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(x))
    of_scikit_learn = isinstance(estimator, (SGDClassifier, LogisticRegression, SklearnLearner))
    assert hasattr(model, "decision_function") == of_scikit_learn


def test_no_probabilities_where_the_estimator_has_none():
    x, y = three()
    model = FederatedClassifier(SGDClassifier(), rounds=2, clients=3).fit(x, y)
    assert not hasattr(model, "predict_proba")
    assert model.decision_function(x).shape == (90, 3)


@pytest.mark.parametrize("labels", [COLOURS, np.array([7, -2, 40]), np.array([0.0, 2.0, 1.0]), np.array([True, False])])
def test_labels_of_any_kind_come_back(labels):
    x, _ = three()
    y = labels[np.arange(90) % 3 % len(labels)]
    predicted = FederatedClassifier(LogisticLearner(), rounds=2, clients=3).fit(x, y).predict(x)
    assert predicted.dtype == y.dtype
    assert set(predicted.tolist()) <= set(y.tolist())


def test_lists_frames_and_tensors():
    x, y = three()
    codes = np.unique(y, return_inverse=True)[1]
    model = FederatedClassifier(LogisticLearner(), rounds=2, clients=3)
    expected = model.fit(x, y).predict(x)
    frame = pd.DataFrame(x, columns=["height", "width"])
    np.testing.assert_array_equal(model.fit(frame, pd.Series(y)).predict(frame), expected)
    assert model.feature_names_in_.tolist() == ["height", "width"]
    assert model.n_features_in_ == 2
    np.testing.assert_array_equal(model.fit(x.tolist(), y.tolist()).predict(x.tolist()), expected)
    assert not hasattr(model, "feature_names_in_")
    grouped = model.fit(frame, pd.Series(y), groups=pd.Series(np.arange(90) % 4))
    assert grouped.history_[-1]["clients"] == 4
    torch = pytest.importorskip("torch")
    predicted = model.fit(torch.tensor(x), torch.tensor(codes)).predict(torch.tensor(x))
    np.testing.assert_array_equal(np.unique(y)[predicted], expected)


def test_images_for_a_module():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(30, 1, 4, 4)).astype(np.float32)
    y = np.arange(30) % 3
    x[np.arange(30), 0, y] += 4  # a bright row, another for each class
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    before = net[0].weight.detach().clone()
    model = FederatedClassifier(net, FedAvg(lr=0.1, epochs=4), rounds=6, clients=3).fit(x, y)
    assert model.score(x, y) > 0.9
    assert torch.equal(net[0].weight, before), "the module that was given is not changed"
    assert isinstance(model.result_.model(), torch.nn.Sequential)


def test_more_outputs_than_classes_are_left_out():
    x, y = three()
    kept = y != "red"
    model = FederatedClassifier(small(), rounds=1, clients=3).fit(x[kept], y[kept])
    assert model.predict_proba(x).shape == (90, 2)
    assert set(model.predict(x)) <= {"blue", "green"}


def test_any_algorithm_cohort_and_engine():
    x, y = three()
    model = FederatedClassifier(
        LogisticLearner(), Scaffold(lr=0.5), rounds=8, clients=6, cohort=insitu.Uniform(3), engine="debug"
    ).fit(x, y)
    assert model.score(x, y) > 0.9
    assert {row["clients"] for row in model.history_} == {3}


# ---------------------------------------------------------------- clients


def test_a_group_is_a_client():
    x, y = three()
    hospital = np.array(["va", "cleveland", "long beach"])[dirichlet_owner(y)]
    model = FederatedClassifier(LogisticLearner(), rounds=30).fit(x, y, groups=hospital)
    assert model.history_[-1]["clients"] == 3
    assert model.score(x, y) > 0.9


def dirichlet_owner(y):
    owner = np.zeros(len(y), dtype=int)
    for place, rows in enumerate(dirichlet(y, 3, alpha=0.5)):
        owner[rows] = place
    return owner


def test_without_groups_there_are_so_many_clients():
    x, y = three()
    assert FederatedClassifier(LogisticLearner(), rounds=1).fit(x, y).history_[0]["clients"] == 10
    assert FederatedClassifier(LogisticLearner(), rounds=1, clients=99).fit(x[:6], y[:6]).history_[0]["clients"] == 6


def test_a_client_may_lack_classes():
    x, y = three()
    model = FederatedClassifier(SGDClassifier(loss="log_loss"), rounds=8).fit(x, y, groups=y)
    assert model.score(x, y) > 0.6


def test_the_seed():
    x, y = three()

    def weights(random_state):
        model = FederatedClassifier(SGDClassifier(), rounds=2, clients=3, random_state=random_state)
        return model.fit(x, y).result_.params["coef_"]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))
    assert not np.array_equal(weights(None), weights(None))
    np.testing.assert_array_equal(weights(np.random.RandomState(1)), weights(np.random.RandomState(1)))


def test_a_trained_model_holds_nobodys_data():
    x, y = three()
    secret = 123456.789
    x[0, 0] = secret
    model = FederatedClassifier(LogisticLearner(), FedAvg(lr=1e-9), rounds=1, clients=3).fit(x, y)
    assert model.result_.clients is None
    assert np.float64(secret).tobytes() not in pickle.dumps(model)


def test_a_store_keeps_the_run(tmp_path):
    x, y = three()
    path = tmp_path / "runs.db"
    model = FederatedClassifier(LogisticLearner(), rounds=2, clients=3, store=path).fit(x, y)
    assert path.exists()
    assert model.result_.rounds == 2


def test_verbose_prints_lines(capsys):
    x, y = three()
    FederatedClassifier(LogisticLearner(), rounds=2, clients=3).fit(x, y)
    assert capsys.readouterr().err == ""
    FederatedClassifier(LogisticLearner(), rounds=2, clients=3, verbose=True).fit(x, y)
    assert capsys.readouterr().err.count("\n") > 1


# ---------------------------------------------------------------- what is refused


def test_before_fit():
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(FederatedClassifier(LogisticRegression()), method)(np.ones((2, 2)))


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (LinearRegression(), "is a regressor: use FederatedRegressor"),
        (SklearnLearner(LinearRegression()), "is a regressor: use FederatedRegressor"),
        (SGDClassifier, "is a class: give an instance"),
        (7, "estimator=7 is nothing that can be trained"),
        (LogisticLearner(classes=("blue", "red")), "leave classes out"),
    ],
    ids=["regressor", "wrapped regressor", "class", "number", "classes"],
)
def test_what_cannot_be_trained(estimator, match):
    x, y = three()
    with pytest.raises(PlanError, match=match):
        FederatedClassifier(estimator).fit(x, y)


def test_a_module_with_too_few_outputs():
    torch = pytest.importorskip("torch")
    x, y = three()
    with pytest.raises(RoundError, match="labels go from 0 to 2, but the module has 2 outputs"):
        FederatedClassifier(torch.nn.Linear(2, 2)).fit(x, y)


def test_personal_parameters_have_no_one_model():
    pytest.importorskip("torch")
    from insitu.learners.torch import TorchLearner

    x, y = three()
    with pytest.raises(PlanError, match="personal parameters, which stay with each client"):
        FederatedClassifier(TorchLearner(small(), personal=("2.*",))).fit(x, y)


def test_one_class():
    with pytest.raises(ValueError, match="only one class, 'a'"):
        FederatedClassifier(LogisticRegression()).fit(np.ones((3, 1)), ["a", "a", "a"])


def test_measures_are_no_labels():
    with pytest.raises(ValueError, match="Unknown label type"):
        FederatedClassifier(LogisticRegression()).fit(np.ones((3, 1)), [0.1, 0.2, 0.7])


def test_groups_of_another_length_or_missing():
    x, y = three()
    with pytest.raises(ValueError, match="90 examples and keys has 2"):
        FederatedClassifier(LogisticLearner()).fit(x, y, groups=["a", "b"])
    with pytest.raises(ValueError, match="keys hold nan at row 0"):
        FederatedClassifier(LogisticLearner()).fit(x, y, groups=[np.nan] + [1.0] * 89)


def test_a_client_that_cannot_learn_fails_the_fit():
    class Picky(Centroids):
        def fit(self, x, y):
            if len(x) < 5:
                raise ValueError("too few for me")
            super().fit(x, y)

    x, y = three()
    with pytest.raises(RoundError, match=r"client 'small'.*too few for me"):
        FederatedClassifier(Picky(), rounds=1).fit(x, y, groups=["small"] * 3 + ["large"] * 87)


def test_an_object_that_predicts_no_codes():
    class Vague(Centroids):
        def predict(self, x):
            return super().predict(x) + 0.5

    x, y = three()
    model = FederatedClassifier(Vague(), rounds=1, clients=2).fit(x, y)
    with pytest.raises(DataError, match="must give the codes 0 … C-1"):
        model.predict(x)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
def test_an_interrupted_fit_warns_and_keeps_its_rounds():
    class Interrupted(Centroids):
        def fit(self, x, y):
            if self.means is not None:
                signal.raise_signal(signal.SIGINT)
            super().fit(x, y)

    x, y = three()
    model = FederatedClassifier(Interrupted(), rounds=9, clients=1)
    with pytest.warns(UserWarning, match="fit was interrupted and has the model of round 2 of 9"):
        model.fit(x, y)
    assert model.score(x, y) > 0.9


def test_a_cohort_may_be_empty_now_and_then():
    x, y = three()
    model = FederatedClassifier(LogisticLearner(), rounds=3, clients=3, cohort=insitu.Poisson(0.5)).fit(x, y)
    assert len(model.history_) == 3
