"""``docs/federations.md``: its five minutes, as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ENV, free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "federations.md"
SHIM = '#!/bin/sh\nexec "{python}" -m insitu "$@"\n'
GOES_ON = ("insitu coordinator", "insitu site run")
FILES = {"python": ["data.py"], "toml": ["berlin.toml", "paris.toml", "plan.toml"]}


def steps():
    """(kind, text) of each block of the tour, in order."""
    tour = PAGE.read_text(encoding="utf-8").partition("## Five minutes")[2].partition("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", tour, re.DOTALL)


def answers(folder, port, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        command = ["insitu", "status", "--federation", "my-study"]
        done = subprocess.run(command, cwd=folder, env=env(folder), capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return
        time.sleep(0.2)
    raise AssertionError(done.stderr)


def env(folder):
    return {**ENV, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.long
def test_the_tour_works_as_written(tmp_path):
    port = free_port()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "insitu").write_text(SHIM.format(python=sys.executable))
    (tmp_path / "bin" / "insitu").chmod(0o755)
    files = {kind: list(names) for kind, names in FILES.items()}
    running, said = [], ""
    try:
        for kind, text in steps():
            if kind in files:
                (tmp_path / files[kind].pop(0)).write_text(text, encoding="utf-8")
                continue
            for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
                command = line.replace("localhost:8443", f"localhost:{port}")
                if command.startswith("insitu federation init"):
                    command += f" --port {port}"  # that of the page may be taken here
                if command.startswith(GOES_ON):
                    with (tmp_path / "log").open("ab") as log:
                        running.append(
                            subprocess.Popen(command.split(), cwd=tmp_path, env=env(tmp_path), stdout=log, stderr=log)
                        )
                    if command.startswith("insitu coordinator"):
                        answers(tmp_path, port)
                    continue
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=tmp_path,
                    env=env(tmp_path),
                    capture_output=True,
                    text=True,
                    timeout=100,
                )
                assert done.returncode == 0, f"{command}\n{done.stderr}\n{(tmp_path / 'log').read_text()}"
                said += done.stdout
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(30) for process in running]
    assert codes == [0, 0, 0], (tmp_path / "log").read_text()
    assert not files["toml"]
    assert "finished: 20 of 20 rounds" in said
    assert "starts: 2 sites, 20 rounds" in said
    assert (tmp_path / "model.npz").is_file()
    told = re.search(r"the coordinator is told: (.*)", PAGE.read_text(encoding="utf-8"))
    assert told[1] in said
