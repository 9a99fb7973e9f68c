"""Trains N inner runs of equal shape as one tensor program.

Rows are task-major: run ``t * siblings + s`` is sibling s of task t. The parameters of all runs
are one (num_runs, num_params) buffer; the forward pass is `torch.func.vmap` over tasks and, within
a task, over siblings, and since runs share no parameter, one backward pass of the summed losses
gives every run its own gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pacesetter.inner_models.allocator import keep_freed_memory
from pacesetter.inner_models.batching import batch_stream, build_model, task_seeds
from pacesetter.inner_models.functional import LossModule, state_of
from pacesetter.inner_models.optimizers import make_optimizer
from pacesetter.inner_models.signals import (
    FloatArray,
    IntervalStatistics,
    TrainingSignals,
    window_length,
)
from pacesetter.inner_models.task import Batch, SplitName, Task

EVAL_ELEMENTS = 2**22
"""Evaluation goes through a split in chunks of about this many rows times runs."""


class InnerTrainer:
    """Trains ``len(tasks) * siblings`` runs side by side.

    Args:
        tasks: tasks of one shape, each with a seed. Siblings of one task share data, initial
            weights, batch order and dropout masks, and differ only in their hyperparameters.
        siblings: runs per task.
        device: where everything lives.
        dtype: of parameters and floating-point data.

    Raises:
        ValueError: no task, no sibling, or tasks that differ in shape.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        siblings: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not tasks or siblings < 1:
            raise ValueError(
                f"need at least one task and one sibling, but got {len(tasks)} and {siblings}"
            )
        self.tasks = list(tasks)
        self.siblings = siblings
        self.num_tasks = len(tasks)
        self.num_runs = self.num_tasks * siblings
        self.horizon = tasks[0].horizon
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = dtype
        self.step_count = 0
        self._check_shapes()
        self._data = {name: self._stack_split(name) for name in _SPLITS}
        self._streams = [batch_stream(task) for task in tasks]
        self._build_runs()
        self.optimizer = make_optimizer(self._params, tasks[0].optimizer)
        self.signals = TrainingSignals(self.num_runs, device=self.device)
        self._task_rows = torch.arange(self.num_tasks, device=self.device)[:, None]
        self._momentum: Tensor | None = None
        # As in a job: torch's SGD keeps nothing that tells a direction when it has no momentum.
        self._has_direction = all(
            t.optimizer.name != "sgd" or t.optimizer.momentum > 0 for t in tasks
        )

    # -- set-up -------------------------------------------------------------------------------

    def _check_shapes(self) -> None:
        def shape(task: Task) -> tuple[object, ...]:
            rows = tuple(task.splits.num_rows(name) for name in _SPLITS)
            o = task.optimizer
            kind = (o.name, o.beta2, o.eps, o.weight_decay)
            return (task.horizon, task.batch_size, rows, kind)

        first = shape(self.tasks[0])
        for task in self.tasks[1:]:
            if shape(task) != first:
                raise ValueError(
                    "tasks trained together must agree in (horizon, batch size, rows of splits, "
                    f"optimizer), but got {first} and {shape(task)}"
                )

    def _stack_split(self, name: SplitName) -> Batch:
        """The split of every task, stacked: (num_tasks, rows, ...)."""
        batches = [getattr(task.splits, name) for task in self.tasks]

        def stack(tensors: tuple[Tensor, ...]) -> Tensor:
            first = tensors[0]
            same = all(t is first for t in tensors)
            whole = first[None].expand(len(tensors), *first.shape) if same else torch.stack(tensors)
            return whole.to(self.device, self.dtype if first.is_floating_point() else first.dtype)

        return tuple(stack(column) for column in zip(*batches, strict=True))

    def _build_runs(self) -> None:
        models = [build_model(task) for task in self.tasks]
        self._loss_module = LossModule(models[0], self.tasks[0].loss)
        self._random = any(
            isinstance(m, nn.modules.dropout._DropoutNd) for m in models[0].modules()
        )
        trained = {n for n, p in self._loss_module.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError(f"the model of task {self.tasks[0].name!r} has nothing to train")
        states = [state_of(model) for model in models]
        stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        stacked = {
            name: t.to(self.device, self.dtype if t.is_floating_point() else t.dtype)
            for name, t in stacked.items()
        }
        self._shapes = {name: stacked[name].shape[1:] for name in stacked if name in trained}
        flat = torch.cat([stacked[name].flatten(1) for name in self._shapes], dim=1)
        self._params = flat.repeat_interleave(self.siblings, dim=0)
        self._grads = torch.empty_like(self._params)
        grid = self._params.view(self.num_tasks, self.siblings, -1)
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        self._leaves = {
            name: part.view(self.num_tasks, self.siblings, *shape).detach().requires_grad_()
            for (name, shape), part in zip(
                self._shapes.items(), grid.split(sizes, dim=2), strict=True
            )
        }
        self._fixed = {
            name: t[:, None].expand(-1, self.siblings, *t.shape[1:]).contiguous()
            for name, t in stacked.items()
            if name not in self._shapes
        }
        self._forms = [self._shared_batch, self._batch_each, self._one_by_one]

    # -- losses -------------------------------------------------------------------------------

    def _one_loss(
        self, params: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        loss: Tensor = functional_call(self._loss_module, (params, fixed), batch)
        if loss.ndim:
            raise ValueError(
                f"the loss of task {self.tasks[0].name!r} must be one number, the mean over the "
                f"batch, but got a tensor of shape {tuple(loss.shape)}"
            )
        return loss

    def _losses(self, batch: Batch) -> Tensor:
        """Losses of all runs, (num_tasks, siblings), on batches of shape (num_tasks, rows, ...)."""
        while True:
            try:
                return self._forms[0](batch)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                # A form that torch.func cannot batch gives way to the next; what the last one
                # raises is the user's own error, and needs no warning about batching.
                if len(self._forms) == 1:
                    raise
                del self._forms[0]
                if len(self._forms) == 1:
                    losses = self._forms[0](batch)
                    warnings.warn(
                        f"task {self.tasks[0].name!r}: torch.func.vmap cannot batch its model or "
                        f"loss, so runs go one after another ({str(error).splitlines()[0]})",
                        stacklevel=2,
                    )
                    return losses

    def _shared_batch(self, batch: Batch) -> Tensor:
        """Siblings see one batch, so that the first layer needs no copies of it."""
        inner = vmap(self._one_loss, in_dims=(0, 0, None), randomness="same")
        return vmap(inner, randomness="different")(self._leaves, self._fixed, batch)

    def _batch_each(self, batch: Batch) -> Tensor:
        """Each sibling sees its own view of the batch, which some batching rules insist on."""
        each = tuple(c[:, None].expand(-1, self.siblings, *c.shape[1:]) for c in batch)
        inner = vmap(self._one_loss, randomness="same")
        return vmap(inner, randomness="different")(self._leaves, self._fixed, each)

    def _one_by_one(self, batch: Batch) -> Tensor:
        rows = []
        for t in range(self.num_tasks):
            own = tuple(column[t] for column in batch)
            for s in range(self.siblings):
                params = {name: leaf[t, s] for name, leaf in self._leaves.items()}
                fixed = {name: value[t, s] for name, value in self._fixed.items()}
                rows.append(self._one_loss(params, fixed, own))
        return torch.stack(rows).view(self.num_tasks, self.siblings)

    @torch.no_grad()
    def evaluate(self, split: SplitName) -> FloatArray:
        """Mean loss of every run on a whole split, in evaluation mode: shape (num_runs,)."""
        data = self._data[split]
        rows = data[0].shape[1]
        chunk = max(1, min(rows, EVAL_ELEMENTS // (self.num_runs * 16)))
        total = torch.zeros(self.num_tasks, self.siblings, device=self.device, dtype=torch.float64)
        self._loss_module.eval()
        try:
            for start in range(0, rows, chunk):
                batch = tuple(column[:, start : start + chunk] for column in data)
                total += self._losses(batch).double() * batch[0].shape[1]
        finally:
            self._loss_module.train()
        return (total / rows).flatten().cpu().numpy()

    # -- training -----------------------------------------------------------------------------

    def run(
        self, lr: FloatArray, *, momentum: FloatArray, clip_ratio: FloatArray | None = None
    ) -> IntervalStatistics:
        """Takes ``len(lr)`` inner steps, one interval.

        Args:
            lr: (steps, num_runs), the learning rate of each step.
            momentum: (num_runs,), held over the interval.
            clip_ratio: (num_runs,), clip threshold over the running mean gradient norm; None: never
                clip.

        Returns:
            The interval's statistics.
        """
        steps = len(lr)
        if lr.shape != (steps, self.num_runs):
            raise ValueError(f"lr must have shape (steps, {self.num_runs}), but got {lr.shape}")
        rates = torch.as_tensor(lr, device=self.device, dtype=self.dtype)[..., None]
        mu = torch.as_tensor(momentum, device=self.device, dtype=self.dtype)[:, None]
        ratio = torch.as_tensor(
            np.full(self.num_runs, np.inf) if clip_ratio is None else clip_ratio,
            device=self.device,
        )
        rows = torch.stack([stream.take(steps) for stream in self._streams], dim=1).to(self.device)
        window = steps - window_length(steps)
        if self._random:
            # Dropout draws from the global generator, as it does in a user's job: lend it ours.
            seed = task_seeds(self.tasks[0])[2] + self.step_count
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self._steps(rates, mu=mu, ratio=ratio, rows=rows, window=window)
        else:
            self._steps(rates, mu=mu, ratio=ratio, rows=rows, window=window)
        return self.signals.fetch()

    def _steps(
        self, rates: Tensor, *, mu: Tensor, ratio: Tensor, rows: Tensor, window: int
    ) -> None:
        for i in range(len(rates)):
            batch = tuple(column[self._task_rows, rows[i]] for column in self._data["train"])
            self._step(batch, lr=rates[i], momentum=mu, ratio=ratio, in_window=i >= window)

    def _step(
        self, batch: Batch, *, lr: Tensor, momentum: Tensor, ratio: Tensor, in_window: bool
    ) -> None:
        losses = self._losses(batch)
        parts = torch.autograd.grad(losses.sum(), list(self._leaves.values()))
        torch.cat([p.reshape(self.num_runs, -1) for p in parts], dim=1, out=self._grads)
        norm = torch.linalg.vector_norm(self._grads, dim=1)
        scale, _, finite = self.signals.record_gradient(norm, ratio)
        if in_window:
            self._record_window(lr, norm)
        keep = None
        # On a CPU, looking is free and saves two passes over memory; elsewhere it would wait.
        if self.device.type != "cpu" or not bool(finite.all()):
            self._grads.masked_fill_(~finite[:, None], 0.0)
            keep = finite[:, None].to(self.dtype)
        if self.device.type != "cpu" or bool((scale != 1).any()):
            self._grads.mul_(scale[:, None].to(self.dtype))
        self.optimizer.step(self._grads, lr=lr, momentum=momentum, keep=keep)
        self.signals.record_loss(losses.detach().flatten())
        self._last_lr, self._momentum = lr, momentum
        self.step_count += 1

    def _record_window(self, lr: Tensor, norm: Tensor) -> None:
        directions = None
        if self._momentum is not None and self._has_direction:
            buffer, grads = self.optimizer.buffer, self._grads
            update = self.optimizer.update_direction(self._momentum)
            update_sq = _row_dot(update, update)
            directions = (
                _row_dot(grads, buffer),
                _row_dot(buffer, buffer),
                _row_dot(grads, update),
                update_sq,
                update_sq.sqrt() * self._last_lr[:, 0],
            )
        params = self._params
        self.signals.record_window(
            param_sq=_row_dot(params, params), grad_sq=norm * norm, directions=directions
        )

    # -- looking in ---------------------------------------------------------------------------

    def parameters(self, run: int) -> dict[str, Tensor]:
        """A copy of one run's trained parameters by name, each with the shape the module has."""
        flat = self._params[run]
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        return {
            name.removeprefix("model."): part.view(shape).clone()
            for (name, shape), part in zip(self._shapes.items(), flat.split(sizes), strict=True)
        }


_SPLITS: tuple[SplitName, ...] = ("train", "inner_valid", "outer_valid", "test")


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of each row: (num_runs, n), (num_runs, n) -> (num_runs,)."""
    return torch.bmm(left[:, None], right[:, :, None])[:, 0, 0]
