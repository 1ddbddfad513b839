"""Clip: no update of a client is longer than a given norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from insitu.core import checks, tree
from insitu.core.protocols import Stage
from insitu.core.tree import Tree
from insitu.core.types import Context, Update


@dataclass(frozen=True)
class Clip(Stage):
    r"""The change of the shared parameters is scaled down to Euclidean norm C where it is longer.

    .. math:: \Delta \leftarrow \Delta \cdot \min(1, C / \lVert \Delta \rVert_2)

    norm  C, the largest norm that an update may have: bounds what one client can do to the model

    The norm is over all shared parameters together. Buffers and other parts are left alone.
    Reference: McMahan et al., *Learning Differentially Private Recurrent Language Models*, ICLR 2018, section 2.
    """

    norm: float = 1.0
    changes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.positive(norm=self.norm)

    def encode(self, update: Update, memory: Tree | None, context: Context) -> tuple[Update, Tree | None]:
        if "shared" not in update.value:
            return update, memory
        norm = tree.norm(update.value["shared"])
        if norm <= self.norm:
            return update, memory
        shared = tree.scale(update.value["shared"], self.norm / norm)
        return Update({**update.value, "shared": shared}, update.weight, update.metrics), memory
