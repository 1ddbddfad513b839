"""Code of the user's: ``file.py:object`` or ``module:object``, and whose line it was when it fails."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from insitu.config.place import Place
from insitu.core.errors import InsituError, MissingExtra
from insitu.core.part import Part, plain

_PACKAGE = Path(__file__).resolve().parent.parent
_EXTRAS = {"torch": "torch", "pandas": "frames", "matplotlib": "plots"}
"""Libraries that come with an extra of ours."""


@dataclass(frozen=True)
class Maker(Part):
    """Calls a class or function of the user's with arguments: the run makes the model, under its own seed.

    reference  as the configuration gives it, which is also what the run's record holds
    """

    reference: str
    target: Callable[..., Any] = field(repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        return self.target(**self.arguments)

    def config(self) -> dict[str, Any]:
        return {"object": self.reference, "arguments": plain(self.arguments)}


def is_reference(text: Any) -> bool:
    """Whether it has the form ``file.py:object`` or ``module:object``."""
    return isinstance(text, str) and ":" in text.strip(":")


def resolve(reference: str, place: Place, key: str) -> Any:
    """The object that a reference names. Files are relative to the configuration's folder."""
    module, _, name = reference.rpartition(":")
    in_file = module.endswith(".py")
    found = call(lambda: _file(place.path(module)) if in_file else _module(module, place), reference, place, key)
    if found is None:
        raise place.wrong(key, reference, f"there is no {_where(module, place, in_file)}")
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise place.wrong(key, reference, f"{module} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def call(function: Callable[[], Any], reference: str, place: Place, key: str) -> Any:
    """Calls what runs the user's code; its failure becomes a ConfigError that shows the user's own line."""
    try:
        return function()
    except InsituError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
            raise MissingExtra(error.name, _EXTRAS[error.name], f"{place} {key} = {reference!r}") from error
        raise place.wrong(key, reference, f"{type(error).__name__}: {_message(error)}{_line(error)}") from error


def _where(module: str, place: Place, in_file: bool) -> str:
    if not in_file:
        return f"module {module!r}: give file.py:object for a file of your own"
    path = place.path(module)
    others = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = get_close_matches(path.name, others, n=1)
    return f"file {path}" + (f": did you mean {near[0]!r}?" if near else "")


def _module(name: str, place: Place) -> ModuleType | None:
    own = place.path(f"{name.replace('.', '/')}.py")
    if own.is_file():
        return _file(own)  # so that it is the same module by either name
    _look_in(place.folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}.") and error.name not in _EXTRAS:
            return None
        raise


def _file(path: Path) -> ModuleType | None:
    """The module in a file, imported once, with its folder on ``sys.path`` as if it had been started itself."""
    path = path.resolve()
    if not path.is_file():
        return None
    name = _name_for(path)
    if name in sys.modules:
        return sys.modules[name]
    _look_in(path.parent)
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _name_for(path: Path) -> str:
    """The file's stem, so that worker processes can import it too; marked where another module has that name."""
    stem = path.stem if path.stem.isidentifier() else "user_code"
    known = sys.modules.get(stem)
    taken = known is not None and Path(getattr(known, "__file__", None) or "?").resolve() != path
    if stem == path.stem and not taken and stem not in sys.stdlib_module_names:
        return stem
    return f"{stem}_{crc32(str(path).encode()):08x}"


def _look_in(folder: Path) -> None:
    text = str(folder.resolve())
    if text not in sys.path:
        sys.path.insert(0, text)


def _message(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _line(error: Exception) -> str:
    """`` (model.py, line 12: self.x = y)``: the last line of the traceback that is neither ours nor a library's."""
    if isinstance(error, SyntaxError) and error.filename:
        return _shown(error.filename, error.lineno, (error.text or "").strip())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return _shown(frames[-1].filename, frames[-1].lineno, frames[-1].line or "") if frames else ""


def _shown(file: str, line: int | None, text: str) -> str:
    return f" ({Path(file).name}, line {line}: {text})"


def _is_users(file: str) -> bool:
    path = Path(file)
    libraries = {Path(inspect.__file__).parent, _PACKAGE}
    return path.is_absolute() and "site-packages" not in path.parts and not libraries & set(path.parents)
