"""Batches of N runs: the data stay on the device, and a batch is an index into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pacesetter.inner_models.engine.batching import FreshStream, batch_stream
from pacesetter.inner_models.task import SPLITS, Batch, SplitName, Task


class BatchSource:
    """Data and order of batches of tasks that are trained together.

    Args:
        tasks: tasks of one shape, each with a seed.
        device: where the data live.
        dtype: of floating-point data.
    """

    def __init__(self, tasks: Sequence[Task], *, device: torch.device, dtype: torch.dtype) -> None:
        self._num_tasks = len(tasks)
        self._batch_size = tasks[0].batch_size
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
                return self._moved(first)[None].expand(len(tensors), *first.shape)
            return self._moved(torch.stack(tensors))

        return tuple(stack(column) for column in zip(*batches, strict=True))

    def _moved(self, tensor: Tensor) -> Tensor:
        kind = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, kind)

    def split(self, name: SplitName) -> Batch:
        """A whole split, every tensor (num_tasks, rows, ...)."""
        return self._splits[name]

    def load(self, steps: int) -> list[Tensor]:
        """Draws the batches of the next `steps` inner steps and puts them on the device.

        Returns:
            What `batch` takes its share of: tensors whose first dimension is the step.
        """
        drawn = [stream.take(steps) for stream in self._streams]
        if self._fresh:
            columns = zip(*drawn, strict=True)
            return [self._moved(torch.stack(column, dim=1)) for column in columns]
        rows = torch.stack([r + o for r, o in zip(drawn, self._offsets, strict=True)], dim=1)
        return [rows.flatten(1).to(self._device)]

    def batch(self, step: Sequence[Tensor]) -> Batch:
        """The batch of one step, every tensor (num_tasks, batch_size, ...).

        Args:
            step: one step's slice of each tensor that `load` returned.
        """
        if self._fresh:
            return tuple(step)
        return tuple(
            column.index_select(0, step[0]).view(
                self._num_tasks, self._batch_size, *column.shape[1:]
            )
            for column in self._flat
        )
