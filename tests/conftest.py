"""What all tests share: none of them reads or writes what this machine's user has measured before.

And a PostgreSQL server, started when the first test asks for it. Where its binaries are missing such tests are skipped,
unless INSITU_POSTGRES=required says that they may not be.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile

import pytest
from postgres_server import Server, binaries

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
