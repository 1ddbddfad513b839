"""A model with fit, get_params and set_params, trained by workers who share the data, and by clients who own it.

The object knows nothing of insitu. Distributed: the rows are dealt to worker processes, each fits its share, and the
parameters are averaged. Federated: the same object on clients whose data are uneven and stay where they are.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import insitu
from insitu.algorithms.fedavg import FedAvg
from insitu.data import Clients
from insitu.data.partition import dirichlet, iid
from insitu.engines.processes import Processes
from insitu.learners.estimator import EstimatorLearner


class Softmax:
    """Multinomial logistic regression by gradient descent."""

    def __init__(self, features, classes, lr=0.5, passes=20):
        self.weight, self.bias = np.zeros((features, classes)), np.zeros(classes)
        self.lr, self.passes = lr, passes

    def probabilities(self, x):
        scores = x @ self.weight + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def fit(self, x, y):
        for _ in range(self.passes):
            error = self.probabilities(x) - np.eye(len(self.bias))[y]
            self.weight = self.weight - self.lr * x.T @ error / len(x)
            self.bias = self.bias - self.lr * error.mean(axis=0)
        return self

    def predict(self, x):
        return self.probabilities(x).argmax(axis=1)

    def get_params(self):
        return [self.weight, self.bias]

    def set_params(self, params):
        self.weight, self.bias = params


def main(rounds=30):
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    model = Softmax(x.shape[1], 10)

    def accuracy(trained):
        return float(np.mean(trained.predict(x_test) == y_test))

    found = {"one machine, all data": accuracy(Softmax(64, 10, passes=20 * rounds).fit(x, y))}
    plan = insitu.Plan(FedAvg(), learner=EstimatorLearner(model))
    for name, parts, engine in [
        ("distributed, 4 shards on 2 workers", iid(len(x), 4, seed=0), Processes(workers=2)),
        ("federated, 20 uneven clients", dirichlet(y, 20, alpha=0.3, seed=0), "inline"),
    ]:
        clients = Clients.from_arrays(x, y, parts)
        result = insitu.run(plan, clients, rounds=rounds, engine=engine, store=None, observers=())
        found[name] = accuracy(result.model())
    for name, value in found.items():
        print(f"{name:36s} test accuracy {value:.3f}")
    return found


if __name__ == "__main__":
    main()
