"""Which files of somebody's own code are imported by others of it: read from the text, nothing is executed.

Imports that a program makes up while it runs (``importlib``) are not seen, nor are data files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path


def neighbours(file: Path, root: Path) -> list[Path]:
    """The Python files below ``root`` that ``file`` imports, and those that they import, sorted, without itself.

    Names are looked for as Python does for code that was started from a file: beside ``file``, and in ``root``.
    """
    tops = list(dict.fromkeys([file.parent, root]))
    found, left = {file}, [file]
    while left:
        for other in _imported(left.pop(), tops, root):
            if other not in found:
                found.add(other)
                left.append(other)
    return sorted(found - {file})


def package_root(file: Path) -> Path:
    """The folder from which the module in ``file`` is imported: above all packages that it is in."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


def packages(file: Path, root: Path) -> list[Path]:
    """The ``__init__.py`` of the packages between ``root`` and ``file``, which are executed before it."""
    folders = [folder for folder in file.parents if folder != root and folder.is_relative_to(root)]
    return [folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()]


def _imported(file: Path, tops: Sequence[Path], root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # whoever imports it is told
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _absolute(name.name.split("."), tops)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            for name in node.names:
                if node.level:
                    yield from _relative(file, node.level, [*parts, name.name], root)
                else:
                    yield from _absolute([*parts, name.name], tops)


def _absolute(parts: Sequence[str], tops: Sequence[Path]) -> Iterator[Path]:
    for top in tops:
        found = list(_below(top, parts))
        if found or (top / parts[0]).is_dir():
            yield from found
            return


def _relative(file: Path, level: int, parts: Sequence[str], root: Path) -> Iterator[Path]:
    folder = file.parent
    for _ in range(level - 1):
        folder = folder.parent
    if folder.is_relative_to(root):
        if folder != root and (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        yield from _below(folder, parts)


def _below(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The files that are executed for a dotted name; its last part may be a module, or something in the one before."""
    for part in parts:
        init, module = folder / part / "__init__.py", folder / f"{part}.py"
        if init.is_file():
            yield init
        elif module.is_file():
            yield module
            return
        elif not (folder / part).is_dir():
            return
        folder = folder / part
