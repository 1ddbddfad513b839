"""XGBoost over worker processes: each holds its own rows, and they add their histograms by XGBoost's own collective."""

from insitu.estimators.boosted.classifier import DistributedXGBClassifier
from insitu.estimators.boosted.regressor import DistributedXGBRegressor

__all__ = ["DistributedXGBClassifier", "DistributedXGBRegressor"]
