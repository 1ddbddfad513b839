"""A PostgreSQL server of the tests' own, in a folder of its own: real binaries, loopback and a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

FAST = ("fsync=off", "full_page_writes=off", "max_connections=60", "log_min_messages=panic", "shared_buffers=32MB")
"""The machine does not lose its power in a test; killing the server loses nothing without fsync."""


def binaries() -> Path | None:
    """The folder that holds ``initdb``, of the newest server installed; None where there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


class Server:
    """Made and started at once. ``url(name)`` is that of a database; ``fresh()`` that of a new one."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder
        self.root = Path(tempfile.mkdtemp(prefix="insitu-postgres-"))
        self._as = []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("postgres")
            os.chown(self.root, user.pw_uid, user.pw_gid)
            self._as = ["runuser", "-u", "postgres", "--"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._count = 0
        self._call("initdb", "-D", self.root / "data", "-U", "insitu", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        lines = [*FAST, f"port={self.port}", "listen_addresses='127.0.0.1'", f"unix_socket_directories='{self.root}'"]
        subprocess.run(
            [*self._as, "tee", "-a", str(self.root / "data" / "postgresql.conf")],
            input="\n".join(lines) + "\n",
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        self.start()

    def start(self) -> None:
        self._call("pg_ctl", "-D", self.root / "data", "-w", "-l", self.root / "log", "start")

    def stop(self, how: str = "immediate") -> None:
        """``immediate`` is a crash, ``fast`` an orderly end."""
        self._call("pg_ctl", "-D", self.root / "data", "-w", "-m", how, "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.root)

    def url(self, name: str = "postgres", *, port: int | None = None) -> str:
        return f"postgresql://insitu@127.0.0.1:{port or self.port}/{name}?sslmode=disable"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        self._count += 1
        name = f"test_{os.getpid()}_{self._count}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, name: str, statement: str) -> list[tuple]:
        """What ``statement`` gives in a database, by its name or URL: outside of what is tested."""
        import psycopg

        url = name if "://" in name else self.url(name)
        with psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute(statement)
            return found.fetchall() if found.description else []

    def _call(self, name: str, *arguments: object) -> None:
        command = [*self._as, str(self._bin / name), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
