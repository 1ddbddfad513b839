"""Every error that insitu raises on purpose.

::

    InsituError
    ├── PlanError        a plan whose parts do not fit together, or a part with a bad argument
    ├── ConfigError      a TOML file or command line that does not say a valid plan
    ├── DataError        data that cannot be learnt from; names the client and the column
    ├── ClientError      one client's work failed; names client, round and stage (only Debug raises it)
    ├── UpdateError      an update that must not be counted (NaN, Inf, wrong structure); names client and tensor
    ├── WireError        bytes that are not a tree of ours, or were damaged
    ├── StoreError       the store cannot be read or written; says what is safe and what to do
    │   ├── Fenced       another coordinator has taken over, so nothing was written
    │   ├── DiskFull     no room for it, so nothing was written; the same may work later
    │   └── BlobError    bytes that are not there, longer than declared, or not those of their digest
    ├── TokenError       an invitation that is unknown, used, expired, or for another name
    ├── Refusal          a request that is not answered, with a code that programs understand
    ├── ResumeError      a run that cannot be resumed with what was given
    ├── EngineError      the engine itself failed (not one client's work)
    ├── Halted           a run is to pause or stop now: its engine raises it, and the run can be resumed
    ├── RoundError       rounds keep missing their quorum, so the run stops
    └── MissingExtra     an optional dependency is not installed; says the command that installs it

A message names the thing, its value and the cure, in that order.
"""


class InsituError(Exception):
    """The root of all errors raised by insitu."""


class PlanError(InsituError, ValueError):
    """A plan or one of its parts is not valid."""


class ConfigError(InsituError, ValueError):
    """A configuration text does not describe a valid run."""


class DataError(InsituError, ValueError):
    """Data that cannot be learnt from."""


class ClientError(InsituError, RuntimeError):
    """The work of one client failed."""


class UpdateError(InsituError, ValueError):
    """An update that must not be counted."""


class WireError(InsituError, ValueError):
    """Bytes that are not a tree written by :mod:`insitu.core.wire`."""


class StoreError(InsituError, RuntimeError):
    """The store cannot be read or written."""


class Fenced(StoreError):
    """Another coordinator leads this federation."""


class DiskFull(StoreError):
    """There is no room left where it would have been written."""


class BlobError(StoreError):
    """Bytes that are not what they were said to be."""


class TokenError(InsituError, ValueError):
    """An invitation that does not let anybody in."""


class Refusal(InsituError, RuntimeError):
    """A request that is not answered, or a task that is not done. ``code`` is one of ``engines/https/codes.py``."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class ResumeError(InsituError, ValueError):
    """A run cannot be resumed with what was given."""


class EngineError(InsituError, RuntimeError):
    """An engine cannot start or go on."""


class RoundError(InsituError, RuntimeError):
    """A round was discarded and the policy says to stop."""


class Halted(InsituError, RuntimeError):
    """A run is to pause or stop, in the middle of a round: what is committed stays, and it can be resumed."""


class MissingExtra(InsituError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'insitu[{extra}]'",
            name=package,
        )
