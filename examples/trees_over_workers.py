"""The same trees three ways: one process of XGBoost, workers with XGBoost's collective, and a plan on clients.

Values are rounded so that no feature has more distinct ones than bins: then nothing is lost, and all three agree.
"""

import numpy as np
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

import insitu
from insitu.algorithms.boosting import Boosting
from insitu.data import Clients
from insitu.data.partition import iid
from insitu.estimators import DistributedXGBClassifier

TREES, DEPTH = 20, 3


def main():
    x, y = load_breast_cancer(return_X_y=True)
    x = np.floor(64 * (x - x.min(axis=0)) / np.ptp(x, axis=0))
    test = np.arange(len(x)) % 4 == 0
    x_train, y_train = x[~test], y[~test]

    alone = xgboost.XGBClassifier(n_estimators=TREES, max_depth=DEPTH, tree_method="hist").fit(x_train, y_train)

    workers = DistributedXGBClassifier(TREES, max_depth=DEPTH, workers=2).fit(x_train, y_train)

    boosting = Boosting(trees=TREES, depth=DEPTH)
    clients = Clients.from_arrays(x_train, y_train, iid(len(x_train), 4, seed=0))
    plan = insitu.run(insitu.Plan(boosting), clients, rounds=boosting.rounds, engine="inline", store=None, observers=())

    found = {
        "one process": alone.predict_proba(x[test])[:, 1],
        "two workers, XGBoost's collective": workers.predict_proba(x[test])[:, 1],
        "a plan on four clients": plan.model().predict_proba(x[test])[:, 1],
    }
    for name, p in found.items():
        far = np.abs(p - found["one process"]).max()
        print(f"{name:34} AUC {roc_auc_score(y[test], p):.4f}   farthest from one process {far:.0e}")
    return found


if __name__ == "__main__":
    main()
