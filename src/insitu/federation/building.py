"""A plan out of a description: made on a site of what is installed there, and compared with the coordinator's."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from insitu.core.errors import InsituError, Refusal
from insitu.core.types import Schema
from insitu.engines.https.site.rules import Rules, references
from insitu.federation import tables
from insitu.federation.neighbours import neighbours, package_root, packages
from insitu.rounds.plan import Plan
from insitu.version import __version__

_INSITU = Path(__file__).resolve().parent.parent
_LOADED: dict[tuple[Path, str], str] = {}
"""Code that this process has compared and imported, which it does once: what its file was then."""


def build(description: Mapping[str, Any], code: Path, rules: Rules) -> Plan:
    """The plan, if it is the very one that the coordinator has.

    ``code`` is the folder that ``file.py:object`` is relative to. Raises Refusal SITE_REFUSED: a plan that is not
    allowed or cannot be built here, other code, another version; the text says what to do.
    """
    rules.check_description(description)
    _check_form(description)
    check_version(str(description["versions"].get("insitu", "?")))
    check_code(description["code"], description["tables"], code)
    try:
        plan = tables.submitted(description["tables"], description["run"], code).plan()
        plan = plan.resolve(_schema(description["schema"]))
        start = None if plan.learner is None else plan.learner.init(description["seed"])
    except InsituError as error:
        raise Refusal("SITE_REFUSED", f"the plan cannot be built here: {type(error).__name__}: {error}") from error
    if plan.digest(start) != description["plan"]:
        found = [*differences(description["config"], plan.config())]
        what = "; ".join(found[:3]) or "the first parameters differ: are other versions installed here?"
        raise Refusal(
            "SITE_REFUSED", f"this site builds another plan than the coordinator: {what}{_versions(description)}"
        )
    return plan


def _check_form(description: Mapping[str, Any]) -> None:
    """Raises Refusal SITE_REFUSED where a field is missing or of another kind."""
    kinds = {"run": str, "seed": int, "plan": str, "config": dict, "schema": dict, "versions": dict, "code": dict}
    for name, kind in kinds.items():
        value = description.get(name)
        if type(value) is not kind:
            raise Refusal("SITE_REFUSED", f"the description's {name} is {value!r:.60}, expected {kind.__name__}")


def check_version(theirs: str, ours: str = __version__) -> None:
    """Raises Refusal SITE_REFUSED where the coordinator's insitu is more than one minor version older or newer."""
    try:
        (major, minor), (own_major, own_minor) = (tuple(map(int, text.split(".")[:2])) for text in (theirs, ours))
    except ValueError as error:
        text = f"the coordinator's insitu has the version {theirs[:40]!r}, which is none"
        raise Refusal("SITE_REFUSED", text) from error
    if major != own_major or abs(minor - own_minor) > 1:
        raise Refusal(
            "SITE_REFUSED",
            f"the coordinator has insitu {theirs}, and this site {ours}: they work together up to one minor version"
            f" apart; update the {'site' if (major, minor) > (own_major, own_minor) else 'coordinator'}",
        )


def fingerprints(plan_tables: Mapping[str, Any], code: Path) -> dict[str, str]:
    """The SHA-256 of the file of each reference to somebody's own code, and of the files of theirs that it imports.

    Those stand by their path, from the folder that they are imported from: ``layers/dense.py``. Installed libraries
    have versions instead.
    """
    found: dict[str, str] = {}
    whose: dict[str, Path] = {}
    for reference in sorted(set(references(dict(plan_tables)))):
        file = _file(reference, code)
        if file is None or not _own(file):
            continue
        found[reference] = _sha256(file)
        for other, root in _imported(file, code):
            name = other.relative_to(root).as_posix()
            if whose.setdefault(name, other) != other:
                name = f"{name} of {reference}"
            found[name] = _sha256(other)
    return found


def _own(file: Path) -> bool:
    """Whether it is somebody's own code, and no library with a version, as insitu is."""
    return not {"site-packages", "dist-packages"} & set(file.parts) and not file.resolve().is_relative_to(_INSITU)


def _imported(file: Path, code: Path) -> Iterator[tuple[Path, Path]]:
    """The files that a file of somebody's own imports from beside it, each with the folder that its name begins in."""
    if file.is_relative_to(code):
        yield from ((other, code) for other in neighbours(file, code))
        return
    root = package_root(file)
    several = {*packages(file, root), *neighbours(file, root)}
    for init in packages(file, root):
        several |= set(neighbours(init, root))
    yield from ((other, root) for other in sorted(several - {file}) if _own(other))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_code(told: Mapping[str, Any], plan_tables: Mapping[str, Any], code: Path) -> None:
    """Raises Refusal SITE_REFUSED where code that the plan names is another one here."""
    own = fingerprints(plan_tables, code)
    missing = sorted(name for name in set(told) - set(own) if ":" not in name)
    if missing:
        absent = [name for name in missing if not (code / name).is_file()] or missing  # they import the others
        raise Refusal(
            "SITE_REFUSED",
            f"{', '.join(repr(name[:120]) for name in absent[:5])}: imported by the coordinator's code, and not there"
            f" to be imported here: install the same files in {code}",
        )
    for reference, digest in sorted(own.items()):
        if told.get(reference) != digest:
            raise Refusal(
                "SITE_REFUSED",
                f"{reference!r} is other code here than at the coordinator (SHA-256 {digest[:12]}… and"
                f" {str(told.get(reference))[:12]}…): install the same file in {code}",
            )
        loaded = _LOADED.setdefault((code, reference), digest)
        if loaded != digest:
            raise Refusal(
                "SITE_REFUSED", f"the file of {reference!r} was changed after it was loaded: start this site again"
            )


def differences(theirs: Any, ours: Any, at: str = "") -> Iterator[str]:
    """What differs between two configurations, by its path."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in {**theirs, **ours}:
            yield from differences(theirs.get(key), ours.get(key), f"{at}.{key}" if at else str(key))
    elif theirs != ours:
        yield f"{at[:120]} is {str(theirs)[:60]!r} there and {str(ours)[:60]!r} here"


def _schema(told: Mapping[str, Any]) -> Schema:
    features, classes = told.get("features"), told.get("classes")
    return Schema(
        None if features is None else tuple(int(n) for n in features),
        None if classes is None else np.asarray(classes),
    )


def _versions(description: Mapping[str, Any]) -> str:
    from insitu.record import versions

    own = versions()
    other = [f"{k} {v} there, {own.get(k)} here" for k, v in description["versions"].items() if own.get(k) != v]
    return f" ({'; '.join(other[:5])})" if other else ""


def _file(reference: str, code: Path) -> Path | None:
    module = reference.rpartition(":")[0]
    if module.endswith(".py"):
        path = code / module
        if not path.resolve().is_relative_to(code.resolve()):
            raise Refusal("SITE_REFUSED", f"{reference[:80]!r} names a file outside of {code}")
        return path if path.is_file() else None
    own = code / f"{module.replace('.', '/')}.py"
    if own.is_file():
        return own
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None
