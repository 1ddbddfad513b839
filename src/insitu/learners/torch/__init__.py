"""PyTorch modules as learners."""

from insitu.core.errors import MissingExtra

try:
    from insitu.learners.torch.learner import TorchLearner
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtra("torch", "torch", "TorchLearner") from error

__all__ = ["TorchLearner"]
