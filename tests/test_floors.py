"""The walls of the house: which room may import what, where a library lives, how large a file may grow.

The source is read with `ast`, never imported, so an import inside a function or under `if TYPE_CHECKING`
counts like any other. Rooms that do not exist yet are simply not there to break a rule. To move a wall,
change the tables below, `docs/architecture.md` and, with the reason, `docs/decisions/`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "insitu"

# Floor by room. A file at the root is its own room on floor 4; `__main__.py` would be the command line's.
FLOORS = {
    "core": 0,
    "data": 1,
    "learners": 1,
    "algorithms": 1,
    "reduce": 1,
    "privacy": 1,
    "compress": 1,
    "store": 1,
    "observe": 1,
    "rounds": 2,
    "engines": 3,
    "bench": 4,
    "estimators": 4,
    "report": 4,
    "dashboard": 4,
    "config": 4,
    "demo": 5,
    "federation": 5,
    "cli": 5,
    "__main__": 5,
}
ROOT_FLOOR = 4
# The arrows of the lower floors, room by room; from floor 4 on, anything below.
ARROWS = {
    "core": set(),
    **{room: {"core"} for room, floor in FLOORS.items() if floor == 1},
    "algorithms": {"core", "reduce"},
    "rounds": {"core"},
    "engines": {"core", "rounds"},
}
FOR_EVERYONE = {"version"}

# The homes of third-party libraries: `a/b` is the file src/insitu/a/b.py or the folder src/insitu/a/b/,
# and "" is everywhere.
HOMES = {
    "numpy": ("",),
    "torch": ("learners/torch", "engines/vectorized", "engines/spmd", "compress/powersgd", "demo", "bench"),
    "sklearn": ("learners/sklearn", "learners/estimator", "estimators", "data/bundled", "demo"),
    "xgboost": ("estimators/boosted",),
    "aiohttp": ("engines/https", "dashboard"),
    "sqlalchemy": ("store",),
    "psycopg": ("store/database/postgres",),
    "cryptography": ("privacy", "engines/https"),
    "ray": ("cli/launch",),
    "opentelemetry": ("federation/traces",),
    "typer": ("cli", "observe"),
    "rich": ("cli", "observe"),
    "pydantic": ("config",),
    "matplotlib": ("report", "data/picture"),
    "pandas": ("",),
    "pyarrow": ("data/parquet",),
    "cloudpickle": ("engines/processes",),
    "joblib": ("engines/processes",),
    "threadpoolctl": ("engines/inline",),
}
ONLY_INSIDE_FUNCTIONS = {"pandas"}
CORE_LIBRARIES = {"numpy"}

NAMELESS_ROOMS = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
EXCUSE = "larger because"

HEAVY = {"torch", "sklearn", "pydantic", "aiohttp", "sqlalchemy", "matplotlib", "pandas"}
MAX_IMPORT_CPU_SECONDS = 0.3

Function = ast.FunctionDef | ast.AsyncFunctionDef


# ---------------------------------------------------------------- reading the source


def sources(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.py") if "__pycache__" not in p.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path, root: Path) -> str:
    """The room of a file: its top folder, or for a file at the root its own name."""
    return path.relative_to(root).parts[0].removesuffix(".py")


def imported(tree: ast.Module, path: Path, root: Path) -> Iterator[tuple[str, int, bool]]:
    """(absolute dotted name, line, inside a function) of every import; `from a import b` gives `a.b`."""
    package = (root.name, *path.relative_to(root).parent.parts)
    for node, inside in walk(tree, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno, inside
        elif isinstance(node, ast.Call) and (name := literal_import(node)):
            yield name, node.lineno, inside


def walk(node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside
        yield from walk(child, inside or isinstance(child, Function))


def literal_import(call: ast.Call) -> str | None:
    """The name in `import_module("name")` or `__import__("name")`: an arrow drawn as a string is an arrow."""
    called = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    if called not in {"import_module", "__import__"} or not call.args:
        return None
    name = getattr(call.args[0], "value", None)
    return name if isinstance(name, str) else None


def target_room(name: str, root: Path) -> str | None:
    """The room that a name of ours leads to; one taken from the package itself leads to `__init__`."""
    parts = name.split(".")
    if parts[0] != root.name:
        return None
    room = parts[1] if len(parts) > 1 else "__init__"
    exists = room in FLOORS or (root / f"{room}.py").exists() or (root / room).is_dir()
    return room if exists else "__init__"


def at(path: Path, root: Path, line: int) -> str:
    return f"{path.relative_to(root.parent).as_posix()}:{line}"


def is_home(path: Path, root: Path, home: str) -> bool:
    place = path.relative_to(root).with_suffix("").as_posix()
    return not home or place == home or place.startswith(home + "/")


# ---------------------------------------------------------------- the rules: each returns what breaks it


def wrong_arrows(root: Path) -> list[str]:
    wrong = []
    for path in sources(root):
        room = room_of(path, root)
        if room not in FLOORS and path.parent != root:
            wrong.append(f"{at(path, root, 1)}: {room}/ is not a room of the plan: give it a floor in FLOORS")
            continue
        for name, line, _ in imported(parse(path), path, root):
            target = target_room(name, root)
            if target is None or target == room or target in FOR_EVERYONE:
                continue
            if not may_import(room, target):
                wrong.append(f"{at(path, root, line)}: {room} must not import {name}")
    return wrong


def may_import(room: str, target: str) -> bool:
    if room in ARROWS:
        return target in ARROWS[room]
    floor, below = FLOORS.get(room, ROOT_FLOOR), FLOORS.get(target, ROOT_FLOOR)
    if floor > ROOT_FLOOR or below != floor:
        return below <= floor
    # On floor 4 the rooms and the files at the root see each other, but no room sees another room.
    return room not in FLOORS or target not in FLOORS


def homeless_libraries(root: Path) -> list[str]:
    wrong = []
    for path in sources(root):
        for name, line, inside in imported(parse(path), path, root):
            library = name.split(".")[0]
            if library in sys.stdlib_module_names or library == root.name:
                continue
            here = at(path, root, line)
            if library not in HOMES:
                wrong.append(f"{here}: {library} has no home: give it one in HOMES")
            elif room_of(path, root) == "core" and library not in CORE_LIBRARIES:
                wrong.append(f"{here}: core imports the standard library and numpy only, not {library}")
            elif not any(is_home(path, root, home) for home in HOMES[library]):
                wrong.append(f"{here}: {library} lives in {', '.join(HOMES[library])}")
            elif library in ONLY_INSIDE_FUNCTIONS and not inside:
                wrong.append(f"{here}: {library} is imported only inside functions")
    return wrong


def nameless_rooms(root: Path) -> list[str]:
    return [
        f"{at(path, root, 1)}: {part} says nothing about what is in it"
        for path in sources(root)
        for part in path.relative_to(root).with_suffix("").parts
        if part.lstrip("_") in NAMELESS_ROOMS
    ]


def too_large(root: Path) -> list[str]:
    wrong = []
    for path in sources(root):
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and EXCUSE in lines[0].lower():
            continue
        if len(lines) > MAX_FILE_LINES:
            here = at(path, root, 1)
            wrong.append(f"{here}: {len(lines)} lines > {MAX_FILE_LINES}, and line 1 has no `{EXCUSE} …`")
        for node in ast.walk(parse(path)):
            if isinstance(node, Function) and (size := code_lines(node)) > MAX_FUNCTION_LINES:
                here = at(path, root, node.lineno)
                wrong.append(f"{here}: {node.name} has {size} lines > {MAX_FUNCTION_LINES}")
    return wrong


def code_lines(function: Function) -> int:
    """Lines from `def` to the end, less the docstring: a function is not shorter for being explained less."""
    docstring = 0
    if ast.get_docstring(function) is not None:
        docstring = (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def left_undone(root: Path) -> list[str]:
    """NotImplementedError raised or made outside an abstract method; catching another library's is fine."""

    def search(node: ast.AST, abstract: bool) -> Iterator[int]:
        for child in ast.iter_child_nodes(node):
            allowed = abstract or (isinstance(child, Function) and is_abstract(child))
            made = getattr(child, "exc", None) or getattr(child, "func", None)
            if not allowed and getattr(made, "id", None) == "NotImplementedError":
                yield made.lineno
            yield from search(child, allowed)

    return [
        f"{at(path, root, line)}: NotImplementedError outside an abstract method"
        for path in sources(root)
        for line in search(parse(path), False)
    ]


