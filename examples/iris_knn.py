"""Three nearest neighbours on iris: on one machine, dealt to workers, and on clients who keep their rows.

The predictions are the same on every test row, since the three nearest of all rows are among the three nearest of each
client. What a client tells of its rows are distances, labels and row numbers.
"""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import insitu
from insitu.algorithms.knn import KNN
from insitu.data import Clients
from insitu.data.partition import iid
from insitu.engines.processes import Processes


def by_hand(x, y, queries, k=3):
    """The rule itself: the k rows with the least (distance, row number) vote; equal votes go to the smaller label."""
    labels = []
    for query in queries:
        distance = ((x - query) ** 2).sum(axis=1)
        nearest = sorted(range(len(x)), key=lambda row: (distance[row], row))[:k]
        labels.append(np.bincount(y[nearest]).argmax())
    return np.array(labels)


def main():
    x, y = load_iris(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=42)
    predictions = {
        "central, scikit-learn": KNeighborsClassifier(n_neighbors=3).fit(x, y).predict(x_test),
        "central, by hand": by_hand(x, y, x_test),
    }
    plan = insitu.Plan(KNN(k=3))
    for name, clients, engine in [
        ("distributed, 4 shards on 2 workers", Clients.from_arrays(x, y, iid(len(x), 4, seed=0)), Processes(workers=2)),
        ("federated, one species a client", Clients.by_key(x, y, y), "inline"),
    ]:
        result = insitu.run(plan, clients, rounds=1, engine=engine, store=None, observers=())
        predictions[name] = result.model().predict(x_test)
    central = predictions["central, scikit-learn"]
    for name, labels in predictions.items():
        same = int((labels == central).sum())
        print(f"{name:38s} accuracy {np.mean(labels == y_test):.3f}, {same} of {len(y_test)} rows as central")
    return predictions


if __name__ == "__main__":
    main()
