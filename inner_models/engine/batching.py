"""Order of batches and initial state of a run, each from the task's own seed.

Shared by the batched trainer and its plain twin, so that the two see the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.task import Batch, RowsFn, Task


class BatchStream:
    """Row numbers of successive batches: shuffled epochs, laid end to end and cut into batches.

    Args:
        num_rows: rows of the train split.
        batch_size: rows of a batch.
        generator: decides the order.
    """

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
    """Successive batches of an endless data set: rows that nobody has seen before.

    Args:
        rows: ``rows(count, generator)``, fresh rows.
        batch_size: rows of a batch.
        generator: decides the rows.
    """

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
    """The task's model with its own initial weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task_seeds(task)[0])
        return task.build_model()