def is_abstract(function: Function) -> bool:
    names = (getattr(d, "attr", None) or getattr(d, "id", None) for d in function.decorator_list)
    return "abstractmethod" in names


RULES = (wrong_arrows, homeless_libraries, nameless_rooms, too_large, left_undone)


# ---------------------------------------------------------------- the house keeps them


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule):
    wrong = rule(SRC)
    assert not wrong, "\n" + "\n".join(wrong)


def test_import_insitu_is_light_and_quick():
    """None of the heavy libraries, and little CPU beyond numpy's own: the least of several attempts."""
    program = (
        "import sys, time, numpy\n"
        "before = set(sys.modules)\n"
        "start = time.process_time()\n"
        "import insitu\n"
        "print(time.process_time() - start)\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC.parent), "OMP_NUM_THREADS": "1"}
    seconds = []
    for _ in range(5):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        took, names = done.stdout.splitlines()
        seconds.append(float(took))
        assert not HEAVY & set(names.split()), f"import insitu imports {HEAVY & set(names.split())}"
        if seconds[-1] < MAX_IMPORT_CPU_SECONDS:
            break
    assert min(seconds) < MAX_IMPORT_CPU_SECONDS, f"import insitu took {min(seconds):.2f} s of CPU"


# ---------------------------------------------------------------- and the rules see what breaks them


@pytest.mark.parametrize(
    ("rule", "place", "text"),
    [
        (wrong_arrows, "core/a.py", "from insitu.rounds import plan"),
        (wrong_arrows, "core/a.py", "from insitu import run"),
        (wrong_arrows, "core/a.py", "def f():\n    import insitu"),
        (wrong_arrows, "learners/a.py", "from ..data import columns"),
        (wrong_arrows, "reduce/a.py", "from ..algorithms import fedavg"),
        (wrong_arrows, "rounds/a.py", "if TYPE_CHECKING:\n    from ..reduce import mean"),
        (wrong_arrows, "rounds/a.py", "importlib.import_module('insitu.algorithms.fedavg')"),
        (wrong_arrows, "engines/https/a.py", "from ...store import sqlite"),
        (wrong_arrows, "report/a.py", "from insitu.dashboard import app"),
        (wrong_arrows, "run.py", "from .cli import main"),
        (wrong_arrows, "attic/a.py", ""),
        (homeless_libraries, "core/a.py", "def f():\n    import torch"),
        (homeless_libraries, "core/a.py", "def f():\n    import pandas"),
        (homeless_libraries, "learners/torchish.py", "import torch.nn"),
        (homeless_libraries, "data/bundled_more.py", "from sklearn.datasets import load_iris"),
        (homeless_libraries, "estimators/a.py", "import pandas"),
        (homeless_libraries, "report/a.py", "import seaborn"),
        (nameless_rooms, "core/utils.py", ""),
        (nameless_rooms, "data/_helpers/a.py", ""),
        (too_large, "core/a.py", "x = 1\n" * 351),
        (too_large, "core/a.py", "def f():\n" + "    x = 1\n" * 60),
        (left_undone, "core/a.py", "def f():\n    raise NotImplementedError"),
        (left_undone, "core/a.py", "def f():\n    error = NotImplementedError('later')"),
    ],
)
def test_a_broken_rule_is_seen(tmp_path, rule, place, text):
    assert len(rule(house(tmp_path, place, text))) == 1


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("core/a.py", "import json\nimport numpy as np\nfrom . import tree\nfrom ..version import x"),
        ("core/a.py", "from insitu import version"),
        ("algorithms/a.py", "from ..reduce.concat import Concat\nfrom ..core import tree"),
        ("engines/https/a.py", "from ...rounds.client import work\nimport aiohttp.web"),
        ("engines/processes.py", "import joblib"),
        ("learners/torch/a.py", "import torch"),
        ("learners/torch.py", "import torch"),
        ("estimators/a.py", "from ..run import run\nfrom insitu import algorithms"),
        ("run.py", "from .config import load\nfrom .estimators import knn\nfrom .store import sqlite"),
        ("cli/a.py", "from ..dashboard import app\nimport insitu\nimport typer"),
        ("__main__.py", "from .cli.main import app"),
        ("data/a.py", "def f():\n    import pandas"),
        ("core/a.py", '"""A table. Larger because it is one."""\n' + "x = 1\n" * 400),
        ("core/a.py", 'def f():\n    """Doc.' + "\n" * 60 + '    """\n    return 1'),
        (
            "core/a.py",
            "class A:\n    @abc.abstractmethod\n    def f(self):\n        raise NotImplementedError",
        ),
        ("core/a.py", "try:\n    f()\nexcept NotImplementedError:\n    pass"),
    ],
)
def test_what_is_allowed_is_not_complained_about(tmp_path, place, text):
    root = house(tmp_path, place, text)
    assert [wrong for rule in RULES for wrong in rule(root)] == []


def house(tmp_path: Path, place: str, text: str) -> Path:
    root = tmp_path / "insitu"
    (root / place).parent.mkdir(parents=True)
    for name in ("__init__.py", "version.py", "run.py", "config.py"):
        (root / name).write_text("", encoding="utf-8")
    (root / place).write_text(text, encoding="utf-8")
    return root
