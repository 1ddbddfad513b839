"""What a site lets itself be asked for. Its administrator decides, whatever the coordinator says.

Everything that is not allowed is refused, with what would have to be written into ``site.toml`` to allow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from insitu.core.errors import Refusal
from insitu.engines.https.wire.manifest import Manifest, is_digest, is_task

ANY = "*"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DURATION = re.compile(r"[\d:.]+")
_FAMILIES = ("algorithm", "learner", "reduce")
_TABLES = {"algorithm", "learner", "stages", "reduce", "cohort", "policy", "run"}
KINDS = ("train", "evaluate", "predict")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is allowed.

    algorithms, learners, stages, reduces  names of what comes with insitu; ``*`` is all of it
    code           patterns of the site's own code that plans may name: ``my_models:*``, ``net.py:Net``; usually none
    least_cohort   fewest clients that a round may ask, so that the sum hides single ones, in whole numbers
    largest_model  bytes that a message may have
    metrics        whether training metrics leave, and the model may be evaluated here
    kinds          what may be asked: train, evaluate, predict
    """

    algorithms: Sequence[str] = (ANY,)
    learners: Sequence[str] = (ANY,)
    stages: Sequence[str] = (ANY,)
    reduces: Sequence[str] = (ANY,)
    code: Sequence[str] = ()
    least_cohort: int = 2
    largest_model: int = 2**30
    metrics: bool = True
    kinds: Sequence[str] = KINDS

    def check_description(self, description: Mapping[str, Any]) -> None:
        """Raises Refusal SITE_REFUSED where the plan names what is not allowed here."""
        tables = description.get("tables")
        if not isinstance(tables, dict):
            raise _refused("the plan has no tables")
        for stranger in sorted(set(tables) - _TABLES):
            raise _refused(f"the plan has a table {stranger[:40]!r}, which no plan needs")
        for family, allowed in zip(_FAMILIES, (self.algorithms, self.learners, self.reduces), strict=True):
            if tables.get(family) is not None:
                self._check_name(tables[family], family, allowed)
        for stage in tables.get("stages") or []:
            self._check_name(stage, "stage", self.stages)
        for reference in sorted(set(references(tables))):
            self._check_code(reference)

    def check_task(self, task: Mapping[str, Any]) -> None:
        """Raises Refusal SITE_REFUSED where a task asks for what is not allowed, or is none."""
        if not (is_task(task.get("task")) and is_digest(task.get("message")) and is_digest(task.get("description"))):
            raise _refused("the task has no id and digests of ours")
        kind, asked = task.get("kind"), task.get("asked")
        if kind not in self.kinds:
            known = [*self.kinds, kind] if kind in KINDS else list(self.kinds)
            allows = "write" if kind in KINDS else "there are"
            raise _refused(f"tasks of kind {kind!r:.40} are not allowed here: {allows} allow.kinds = {known}")
        if kind == "evaluate" and not self.metrics:
            raise _refused("evaluations are not allowed here, since metrics do not leave: write allow.metrics = true")
        if kind == "train" and (type(asked) is not int or asked < self.least_cohort):
            raise _refused(
                f"a round that asks {asked!r:.20} clients would show this site's own update: allow.least_cohort is"
                f" {self.least_cohort}, and would have to be {asked!r:.20}"
            )

    def check_message(self, message: Manifest) -> None:
        """Raises Refusal SITE_REFUSED before anything large is fetched."""
        if message.length > self.largest_model:
            raise _refused(
                f"the model has {message.length} bytes: allow.largest_model is {self.largest_model}, and would have to"
                f" be {message.length}"
            )

    def told(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What leaves of an update's metrics."""
        return dict(metrics) if self.metrics else {}

    def _check_name(self, table: Any, family: str, allowed: Sequence[str]) -> None:
        name = table.get("name") if isinstance(table, dict) else table
        if not isinstance(name, str):
            raise _refused(f"the plan's {family} has no name")
        if _is_reference(name):
            return  # code, which is looked at as such
        if _NAME.fullmatch(name) is None:
            raise _refused(f"the plan's {family} is called {name[:80]!r}, which is no name")
        if ANY not in allowed and name not in allowed:
            raise _refused(f"{family} {name!r} is not allowed here: add it to allow.{_plural(family)} to allow it")

    def _check_code(self, reference: str) -> None:
        file = reference.rpartition(":")[0]
        if file.startswith(("/", "~", "\\")) or ".." in file or not file.isprintable():
            raise _refused(f"the plan names code outside of this site's folder: {reference[:80]!r}")
        if not any(fnmatchcase(reference, pattern) for pattern in self.code):
            raise _refused(
                f"the plan names code, {reference[:80]!r}, which is not allowed here: write"
                f" allow.code = [{reference[:80]!r}]"
            )


def references(value: Any) -> Iterator[str]:
    """All text in a plan's tables that may name code, ``module:object``, however deep it stands."""
    if isinstance(value, dict):
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)
    elif isinstance(value, str) and _is_reference(value):
        yield value


def _is_reference(text: str) -> bool:
    """Whatever might be taken for ``module:object``, which imports the module; a duration, 00:10:00, is none."""
    return ":" in text.strip(":") and _DURATION.fullmatch(text) is None


def _plural(family: str) -> str:
    return {"reduce": "reduces"}.get(family, f"{family}s")


def _refused(text: str) -> Refusal:
    return Refusal("SITE_REFUSED", text)
