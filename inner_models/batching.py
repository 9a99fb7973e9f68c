"""Order of batches and initial state of a run, each from the task's own seed.

Shared by the batched trainer and its plain twin, so that the two see the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.task import Task


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


def task_seeds(task: Task) -> tuple[int, int, int]:
    """Seeds of a task's initial weights, batch order and dropout masks.

    Raises:
        ValueError: the task has no seed; `Task.with_seed` gives it one.
    """
    if task.seed is None:
        raise ValueError(f"task {task.name!r} has no seed: use task.with_seed(0) or another number")
    init, order, masks = np.random.SeedSequence(task.seed).generate_state(3)
    return int(init), int(order), int(masks)


def batch_stream(task: Task) -> BatchStream:
    """The task's own order of batches."""
    generator = torch.Generator().manual_seed(task_seeds(task)[1])
    return BatchStream(task.splits.num_rows("train"), task.batch_size, generator)


def build_model(task: Task) -> nn.Module:
    """The task's model with its own initial weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task_seeds(task)[0])
        return task.build_model()
