"""insitu: trains one model on data that stays where it is."""

from insitu.core.errors import InsituError
from insitu.core.types import Client, Data, Variables
from insitu.estimate import Estimate, estimate
from insitu.history import History
from insitu.profile import Profile
from insitu.result import Result
from insitu.rounds.cohort import Everyone, Poisson, Uniform
from insitu.rounds.plan import Plan
from insitu.rounds.policy import Policy
from insitu.run import run
from insitu.version import __version__

__all__ = [
    "Client",
    "Data",
    "Estimate",
    "Everyone",
    "History",
    "InsituError",
    "Plan",
    "Poisson",
    "Policy",
    "Profile",
    "Result",
    "Uniform",
    "Variables",
    "__version__",
    "estimate",
    "run",
]
