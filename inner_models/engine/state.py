"""The state of N runs in one flat buffer, and the last good copy of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.task import Task

ALIGNED = 16
"""Rows of parameters are padded to a multiple of this, so that all have the same alignment in
memory, by which MKL chooses how matrix products round (see `host`)."""


class RunStack:
    """Parameters, gradients and buffers of ``len(tasks) * siblings`` runs.

    Tasks are of one shape, each with a seed; siblings start from the same weights.

    Attributes:
        model: the first task's module, whose code serves all runs.
        num_params: trained numbers of one run.
        params: (num_runs, num_params and a few zeros), trained parameters; rows are task-major.
        grads: the same for their gradients.
        leaves: views of `params` by name, each (num_tasks, siblings, ...), that require gradients.
        fixed: buffers and frozen parameters by name, each (num_tasks, siblings, ...).
        shapes: shape of each trained tensor in one run.

    Raises:
        ValueError: nothing is trained, or the models differ in more than their numbers.
    """

    def __init__(
        self, tasks: Sequence[Task], *, siblings: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        models = [build_model(task) for task in tasks]
        _check_alike(models, tasks)
        self.model = models[0]
        trained = {f"model.{n}" for n, p in self.model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError(f"the model of task {tasks[0].name!r} has nothing to train")
        states = [_state_of(model) for model in models]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        stacked = {
            name: t.to(device, dtype if t.is_floating_point() else t.dtype)
            for name, t in stacked.items()
        }
        self.shapes = {name: stacked[name].shape[1:] for name in stacked if name in trained}
        parts = [stacked[name].reshape(len(tasks), -1) for name in self.shapes]
        self.num_params = sum(part.shape[1] for part in parts)
        padding = parts[0].new_zeros(len(tasks), -self.num_params % ALIGNED)
        flat = torch.cat([*parts, padding], dim=1)
        self._padding = padding.repeat_interleave(siblings, dim=0)
        self.params = flat.repeat_interleave(siblings, dim=0)
        self.grads = torch.empty_like(self.params)
        grid = self.params[:, : self.num_params].unflatten(0, (len(tasks), siblings))
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.leaves = {
            name: part.view(len(tasks), siblings, *shape).detach().requires_grad_()
            for (name, shape), part in zip(
                self.shapes.items(), grid.split(self._sizes, dim=2), strict=True
            )
        }
        self.fixed = {
            name: t[:, None].expand(-1, siblings, *t.shape[1:]).contiguous()
            for name, t in stacked.items()
            if name not in self.shapes
        }

    def write_gradients(self, parts: Sequence[Tensor]) -> None:
        """Lays the gradients of `leaves`, in their order, side by side in `grads`."""
        rows = len(self.grads)
        flat = [part.reshape(rows, -1) for part in parts]
        torch.cat([*flat, self._padding], dim=1, out=self.grads)

    def parameters(self, run: int) -> dict[str, Tensor]:
        """A copy of one run's trained parameters by name, each with the shape the module has."""
        parts = self.params[run, : self.num_params].split(self._sizes)
        return {
            name.removeprefix("model."): part.view(shape).clone()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in a `LossModule`."""
    named = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    return {**named, **{f"model.{n}": b for n, b in model.named_buffers()}}


def _check_alike(models: Sequence[nn.Module], tasks: Sequence[Task]) -> None:
    first = str(models[0])
    for model, task in zip(models[1:], tasks[1:], strict=True):
        if str(model) != first:
            raise ValueError(
                "models trained together must be alike but for their numbers, but task "
                f"{tasks[0].name!r} has\n{first}\nand task {task.name!r} has\n{model}"
            )
        if task.loss != tasks[0].loss:
            raise ValueError(
                "tasks trained together must have one loss function (the same function, or equal "
                f"frozen dataclasses; numbers that differ go into buffers of the model), but got "
                f"{tasks[0].loss!r} and {task.loss!r}"
            )


class RunSnapshot:
    """The last good state of each run, to go back to when one diverges.

    A loss is that of the weights before its update: what the latest update did is not known yet. So
    a state is first kept as a candidate, and becomes good when the next interval was good too.

    Args:
        tensors: each (num_runs, ...), written in place for as long as they are in use. Their state
            now, untrained, is good enough to go back to.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._live = list(tensors)
        self._good = [tensor.clone() for tensor in tensors]
        self._candidate = [tensor.clone() for tensor in tensors]

    def keep(self, rows: Tensor) -> None:
        """Takes the state of some runs, (num_runs,), as candidates, and their last ones as good."""
        _copy(self._candidate, self._good, rows)
        _copy(self._live, self._candidate, rows)

    def discard_candidate(self, rows: Tensor) -> None:
        """Drops the candidates of some runs: the interval after them was not good."""
        _copy(self._good, self._candidate, rows)

    def restore(self, rows: Tensor) -> None:
        """Puts some runs back to their last good state."""
        _copy(self._good, self._live, rows)
        self.discard_candidate(rows)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    for source, target in zip(sources, targets, strict=True):
        mask = rows.view(-1, *[1] * (source.dim() - 1))
        target.copy_(torch.where(mask, source, target))
