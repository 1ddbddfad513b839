"""Which of a module's parameters and buffers is shared, travels as a buffer, is personal, or frozen."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from insitu.core.errors import PlanError
from insitu.core.types import Variables


@dataclass(frozen=True)
class Roles:
    """Names by role. ``patterns`` are (personal, frozen) as the user gave them."""

    shared: tuple[str, ...]
    buffers: tuple[str, ...]
    personal: tuple[str, ...]
    kept: tuple[str, ...]
    """Personal buffers."""
    frozen: tuple[str, ...]
    dtype: torch.dtype
    patterns: tuple[tuple[str, ...], tuple[str, ...]]

    def variables(self, module: nn.Module) -> Variables:
        """The module's tensors by role, copied to the CPU."""
        tensors = {
            name: tensor.detach().cpu().clone()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }

        def pick(names: tuple[str, ...]) -> dict[str, Tensor]:
            return {name: tensors[name] for name in names}

        own = {"params": pick(self.personal), "buffers": pick(self.kept)}
        return Variables(
            pick(self.shared),
            pick(self.buffers),
            own if self.personal or self.kept else {},
            pick(self.frozen),
        )

    def state(self, variables: Variables) -> dict[str, Tensor]:
        """All tensors by name, as ``functional_call`` takes them."""
        own = variables.personal
        return {
            **variables.shared,
            **variables.buffers,
            **(own.get("params", {})),
            **(own.get("buffers", {})),
            **variables.frozen,
        }


def roles_of(module: nn.Module, personal: tuple[str, ...], frozen: tuple[str, ...]) -> Roles:
    """Sorts a module's parameters and buffers into roles; refuses modules that cannot be trained."""
    params = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    if not params:
        raise PlanError(f"{type(module).__name__} has no parameters, so there is nothing to train or average")
    names = [*params, *buffers]
    own, still = _matching(names, personal, "personal"), _matching(names, frozen, "frozen")
    if both := sorted(own & still):
        raise PlanError(f"{both[0]!r} is both personal and frozen: choose one")
    still |= {name for name, p in params.items() if not p.requires_grad and name not in own}
    still |= _constants(module, buffers)
    trained = [name for name in params if name not in still]
    if not trained:
        raise PlanError(f"all parameters of {type(module).__name__} are frozen, so there is nothing to train")
    dtypes = {params[name].dtype for name in trained}
    floats = [dtype for dtype in dtypes if dtype.is_floating_point]
    if len(dtypes) > 1 or not floats:
        raise PlanError(f"the trained parameters have dtypes {sorted(map(str, dtypes))}: use one float dtype")
    return Roles(
        tuple(n for n in trained if n not in own),
        tuple(n for n in buffers if n not in own and n not in still),
        tuple(n for n in trained if n in own),
        tuple(n for n in buffers if n in own and n not in still),
        tuple(n for n in names if n in still),
        floats[0],
        (personal, frozen),
    )


def _constants(module: nn.Module, buffers: dict[str, Tensor]) -> set[str]:
    """Buffers that the module itself does not save (masks, position tables): they need not travel."""
    found = set()
    for prefix, part in module.named_modules():
        for name in part._non_persistent_buffers_set:
            full = f"{prefix}.{name}" if prefix else name
            if full in buffers:
                found.add(full)
    return found


def _matching(names: list[str], patterns: tuple[str, ...], role: str) -> set[str]:
    if isinstance(patterns, str):
        raise PlanError(f"{role}={patterns!r}: give a tuple, ({patterns!r},)")
    found: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not hits:
            raise PlanError(f"{role}={pattern!r} matches none of the module's names: {', '.join(names[:12])}")
        found |= hits
    return found
