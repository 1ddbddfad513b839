"""A federation as processes on this machine: the commands that people type, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from insitu.cli.main import app

DATA = '''
"""Tumours, of which each site has its own."""

import numpy as np

from insitu.data import sets


def load(part: int, of: int = 2):
    found = sets.load("breast_cancer")
    rows = np.arange(len(found.x)) % of == part
    return found.x[rows], found.y[rows]
'''
PLAN = """
[run]
rounds = {rounds}
seed = 3

[learner]
name = "logistic"

[algorithm]
name = "fedavg"
lr = 0.1
batch_size = 16
"""
SITES = ("berlin", "paris")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"}
ENV.pop("INSITU_FEDERATION", None)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Federation:
    """The folder ``study``, a coordinator and sites; all that was started is ended by ``close``."""

    def __init__(self, folder: Path, rounds: int = 4, settings: str = "", hosts: tuple[str, ...] = ()) -> None:
        self.folder, self.port, self.running = folder, free_port(), {}
        named = [word for host in hosts for word in ("--host", host)]
        self.call("federation", "init", "study", "--port", self.port, *named)
        if settings:
            with (folder / "study" / "federation.toml").open("a", encoding="utf-8") as file:
                file.write(settings)
        (folder / "data.py").write_text(DATA, encoding="utf-8")
        (folder / "plan.toml").write_text(PLAN.format(rounds=rounds), encoding="utf-8")

    def start(self, name, *args, **env):
        """A process that goes on, with its stderr in a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command(*args), cwd=self.folder, env={**ENV, **env}, stdout=log, stderr=log
            )

    def coordinator(self, **env):
        self.start("coordinator", "coordinator", "study", **env)
        self.until(lambda: self.try_call("status", "--federation", "study").exit_code == 0, "the coordinator leads")

    def join(self, part, name, of=2):
        token = self.call("federation", "invite", name, "--federation", "study").strip()
        source = f'[data]\nsource = {{ name = "data.py:load", part = {part}, of = {of} }}\n'
        (self.folder / f"{name}.toml").write_text(source, encoding="utf-8")
        self.call("site", "join", f"https://localhost:{self.port}", "--token", token, "--data", f"{name}.toml", name)

    def site(self, name, **env):
        self.start(name, "site", "run", name, **env)

    def operator(self):
        from insitu.federation.operator import Operator

        return Operator(self.folder / "study")

    def call(self, *args):
        """A command in this process, which has to succeed; what it wrote on stdout."""
        done = self.try_call(*args)
        assert done.exit_code == 0, f"{args}\n{done.output}\n{done.exception!r}\n{self.logs()}"
        return done.stdout

    def try_call(self, *args):
        with contextlib.chdir(self.folder):
            return CliRunner().invoke(app, [str(arg) for arg in args])

    def kill(self, name, number=signal.SIGKILL):
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(30)

    def until(self, condition, what, seconds=90.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.logs()}")

    def logs(self):
        texts = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(texts)

    def close(self):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def command(*args):
    return [sys.executable, "-m", "insitu", *map(str, args)]
