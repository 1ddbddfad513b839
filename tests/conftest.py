"""What all tests share: none of them reads or writes what this machine's user has measured before.

And a PostgreSQL server and an S3 server, started when the first test asks for them. Where their programs are missing
such tests are skipped, unless INSITU_POSTGRES=required or INSITU_S3=required says that they may not be.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile

import pytest
from postgres_server import Server, binaries
from s3_server import KEYS, S3Server, program

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="insitu-tests-")


@pytest.fixture(scope="session")
def postgres():
    """A server of this session's own."""
    folder = binaries()
    missing = "" if folder else "PostgreSQL's server is not installed (apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None:
        missing = "psycopg is not installed (pip install 'insitu[postgres]')"
    if missing:
        if os.environ.get("INSITU_POSTGRES") == "required":
            pytest.fail(f"{missing}, and INSITU_POSTGRES=required")
        pytest.skip(missing)
    server = Server(folder)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def s3():
    """A server of this session's own."""
    command = program()
    if command is None:
        missing = "moto_server is not installed (pip install 'moto[s3,server]', in an environment of its own)"
        if os.environ.get("INSITU_S3") == "required":
            pytest.fail(f"{missing}, and INSITU_S3=required")
        pytest.skip(missing)
    server = S3Server(command)
    yield server
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The URL of a new bucket, and the keys to it in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return s3.fresh()
