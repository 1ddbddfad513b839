"""TorchLearner: any ``torch.nn.Module`` as a learner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from insitu.core import arrays, seeds, tree
from insitu.core.errors import DataError, PlanError
from insitu.core.part import plain
from insitu.core.types import Client, Data, Schema, Variables
from insitu.learners.torch.dropout import Masks
from insitu.learners.torch.evaluation import Evaluator
from insitu.learners.torch.losses import Loss, named_loss, named_metrics
from insitu.learners.torch.roles import Roles, roles_of
from insitu.learners.torch.stacked import Stacked, stacked
from insitu.learners.torch.trainable import Trainable


class TorchLearner:
    """A PyTorch module with a loss.

    module    an ``nn.Module``, whose present weights are the start; or a callable that makes one, called under the
              run's seed. The module given is copied, and never changed.
    loss      "cross_entropy" (labels [B], or [B, T] for outputs [B, T, C]), "mse", "binary_cross_entropy", or a
              callable (output, y) → [B], one value an example
    metrics   names ("accuracy", "mae") or callables (output, y) → [B]; None: accuracy where the loss is a
              classification's
    personal  patterns of parameter and buffer names ("head.*") that stay with each client; a module's name stands for
              all that is in it
    frozen    patterns of names that are not trained; parameters with ``requires_grad=False`` are frozen as well

    Batch norm and its like mix the examples of a batch (``mixes``): they never see padding, and a leftover batch of one
    joins the batch before. Dropout draws from counters (:mod:`insitu.learners.torch.dropout`); other random layers draw
    from torch's generator, started from the task's seed at every step, and run one client at a time.
    """

    def __init__(
        self,
        module: nn.Module | Callable[[], nn.Module],
        loss: str | Loss = "cross_entropy",
        metrics: Sequence[str | Loss] | None = None,
        personal: Sequence[str] = (),
        frozen: Sequence[str] = (),
    ) -> None:
        for role, patterns in (("personal", personal), ("frozen", frozen)):
            if isinstance(patterns, str):
                raise PlanError(f"{role}={patterns!r}: give a tuple, ({patterns!r},)")
        self._loss_name, self._loss = named_loss(loss)
        self._metrics = named_metrics(metrics, self._loss_name)
        self.metric_names = ("loss", *self._metrics)
        self._make = None if isinstance(module, nn.Module) else module
        self._module = _built(module, 0)
        self.roles: Roles = roles_of(self._module, tuple(personal), tuple(frozen))
        self.mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self._module.modules())
        self._evaluator = Evaluator(self._module, {"loss": self._loss, **self._metrics})
        self._start: dict[int, Variables] = {}
        self._outputs: int | None = None
        self._draws: bool | None = None
        self._random = False
        self._mapped = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_start": {}, "_evaluator": Evaluator(self._module, self._evaluator.functions)}

    def config(self) -> dict[str, Any]:
        """The module's class and structure, the loss, the metrics and the roles."""
        return {
            "name": "torch",
            "module": plain(self._make or type(self._module)),
            "structure": str(self._module),
            "loss": plain(self._loss_name or self._loss),
            "metrics": list(self._metrics),
            "personal": list(self.roles.patterns[0]),
            "frozen": list(self.roles.patterns[1]),
        }

    def resolve(self, schema: Schema) -> TorchLearner:
        """Modules know their shapes: nothing to fill in."""
        return self

    def init(self, seed: int) -> Variables:
        """The module's variables by role, tensors on the CPU, detached."""
        key = seed if self._make else 0
        if key not in self._start:
            module = _built(self._make, seed) if self._make else self._module
            self._start = {key: self.roles.variables(module)}
        return self._start[key]

    # What engines call at every step.

    def batch(self, data: Data, index: Any) -> dict[str, Any]:
        """Columns x and y of these examples as tensors: floats in the module's dtype, whole numbers as int64."""
        if data.y is None:
            raise DataError("a PyTorch module learns from labelled examples: this data has no y")
        x = tree.map(lambda column: self._tensor(column[index]), data.x)
        return {"x": x, "y": self._labels(data.y[index])}

    def gradient(
        self, variables: Variables, batch: Mapping[str, Any], step: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """See :class:`insitu.core.protocols.GradientLearner`."""
        self._mode(training=True)
        personal = variables.personal or {"params": {}, "buffers": {}}
        trained = {"shared": variables.shared, "personal": personal["params"]}
        given = {**variables.buffers, **personal["buffers"]}

        # x is an argument, since a module may write into it, which a transform forbids for what it only captures.
        def mean_loss(trained: dict[str, Any], x: Any) -> tuple[Tensor, Any]:
            # A forward pass writes to buffers in place; the caller's stay as they are.
            buffers = {name: buffer.clone() for name, buffer in given.items()}
            state = {**trained["shared"], **trained["personal"], **variables.frozen, **buffers}
            output = self._forward(state, x, batch["seed"], step)
            mean, sums = self._sums(output, batch["y"], batch["weight"])
            return mean, (sums, {name: buffer.detach() for name, buffer in buffers.items()})

        # A transform can be transformed again, and its first use takes two seconds to import a compiler.
        differentiate = grad_and_value(mean_loss, has_aux=True) if self._mapped else _differentiated(mean_loss)
        grads, (_, (sums, buffers)) = differentiate(trained, batch["x"])
        state = {
            "buffers": {k: buffers[k] for k in variables.buffers},
            "personal": {k: buffers[k] for k in personal["buffers"]},
        }
        return grads, state, sums

    def mapped(self) -> TorchLearner:
        """This learner with a ``gradient`` that ``torch.func.vmap`` can be applied to."""
        learner = copy.copy(self)
        learner._mapped = True
        return learner

    def stacked(self) -> Stacked | str:
        """The same gradient for many clients at once, or the reason why this module has none."""
        if self.mixes or self.roles.buffers or self.roles.kept:
            return "it has buffers that change with every batch"
        if self._random:
            return "it draws random numbers other than dropout"
        trained = (*self.roles.shared, *self.roles.personal)
        return stacked(self._module, trained, self._loss, self._metrics)

    def trainable(self) -> Trainable | str:
        """The module with its loss, for engines that differentiate by themselves; or why it is better not used so."""
        if self.mixes or self.roles.buffers or self.roles.kept:
            return "it has buffers that change with every batch"
        if self.roles.personal:
            return "some of its parameters are personal"
        if self._random or self._draws:
            return "its random masks depend on where an example stands in the batch"
        return Trainable(self._module, self._loss, self._metrics, self.roles.shared)

    def _forward(self, state: dict[str, Tensor], x: Any, seed: Tensor, step: Tensor) -> Any:
        if self._random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeds.seed(int(seed), int(step), "", "torch"))
                return self._masked(state, x, seed, step)
        return self._masked(state, x, seed, step)

    def _masked(self, state: dict[str, Tensor], x: Any, seed: Tensor, step: Tensor) -> Any:
        if not self._draws:
            return functional_call(self._module, state, (x,))
        with Masks(seed, step):
            return functional_call(self._module, state, (x,))

    def _sums(self, output: Any, y: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self._loss(output, y)
        examples = weight.sum()
        loss = (losses * weight).sum()
        # Only an idle lane weighs nothing; its gradient is thrown away, but must not be NaN on the way.
        mean = loss / torch.where(examples > 0, examples, torch.ones_like(examples))
        sums = {"examples": examples, "loss": loss.detach()}
        for name, metric in self._metrics.items():
            sums[name] = (metric(output, y).detach() * weight).sum()
        return mean, sums

    # Checks, evaluation and prediction.

    def check(self, client: Client) -> None:
        """Raises DataError naming the client where its labels or shapes do not fit the module."""
        y = client.data.y
        if y is None:
            raise DataError(f"client {client.id!r} has no labels: give y, which {self._loss_name or 'the loss'} needs")
        if self._draws is None:
            self._probe(client)
        if self._loss_name == "cross_entropy":
            self._check_labels(client.id, np.asarray(y))
        if self._loss_name == "binary_cross_entropy" and not np.isin(y, (0, 1)).all():
            low, high = np.min(y), np.max(y)
            raise DataError(
                f"client {client.id!r}: labels go from {low} to {high}, and this loss needs 0 and 1: renumber them"
            )
        if self.mixes and len(client.data) == 1:
            raise DataError(
                f"client {client.id!r} has a single example, of which batch norm can take no statistics: leave it"
                " out, merge it with another, or use GroupNorm"
            )

    def _check_labels(self, client: str, y: np.ndarray) -> None:
        if not np.issubdtype(y.dtype, np.integer) and not np.array_equal(y, y.astype(np.int64)):
            raise DataError(f"client {client!r}: labels are {y.dtype}, cross_entropy needs whole numbers 0 … C-1")
        low, high = int(y.min()), int(y.max())
        if low < 0 or (self._outputs is not None and high >= self._outputs):
            raise DataError(
                f"client {client!r}: labels go from {low} to {high}, but the module has {self._outputs} outputs"
                f" (labels 0 … {(self._outputs or 1) - 1}): renumber the labels or widen the last layer"
            )

    def _probe(self, client: Client) -> None:
        """One forward pass on two examples: what the module draws, how many outputs it has, the loss's shape."""
        variables, size = self.init(0), min(2, len(client.data))
        index = np.resize(np.arange(size), 2) if self.mixes else np.arange(size)
        batch = self.batch(client.data, index)
        state = self.roles.state(variables)
        self._mode(training=True)
        zero = torch.zeros((), dtype=torch.int64)
        masks = Masks(zero, zero)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                before = torch.get_rng_state()
                with masks:
                    copies = {k: v.clone() for k, v in state.items()}
                    output = functional_call(self._module, copies, (batch["x"],))
                drew = not torch.equal(before, torch.get_rng_state())
        except Exception as error:
            shapes = tree.map(lambda x: list(x.shape), batch["x"])
            raise DataError(
                f"client {client.id!r}: the module cannot take x of shape {shapes} (batch first): {error}"
            ) from error
        self._check_loss(client, output, batch["y"], len(index))
        self._draws, self._random = masks.drew, drew

    def _check_loss(self, client: Client, output: Any, y: Tensor, size: int) -> None:
        if self._loss_name == "cross_entropy" and isinstance(output, Tensor) and output.dim() > 1:
            self._outputs = int(output.shape[-1])
            self._check_labels(client.id, client.data.y)
        for name, function in {"loss": self._loss, **self._metrics}.items():
            try:
                values = function(output, y)
            except Exception as error:
                raise PlanError(
                    f"{name} cannot compare an output of shape {_shape(output)} with y of shape {_shape(y)}: {error}"
                ) from error
            if not isinstance(values, Tensor) or tuple(values.shape) != (size,):
                raise PlanError(
                    f"{name} returned {_shape(values)} for a batch of {size}: return one value an example, [{size}]"
                    " (reduction='none', then the mean over everything but the batch)"
                )

    def evaluate(self, variables: Variables, data: Data) -> dict[str, float]:
        """Metric sums over all examples, in evaluation mode."""
        return self._evaluator.sums(self.roles.state(variables), data, self.batch)

    def evaluate_many(self, variables: Variables, parts: Sequence[Data]) -> list[dict[str, float]]:
        """:meth:`evaluate` of each of these parts, several in one forward pass."""
        return self._evaluator.sums_of_many(self.roles.state(variables), parts, self.batch)

    def outputs(self, variables: Variables, x: Any) -> np.ndarray:
        """The module's outputs in evaluation mode, NumPy [n, …]."""

        def convert(data: Data, where: Any) -> dict[str, Any]:
            return {"x": tree.map(lambda column: self._tensor(column[where]), data.x)}

        data = Data(tree.map(np.asarray, x))
        return np.concatenate(self._evaluator.outputs(self.roles.state(variables), data, convert))

    def predict(self, variables: Variables, x: Any) -> np.ndarray:
        """Labels [n] for classification losses, the module's outputs otherwise."""
        outputs = self.outputs(variables, x)
        if self._loss_name == "cross_entropy":
            return np.asarray(outputs.argmax(-1))
        if self._loss_name == "binary_cross_entropy":
            return np.asarray((outputs > 0).astype(np.int64).reshape(len(outputs)))
        return outputs

    def predict_proba(self, variables: Variables, x: Any) -> np.ndarray:
        """Probabilities [n, C] of the classes, for classification losses."""
        outputs = torch.from_numpy(self.outputs(variables, x))
        if self._loss_name == "binary_cross_entropy":
            one = outputs.sigmoid().reshape(-1, 1)
            return torch.cat([1 - one, one], dim=1).numpy()
        return outputs.softmax(-1).numpy()

    def model(self, variables: Variables) -> nn.Module:
        """A copy of the module with these variables, in evaluation mode; personal ones are as at the start."""
        module = copy.deepcopy(self._module)
        personal = variables.personal or self.init(0).personal
        filled = Variables(variables.shared, variables.buffers, personal, variables.frozen or self.init(0).frozen)
        state = self.roles.state(filled)
        with torch.no_grad():
            for name, target in [*module.named_parameters(), *module.named_buffers()]:
                if name in state:
                    target.copy_(state[name])
        return module.eval()

    def _mode(self, *, training: bool) -> None:
        if self._module.training != training:
            self._module.train(training)

    def _labels(self, y: np.ndarray) -> Tensor:
        tensor = self._tensor(y)
        return tensor.to(torch.int64) if self._loss_name == "cross_entropy" else tensor

    def _tensor(self, column: np.ndarray) -> Tensor:
        tensor = arrays.to_torch(np.ascontiguousarray(column))
        if tensor.is_floating_point():
            return tensor.to(self.roles.dtype)
        if self._loss_name == "cross_entropy" or tensor.dtype != torch.uint8:
            return tensor.to(torch.int64)
        return tensor


def _differentiated(function: Callable[..., tuple[Tensor, Any]]) -> Callable[..., Any]:
    """``grad_and_value(function, has_aux=True)`` by plain autograd, for trees {"shared": …, "personal": …}."""

    def differentiate(trained: dict[str, Any], x: Any) -> tuple[Any, Any]:
        leaves = tree.map(lambda w: w.detach().requires_grad_(), trained)
        mean, aux = function(leaves, x)
        inputs = tree.values(leaves)
        found = iter(torch.autograd.grad(mean, inputs, allow_unused=True))
        return tree.map(lambda w: torch.zeros_like(w) if (g := next(found)) is None else g, leaves), (mean, aux)

    return differentiate


def _built(module: Any, seed: int) -> nn.Module:
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    if not callable(module):
        raise PlanError(f"module={module!r} is neither a torch.nn.Module nor a callable that makes one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed(seed, 0, "", "init"))
        made = module()
    if not isinstance(made, nn.Module):
        raise PlanError(f"{plain(module)} returned {type(made).__name__}: it must make a torch.nn.Module")
    return made


def _shape(x: Any) -> Any:
    return list(x.shape) if hasattr(x, "shape") else type(x).__name__
