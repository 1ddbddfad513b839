"""What a newcomer relies on: the README's commands, modules that import alone, docstrings, public names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "insitu"
FILES = sorted(SRC.rglob("*.py"))
# A module that needs one of these where it is not installed is left out; another missing one is an error.
OPTIONAL = {"torch", "matplotlib", "pandas", "ray"}

# Every module is imported in a fork of its own, so that none leans on what another imported before it, and
# a hidden circle of imports shows. What takes long to import and is not ours is imported once, before.
IMPORT_EACH = """
import contextlib, gc, importlib, os, sys, traceback
gc.disable()  # in a child it would touch, and so copy, all that this process has
optional, names = set(sys.argv[1].split(",")), sys.argv[2:]
for library in (
    "numpy torch torch.distributed torch.nn.parallel sklearn.linear_model sklearn.datasets sqlalchemy pydantic typer"
    " rich.table aiohttp.web cryptography.x509 cryptography.hazmat.primitives.asymmetric.ec psycopg"
).split():
    with contextlib.suppress(ImportError):
        importlib.import_module(library)
assert not any(name.split(".")[0] == "insitu" for name in sys.modules)
for name in names:
    child = os.fork()
    if not child:
        code = 0
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in optional:
                code = 1
                traceback.print_exc()
        except BaseException:
            code = 1
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    if os.waitpid(child, 0)[1]:
        print(name, flush=True)
"""


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_command(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.timeout(620)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_imports_on_its_own():
    names = [module_name(path) for path in FILES if path.name != "__main__.py"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, ",".join(sorted(OPTIONAL)), *names],
        env={**os.environ, "PYTHONPATH": str(SRC.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout, f"cannot be imported on their own: {done.stdout.split()}\n{done.stderr}"


def test_every_file_has_a_docstring():
    bare = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not bare, f"no module docstring: {[str(path.relative_to(ROOT)) for path in bare]}"


def test_the_version_is_one():
    from insitu.version import __version__

    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (SRC / "__init__.py").exists(), reason="the package has no public face yet")
def test_public_names_exist():
    import insitu

    assert insitu.__all__, "insitu.__all__ is empty"
    assert len(set(insitu.__all__)) == len(insitu.__all__)
    missing = [name for name in insitu.__all__ if not hasattr(insitu, name)]
    assert not missing, f"insitu.__all__ names what is not there: {missing}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
