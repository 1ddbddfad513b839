"""scikit-learn manners: ``fit(X, y, groups=hospital)`` and ``predict(X)``, one client or worker for each group."""

from insitu.estimators.boosted import DistributedXGBClassifier, DistributedXGBRegressor
from insitu.estimators.classifier import FederatedClassifier
from insitu.estimators.kmeans import FederatedKMeans
from insitu.estimators.knn import FederatedKNeighborsClassifier
from insitu.estimators.regressor import FederatedRegressor

__all__ = [
    "FederatedClassifier",
    "FederatedKMeans",
    "FederatedKNeighborsClassifier",
    "FederatedRegressor",
    "DistributedXGBClassifier",
    "DistributedXGBRegressor",
]
