"""Ranks on a Ray cluster, as workers of Ray Train's TorchTrainer."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import typer

from insitu.core.errors import EngineError, InsituError, MissingExtra

LOCAL = "local"


def run_on_ray(address: str, file: Path, changes: list[str], workers: int, restarts: int, timeout: float) -> None:
    """Runs the configuration, which all nodes must see under the same path, as must be its store and data.

    Raises MissingExtra, or EngineError where there is no cluster at the address, or a worker failed too often.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise MissingExtra("ray", "ray", "insitu launch --ray") from error
    _connect(ray, address, workers, timeout)
    try:
        _check_room(ray, address, workers)
        trainer = TorchTrainer(
            train,
            train_loop_config={
                "file": str(file.absolute()),
                "changes": changes,
                "launch": f"ray-{secrets.token_hex(6)}",
                "folder": os.getcwd(),
            },  # fmt: skip
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=int(restarts))),
            torch_config=TorchConfig(backend="gloo", timeout_s=max(1, round(timeout))),
        )
        trainer.fit()
    except InsituError:
        raise
    except Exception as error:
        raise EngineError(f"the run on Ray failed: {_last(error)}") from error
    finally:
        ray.shutdown()
    typer.echo("Ray's workers have ended; insitu runs lists what is in the store", err=True)


def train(config: dict[str, Any]) -> None:
    """What each of Ray's workers does: the same ``insitu run`` as everywhere else, in the group that Ray has made."""
    from insitu.cli.run import run

    os.chdir(config["folder"])
    os.environ["INSITU_LAUNCH"] = config["launch"]
    run(Path(config["file"]), changes=config["changes"])


def _connect(ray: Any, address: str, workers: int, timeout: float) -> None:
    """Raises EngineError where no cluster answers."""
    quiet = {"log_to_driver": True, "configure_logging": True, "logging_level": "warning"}
    try:
        if address == LOCAL:
            ray.init(num_cpus=workers + 1, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except Exception as error:
        raise EngineError(
            f"no Ray cluster answers at {address!r} ({_last(error)}): start one with ray start --head, give its address"
            f" (ray://HOST:10001, HOST:6379, auto), or say --ray {LOCAL}"
        ) from error


def _check_room(ray: Any, address: str, workers: int) -> None:
    """A cluster that is too small would wait for ever."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers:
        raise EngineError(
            f"{workers} workers need a core each, and the Ray cluster at {address!r} has {cpus}: give --workers {cpus},"
            " or add nodes"
        )


def _last(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:400]
