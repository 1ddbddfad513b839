"""Failpoints: off by default, and what is asked for happens at the nth time and only then."""

import ast
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import insitu
from insitu.core import failpoints
from insitu.core.errors import ConfigError

SOURCE = Path(insitu.__file__).parent
NAME = re.compile(r"[a-z_]+(\.[a-z0-9_]+)+")


def places() -> dict[str, list[str]]:
    """Every name in the source that ``failpoints.hit`` is called with, and where; ``*`` stands for what is put in."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name == "failpoints.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
                found.setdefault(_name(node.args[0]), []).append(f"{file.relative_to(SOURCE)}:{node.lineno}")
    return found


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), "a failpoint's name is text"
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)


def run(code: str, asked: str) -> subprocess.Popen[str]:
    environment = {**os.environ, failpoints.VARIABLE: asked}
    head = "from insitu.core import failpoints\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_every_place_in_the_source_has_a_name_of_its_own_form() -> None:
    found = places()
    assert len(found) >= 20
    assert [name for name in found if NAME.fullmatch(name.replace("*", "any")) is None] == []


def test_nothing_happens_where_nothing_was_asked_for() -> None:
    failpoints.hit("blob.fsync.before")


def test_the_nth_time_and_only_then() -> None:
    with failpoints.armed({"a.b": "3=error"}):
        failpoints.hit("a.b")
        failpoints.hit("a.c")
        failpoints.hit("a.b")
        with pytest.raises(OSError, match=r"failpoint a\.b was asked for an error") as caught:
            failpoints.hit("a.b")
        assert caught.value.errno == errno.EIO
        failpoints.hit("a.b")
    failpoints.hit("a.b")


def test_a_full_disk_and_a_function_and_all_others() -> None:
    seen: list[str] = []
    with failpoints.armed({"a.b": "1=full", "a.c": seen.append, "*": lambda name: seen.append(f"other {name}")}):
        with pytest.raises(OSError, match="full disk") as caught:
            failpoints.hit("a.b")
        failpoints.hit("a.c")
        failpoints.hit("x.y")
    assert caught.value.errno == errno.ENOSPC
    assert seen == ["a.c", "other x.y"]


def test_armed_places_are_put_back_when_others_are_armed_within() -> None:
    seen: list[str] = []
    with failpoints.armed({"a.b": lambda name: seen.append("outer")}):
        with failpoints.armed({"a.b": lambda name: seen.append("inner")}):
            failpoints.hit("a.b")
        failpoints.hit("a.b")
    assert seen == ["inner", "outer"]


@pytest.mark.parametrize("asked", ["a.b=die", "a.b:0", "a.b:x", "a.b:-1"])
def test_what_is_not_understood_is_said_at_once(asked: str) -> None:
    process = run("print('here')", asked)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "ConfigError" in err
    assert repr(asked) in err
    with pytest.raises(ConfigError), failpoints.armed({"a.b": asked.removeprefix("a.b").removeprefix(":")}):
        pass


def test_a_process_is_killed_or_ends_where_it_was_asked_to() -> None:
    code = "failpoints.hit('a.b'); print('once', flush=True); failpoints.hit('a.b'); print('twice', flush=True)"
    killed, ended = run(code, "x.y, a.b:2"), run(code, "a.b=exit")
    out, _ = killed.communicate(timeout=60)
    assert (out, killed.returncode) == ("once\n", -signal.SIGKILL)
    out, _ = ended.communicate(timeout=60)
    assert (out, ended.returncode) == ("", failpoints.EXIT)


def test_a_process_pauses_until_it_is_woken() -> None:
    process = run("failpoints.hit('a.b'); print('awake', flush=True)", "a.b=pause")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("awake\n", 0)
