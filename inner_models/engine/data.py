"""Batches and initial weights of runs, each from the task's own seed.

`BatchSource` serves runs that are trained together, `PlainData` a plain loop; the two give the same
rows in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.task import SPLITS, Batch, RowsFn, SplitName, Task


class BatchStream:
    """Row numbers of successive batches: shuffled epochs, laid end to end and cut into batches."""

    def __init__(self, num_rows: int, batch_size: int, generator: torch.Generator) -> None:
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.int64)

    def take(self, num_batches: int) -> Tensor:
        """The next batches, shape (num_batches, batch_size), int64 on the CPU."""
        wanted = num_batches * self._batch_size
        chunks, have = [self._left], len(self._left)
        while have < wanted:
            chunks.append(torch.randperm(self._num_rows, generator=self._generator))
            have += self._num_rows
        rows = torch.cat(chunks)
        self._left = rows[wanted:]
        return rows[:wanted].view(num_batches, self._batch_size)


class FreshStream:
    """Successive batches of rows that nobody has seen before: ``rows(count, generator)``."""

    _BLOCK = 4096
    """Rows are drawn in blocks of about this many, so that they do not depend on who asks when."""

    def __init__(self, rows: RowsFn, batch_size: int, generator: torch.Generator) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._generator = generator
        self._block = max(1, self._BLOCK // batch_size)
        self._left: Batch = ()

    def take(self, num_batches: int) -> Batch:
        """The next batches, every tensor (num_batches, batch_size, ...), on the CPU."""
        chunks = [self._left] if self._left else []
        have = len(self._left[0]) if self._left else 0
        while have < num_batches:
            drawn = self._rows(self._block * self._batch_size, self._generator)
            chunks.append(tuple(t.view(-1, self._batch_size, *t.shape[1:]) for t in drawn))
            have += self._block
        whole = [torch.cat(column) for column in zip(*chunks, strict=True)]
        self._left = tuple(column[num_batches:] for column in whole)
        return tuple(column[:num_batches] for column in whole)


def task_seeds(task: Task) -> tuple[int, int, int]:
    """Seeds of a task's initial weights, batch order and dropout masks.

    Raises:
        ValueError: the task has no seed; `Task.with_seed` gives it one.
    """
    if task.seed is None:
        raise ValueError(f"task {task.name!r} has no seed: use task.with_seed(0) or another number")
    init, order, masks = np.random.SeedSequence(task.seed).generate_state(3)
    return int(init), int(order), int(masks)


def batch_stream(task: Task) -> BatchStream | FreshStream:
    """The task's own order of batches, or its own fresh rows."""
    generator = torch.Generator().manual_seed(task_seeds(task)[1])
    if task.fresh_rows is not None:
        return FreshStream(task.fresh_rows, task.batch_size, generator)
    return BatchStream(task.splits.num_rows("train"), task.batch_size, generator)


def build_model(task: Task) -> nn.Module:
    """The task's model with its own initial weights; torch's global generator is left as it was.

    Lazy modules get their shapes from one forward pass over the first training rows. Gradients of
    embeddings are dense, whatever the model says: they are numbers of one table for all runs.

    Raises:
        ValueError: a lazy module takes no part in the loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task_seeds(task)[0])
        model: Any = task.build_model()
        if isinstance(model, nn.Module):  # else whoever takes it from a user refuses it
            _settle(model, task)
        return model  # type: ignore[no-any-return]


def _settle(model: nn.Module, task: Task) -> None:
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False
    if not _lazy(model):
        return
    rows = (t[: task.batch_size] for t in task.splits.train)
    batch = tuple(_moved(t, torch.device("cpu"), torch.get_default_dtype()) for t in rows)
    with torch.no_grad():
        task.loss(model.eval(), batch)  # training would move the means of BatchNorm
    model.train()
    if _lazy(model):
        raise ValueError(
            f"the loss of task {task.name!r} must use every lazy module, so that it gets its "
            f"shape, but it does not use {', '.join(_lazy(model))}"
        )


def _lazy(model: nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in named if nn.parameter.is_lazy(tensor)]


class BatchSource:
    """Data and order of batches of tasks of one shape with seeds, which are trained together."""

    def __init__(self, tasks: Sequence[Task], *, device: torch.device, dtype: torch.dtype) -> None:
        self._num_tasks, self._batch_size = len(tasks), tasks[0].batch_size
        self._device, self._dtype = device, dtype
        self._streams = [batch_stream(task) for task in tasks]
        self._fresh = isinstance(self._streams[0], FreshStream)
        self._splits = {name: self._stack(tasks, name) for name in SPLITS}
        # A data set that all tasks share is kept once.
        columns = zip(*(task.splits.train for task in tasks), strict=True)
        self._shared = all(t is column[0] for column in columns for t in column)
        train = self._splits["train"]
        self._flat = [c[0] if self._shared else c.flatten(0, 1) for c in train]
        rows = torch.arange(self._num_tasks) * len(train[0][0])
        self._offsets = torch.zeros_like(rows) if self._shared else rows

    def _stack(self, tasks: Sequence[Task], name: SplitName) -> Batch:
        """A split of every task, stacked: (num_tasks, rows, ...)."""
        batches = [getattr(task.splits, name) for task in tasks]

        def stack(tensors: tuple[Tensor, ...]) -> Tensor:
            first = tensors[0]
            if all(t is first for t in tensors):
                moved = _moved(first, self._device, self._dtype)
                return moved[None].expand(len(tensors), *first.shape)
            return _moved(torch.stack(tensors), self._device, self._dtype)

        return tuple(stack(column) for column in zip(*batches, strict=True))

    def split(self, name: SplitName) -> Batch:
        """A whole split, every tensor (num_tasks, rows, ...)."""
        return self._splits[name]

    def load(self, steps: int) -> list[Tensor]:
        """The batches of the next `steps` inner steps, on the device: tensors (steps, ...)."""
        drawn = [stream.take(steps) for stream in self._streams]
        if self._fresh:
            stacked = (torch.stack(column, dim=1) for column in zip(*drawn, strict=True))
            return [_moved(column, self._device, self._dtype) for column in stacked]
        rows = torch.stack([r + o for r, o in zip(drawn, self._offsets, strict=True)], dim=1)
        return [rows.flatten(1).to(self._device)]

    def batch(self, step: Sequence[Tensor]) -> Batch:
        """The batch of a step, (num_tasks, batch_size, ...), from its share of `load`'s tensors."""
        if self._fresh:
            return tuple(step)
        return tuple(
            column.index_select(0, step[0]).view(
                self._num_tasks, self._batch_size, *column.shape[1:]
            )
            for column in self._flat
        )


class PlainData:
    """Batches and splits of one task with a seed, for a plain loop."""

    def __init__(self, task: Task, *, device: torch.device, dtype: torch.dtype) -> None:
        self._task, self._device, self._dtype = task, device, dtype
        self._stream = batch_stream(task)
        self.train = self.split("train")

    def split(self, name: SplitName) -> Batch:
        batch: Batch = getattr(self._task.splits, name)
        return tuple(_moved(t, self._device, self._dtype) for t in batch)

    def next_batch(self) -> Batch:
        if isinstance(self._stream, FreshStream):
            fresh = self._stream.take(1)
            return tuple(_moved(column[0], self._device, self._dtype) for column in fresh)
        rows = self._stream.take(1)[0].to(self._device)
        return tuple(t[rows] for t in self.train)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
