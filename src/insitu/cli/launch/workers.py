"""Ranks on this machine: started together, watched, and started again where one of them dies."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from insitu.cli.guard import INTERRUPTED, WRONG
from insitu.core.errors import EngineError

LOOK = 0.1
"""Seconds between looks at the workers."""
GRACE = 5.0
"""Seconds that the others have to end by themselves, and to say what they know, once one has died."""
LAUNCH, PARENT = "INSITU_LAUNCH", "INSITU_LAUNCHER"
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Launcher:
    """A run on ``workers`` processes; each of ``restarts`` goes on from the last committed round."""

    file: Path
    changes: list[str]
    workers: int
    least: int
    restarts: int
    port: int | None

    def run(self) -> int:
        """The exit status: that of the first worker to fail, where nothing more is tried."""
        name, count = f"launch-{secrets.token_hex(6)}", self.workers
        with _left_to_the_workers():
            for left in range(int(self.restarts), -1, -1):
                started = self._started(name, count)
                try:
                    first = _outcome(started)
                finally:
                    _end(started)
                codes = [worker.returncode for worker in started]
                if first is None:
                    return max(codes)
                rank, code = first
                if not left or not _worth_a_restart(codes, code):
                    return _exit_status(code)
                count = max(self.least, count - 1)
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
                typer.echo(
                    f"worker {rank} {how}: going on from the last committed round with {count} worker"
                    f"{'s' * (count > 1)} ({left - 1} more restart{'s' * (left != 2)})",
                    err=True,
                )
        raise AssertionError("the last attempt returns")

    def _started(self, name: str, count: int) -> list[subprocess.Popen[bytes]]:
        port = free_port() if self.port is None else _checked(self.port)
        command = [sys.executable, "-m", "insitu", "run", str(self.file)]
        for change in self.changes:
            command += ["--set", change]
        from insitu.engines.processes.engine import usable_cores

        threads = str(max(1, usable_cores() // count))
        base = {
            "OMP_NUM_THREADS": threads,
            **os.environ,
            "MASTER_ADDR": HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            LAUNCH: name, PARENT: str(os.getpid()),
        }  # fmt: skip
        return [
            subprocess.Popen(command, env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
        ]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def end_with_the_launcher() -> None:
    """In a worker: ends it when its launcher is gone, however that ended. Without one, nothing."""
    if (parent := os.environ.get(PARENT)) is None:
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _checked(port: int) -> int:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a worker of before held is free
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise EngineError(f"port {port} is in use or not allowed ({error.strerror}): leave --port out") from error
    return port


def _outcome(workers: list[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Waits for all; the first to fail, with its status, once the others had time to end. None: all went well."""
    first: tuple[int, int] | None = None
    until = float("inf")
    while time.monotonic() < until:
        codes = [worker.poll() for worker in workers]
        if first is None:
            failed = [(code, rank) for rank, code in enumerate(codes) if code]
            if failed:  # one that was killed explains the others
                code, rank = min(failed)
                first, until = (rank, code), time.monotonic() + GRACE
        if None not in codes:
            break
        time.sleep(LOOK)
    killed = [(rank, code) for rank, code in enumerate(w.poll() for w in workers) if code is not None and code < 0]
    hung = [rank for rank, worker in enumerate(workers) if worker.poll() is None]
    if first and hung and not killed:
        return hung[0], -signal.SIGKILL
    return killed[0] if first and killed else first


def _worth_a_restart(codes: list[int], code: int) -> bool:
    """Whether something died. What a worker said in plain words (bad data, say) would only be said again."""
    return code < 0 or code not in (WRONG, INTERRUPTED)


def _exit_status(code: int) -> int:
    return 128 - code if code < 0 else code


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """No worker is left; one that is stopped does not hear of a gentler signal."""
    for worker in workers:
        if worker.poll() is None:
            with suppress(ProcessLookupError):
                worker.kill()
    for worker in workers:
        worker.wait()


@contextmanager
def _left_to_the_workers() -> Iterator[None]:
    """Ctrl-C reaches the workers as well, who stop after the round: here it only must not end the waiting."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)

    def ended(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    term = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, term)
