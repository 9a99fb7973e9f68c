"""The trainer of N inner runs of equal shape, as one tensor program.

Rows are task-major: run ``t * siblings + s`` is sibling s of task t. The parameters of all runs
are one (num_runs, num_params) buffer (`RunStack`); losses and gradients of all runs are one program
(`LossProgram`), as are the update (`optimizers`) and the statistics (`signals`). A process that
trains runs should call `pacesetter.inner_models.engine.host.prepare_process` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pacesetter.inner_models.engine.cuda_graphs import GraphedSteps, Step
from pacesetter.inner_models.engine.data import BatchSource, task_seeds
from pacesetter.inner_models.engine.optimizers import make_optimizer
from pacesetter.inner_models.engine.program import (
    TRACE_FROM,
    LossProgram,
    is_out_of_memory,
    out_of_memory,
)
from pacesetter.inner_models.engine.state import RunSnapshot, RunStack
from pacesetter.inner_models.task import SPLITS, Batch, LossFn, SplitName, Task, check_shapes
from pacesetter.inner_models.watch.signals import (
    FloatArray,
    IntervalStatistics,
    TrainingSignals,
    window_length,
)

EVAL_ELEMENTS = 2**22
"""Evaluation goes through a split in chunks of about this many rows times runs."""

Result = TypeVar("Result")


class InnerTrainer:
    """Trains ``len(tasks) * siblings`` runs side by side.

    Args:
        tasks: tasks of one shape, each with a seed. Siblings of one task share data, initial
            weights, batch order and dropout masks, and differ only in their hyperparameters.
        siblings: runs per task.
        device: where everything lives.
        dtype: of parameters and floating-point data.
        traced: whether the program of an inner step is traced, which is faster; None: where the
            horizon is long enough to pay for it. Turn it off for a model with randomness or
            counters of Python's own, which a trace cannot see.
        graphs: whether inner steps run as CUDA graphs; None: on CUDA. True without CUDA goes
            through the same motions, for tests.

    Raises:
        ValueError: no task, no sibling, or tasks that differ in shape.
        torch.OutOfMemoryError: they do not fit; the message says how many would. `run` and
            `evaluate` raise it too, and the trainer is of no use then.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        siblings: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        traced: bool | None = None,
        graphs: bool | None = None,
    ) -> None:
        if not tasks or siblings < 1:
            raise ValueError(
                f"need at least one task and one sibling, but got {len(tasks)} and {siblings}"
            )
        check_shapes(tasks)
        self.tasks = list(tasks)
        self.siblings = siblings
        self.num_tasks = len(tasks)
        self.num_runs = self.num_tasks * siblings
        self.horizon = tasks[0].horizon
        self.device = torch.device(device)
        self.dtype = dtype
        self.step_count = 0
        self._traced = self.horizon >= TRACE_FROM if traced is None else traced
        self._fits(self._build)
        graphs = self.device.type == "cuda" if graphs is None else graphs
        self._graphs = GraphedSteps(self._step, device=self.device) if graphs else None

    def _build(self) -> None:
        task = self.tasks[0]
        self._source = BatchSource(self.tasks, device=self.device, dtype=self.dtype)
        self._stack = RunStack(
            self.tasks, siblings=self.siblings, device=self.device, dtype=self.dtype
        )
        self._program = LossProgram(task, self._stack, traced=self._traced)
        self.optimizer = make_optimizer(self._stack.params, task.optimizer)
        self.signals = TrainingSignals(self.num_runs, device=self.device)
        self._snapshot: RunSnapshot | None = None
        self._last_lr = self._stack.params.new_zeros(self.num_runs)
        self._momentum = self._stack.params.new_zeros(self.num_runs, 1)
        # As in a job: a plain sum that has no momentum keeps nothing that tells a direction.
        self._has_direction = task.optimizer.name in ("adamw", "adam") or all(
            t.optimizer.momentum > 0 for t in self.tasks
        )

    @property
    def num_params(self) -> int:
        """Trained numbers of one run."""
        return self._stack.num_params

    def _fits(self, work: Callable[[], Result]) -> Result:
        """Does the work, or says how many runs would fit in the memory."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            for name in ("_source", "_stack", "_program", "optimizer", "_snapshot", "_graphs"):
                self.__dict__.pop(name, None)
            raise out_of_memory(error, num_runs=self.num_runs, attempt=self._attempt) from None

    def _attempt(self, num_runs: int) -> None:
        """Trains fewer runs like these for one step; raises whatever it meets."""
        siblings = min(self.siblings, num_runs)
        trial = object.__new__(InnerTrainer)
        trial.__dict__.update(self.__dict__)
        trial.tasks = self.tasks[: -(-num_runs // siblings)]
        trial.siblings, trial.num_tasks = siblings, len(trial.tasks)
        trial.num_runs = trial.num_tasks * siblings
        trial._fits = lambda work: work()  # type: ignore[method-assign]
        trial._traced, trial._graphs = False, None
        trial._build()
        ones = np.ones(trial.num_runs)
        trial.run(1e-3 * ones[None], momentum=0.9 * ones, clip_ratio=ones)
        for split in SPLITS:
            trial.evaluate(split)

    @torch.no_grad()
    def evaluate(self, split: SplitName) -> FloatArray:
        """Mean loss of every run on a whole split, in evaluation mode: shape (num_runs,)."""
        return self._fits(lambda: self._evaluate(self._program, self._source.split(split)))

    @torch.no_grad()
    def measure(self, split: SplitName, what: LossFn) -> FloatArray:
        """Mean of ``what(model, batch)`` on a whole split, in evaluation mode: (num_runs,)."""
        task = replace(self.tasks[0], loss=what)
        program = LossProgram(task, self._stack, traced=False)
        return self._fits(lambda: self._evaluate(program, self._source.split(split)))

    def _evaluate(self, program: LossProgram, data: Batch) -> FloatArray:
        rows = data[0].shape[1]
        chunk = max(1, min(rows, EVAL_ELEMENTS // (self.num_runs * 16)))
        total = torch.zeros(self.num_tasks, self.siblings, device=self.device, dtype=torch.float64)
        program.train(False)
        try:
            for start in range(0, rows, chunk):
                batch = tuple(column[:, start : start + chunk] for column in data)
                total += program.losses(batch).double() * batch[0].shape[1]
        finally:
            program.train()
        means: FloatArray = (total / rows).flatten().cpu().numpy()
        return means

    def run(
        self, lr: FloatArray, *, momentum: FloatArray, clip_ratio: FloatArray | None = None
    ) -> IntervalStatistics:
        """Takes ``len(lr)`` inner steps, one interval.

        Args:
            lr: (steps, num_runs), the learning rate of each step.
            momentum: (num_runs,), held over the interval.
            clip_ratio: (num_runs,), clip threshold over the running mean gradient norm; None: never
                clip.
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
        # Dropout and the like draw from the global generators, as in a user's job.
        with _seeded(task_seeds(self.tasks[0])[2] + self.step_count, self.device):
            self._fits(lambda: self._interval(rates, momentum=mu, ratio=ratio))
        return self.signals.fetch()

    def _interval(self, rates: Tensor, *, momentum: Tensor, ratio: Tensor) -> None:
        steps = len(rates)
        columns = self._source.load(steps)
        window = steps - window_length(steps)
        if self.signals.begin_interval(steps) and self._graphs is not None:
            self._graphs = GraphedSteps(self._step, device=self.device)  # the tables have moved
        # The first interval is not captured: it settles which form the program takes.
        step: Step = self._step
        if self._graphs is not None and self.step_count and self._program.batched:
            step = self._graphs.begin(rates, columns, constants=(momentum, ratio))
        for i in range(steps):
            known = self.step_count > 0 and i >= window
            step(rates[i], [c[i] for c in columns], momentum, ratio, i >= window, known)
            self.step_count += 1

    def _step(
        self,
        lr: Tensor,
        columns: Sequence[Tensor],
        momentum: Tensor,
        ratio: Tensor,
        in_window: bool,
        has_history: bool,
    ) -> None:
        losses = self._program.gradients(self._source.batch(columns))
        grads = self._stack.grads
        norm = torch.linalg.vector_norm(grads, dim=1)
        scale, _, finite = self.signals.record_gradient(norm, ratio)
        if in_window:
            self._record_window(norm, has_history=has_history)
        keep = None
        # On a CPU, looking is free and saves two passes over memory; elsewhere it would wait.
        if self.device.type != "cpu" or not bool(finite.all()):
            grads.masked_fill_(~finite[:, None], 0.0)
            keep = finite[:, None].to(self.dtype)
        if self.device.type != "cpu" or bool((scale != 1).any()):
            grads.mul_(scale[:, None].to(self.dtype))
        self.optimizer.step(grads, lr=lr, momentum=momentum, keep=keep)
        self.signals.record_loss(losses.flatten())
        self._last_lr.copy_(lr[:, 0])
        self._momentum.copy_(momentum)

    def _record_window(self, norm: Tensor, *, has_history: bool) -> None:
        directions = None
        if has_history and self._has_direction:
            buffer, grads = self.optimizer.buffer, self._stack.grads
            update = self.optimizer.update_direction(self._momentum)
            update_norm = torch.linalg.vector_norm(update, dim=1)
            directions = (
                _row_dot(grads, buffer),
                torch.linalg.vector_norm(buffer, dim=1).square(),
                _row_dot(grads, update),
                update_norm.square(),
                update_norm * self._last_lr,
            )
        param_norm = torch.linalg.vector_norm(self._stack.params, dim=1)
        self.signals.record_window(
            param_sq=param_norm.square(), grad_sq=norm.square(), directions=directions
        )

    @property
    def snapshot(self) -> RunSnapshot:
        """What runs can go back to: weights, buffers and optimizer state.

        Taken of all runs when first asked for; it takes twice the memory of what it copies.
        """
        if self._snapshot is None:
            fixed = [t.flatten(0, 1) for t in self._stack.fixed.values()]
            tensors = [self._stack.params, *self.optimizer.state(), *fixed]
            self._snapshot = self._fits(lambda: RunSnapshot(tensors))
        return self._snapshot

    @torch.no_grad()
    def copy_runs(self, sources: NDArray[np.int64]) -> None:
        """Gives each run the weights, buffers and optimizer state of its source, (num_runs,)."""
        index = torch.as_tensor(sources, device=self.device)
        fixed = [t.flatten(0, 1) for t in self._stack.fixed.values()]
        for tensor in (self._stack.params, *self.optimizer.state(), *fixed):
            tensor.copy_(tensor[index])

    def parameters(self, run: int) -> dict[str, Tensor]:
        """A copy of one run's trained parameters by name, each with the shape the module has."""
        return self._stack.parameters(run)

    def buffers(self, run: int) -> dict[str, Tensor]:
        """A copy of one run's buffers and frozen parameters by name."""
        task, sibling = divmod(run, self.siblings)
        return {
            name.removeprefix("model."): value[task, sibling].clone()
            for name, value in self._stack.fixed.items()
        }


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators of host and device; their states are restored afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            # Not torch.manual_seed: it would seed other devices too, for good.
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of each row: (num_runs, n), (num_runs, n) -> (num_runs,)."""
    return (left * right).sum(1)
