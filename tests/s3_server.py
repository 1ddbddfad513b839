"""An S3-compatible server of the tests' own: moto's, in a process, out of an environment of its own.

It needs boto3, whose dependencies do not go with ours; so it is no part of what the tests are run with.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "of-insitu", "AWS_REGION": "eu-central-1"}


def program() -> str | None:
    """The command that starts it: INSITU_MOTO, or where the path leads."""
    return os.environ.get("INSITU_MOTO") or shutil.which("moto_server")


class S3Server:
    """Started at once. ``fresh()`` gives the URL of a new bucket."""

    def __init__(self, command: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._count = 0
        self._process = subprocess.Popen(
            [command, "-H", "127.0.0.1", "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            try:
                self._ask("GET", "/")
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise AssertionError(f"{command} does not answer")

    def fresh(self) -> str:
        self._count += 1
        name = f"bucket-{self._count}"
        self._ask("PUT", f"/{name}")
        return f"s3://{name}/some/prefix?endpoint={self.endpoint}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _ask(self, method: str, path: str) -> None:
        said = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        request = urllib.request.Request(self.endpoint + path, method=method, headers={"authorization": said})
        with urllib.request.urlopen(request, timeout=5):
            pass
