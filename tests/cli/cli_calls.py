"""Ways to start commands: in this process, and in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from insitu.cli.main import app

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": ""}


def call(*args):
    """Runs a command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args):
    """The same, which has to succeed; what it wrote on stdout."""
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def command(*args):
    """The command line of a process of its own."""
    return [sys.executable, "-m", "insitu", *map(str, args)]


def started(*args, cwd: Path):
    """A process of its own, running."""
    return subprocess.Popen(command(*args), cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*args, cwd: Path):
    """The result of a process of its own, which has to succeed."""
    result = subprocess.run(command(*args), cwd=cwd, env=ENV, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stderr
    return result
