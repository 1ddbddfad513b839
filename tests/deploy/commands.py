"""Commands as they stand in pages and files, looked up in the command line: is there such a command and option?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from insitu.cli.main import app

FLAGS_WITHOUT_VALUE = ("--help",)


def root() -> Any:
    """The command line as a tree of commands."""
    return typer.main.get_command(app)


def wrong(words: list[str]) -> str:
    """What is wrong with ``insitu`` and these words; empty where nothing is."""
    command, path, words = root(), "insitu", list(words)
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        name = words.pop(0)
        if name not in command.commands:
            return f"there is no `{path} {name}`"
        command, path = command.commands[name], f"{path} {name}"
    if hasattr(command, "commands") and not any(word.startswith("-") for word in words):
        return f"`{path}` is no command by itself"
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    places = sum(param.param_type_name == "argument" for param in command.params)
    plain = 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            plain += 1
            continue
        name = word.partition("=")[0]
        if name in FLAGS_WITHOUT_VALUE:
            continue
        if name not in options:
            return f"`{path}` has no {name}"
        if not options[name].is_flag and "=" not in word:
            if not words:
                return f"`{path} {name}` lacks its value"
            words.pop(0)
    return "" if plain <= places else f"`{path}` takes {places} words, and not {plain}"


def in_text(text: str) -> Iterator[list[str]]:
    """The words after ``insitu`` in every command of a page: in code blocks of ``console``, and between backticks."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.startswith(("$ ", "# ")):
                yield from in_line(line[2:])
    for span in re.findall(r"`(insitu [^`\n]+)`", text):
        yield from in_line(span)


def in_line(line: str) -> Iterator[list[str]]:
    """Commands of insitu in a line of shell: also after others, as in ``docker compose exec coordinator insitu …``."""
    lexer = shlex.shlex(line.replace("…", "X"), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    part: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) - set(";|&"):
            part.append(word)
            continue
        if told := _told(part):
            yield told
        part = []


def _told(words: list[str]) -> list[str]:
    """What is told insitu in a simple command; nothing where it is not about insitu."""
    starts = [i + 1 for i, word in enumerate(words) if _is_insitu(words[:i], word)]
    if words[:4] == ["docker", "compose", "run", "--rm"] and len(words) > 5:
        starts = [5]  # a service whose entry point is insitu
    told = words[starts[-1] :] if starts else []
    redirected = [i for i, word in enumerate(told) if word in (">", "<", ">>")]
    return told[: redirected[0]] if redirected else told


def _is_insitu(before: list[str], word: str) -> bool:
    """Whether a word is the command, and not a user or group of that name, as in ``install -o insitu``."""
    if word.endswith("/bin/insitu"):
        return True
    return word == "insitu" and before[:1] != ["useradd"] and (not before or before[-1] == "--" or before[-1][0] != "-")


def in_page(path: Path) -> list[list[str]]:
    """Those of a file."""
    return list(in_text(path.read_text(encoding="utf-8")))
