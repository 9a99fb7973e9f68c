"""The data of one run in a plain loop: batches in the order in which the batched runs see them."""

from __future__ import annotations

import torch
from torch import Tensor

from pacesetter.inner_models.engine.batching import FreshStream, batch_stream
from pacesetter.inner_models.task import Batch, SplitName, Task


class PlainData:
    """Batches and splits of one task.

    Args:
        task: with a seed, which decides the order of batches.
        device: where the data live.
        dtype: of what is floating-point.

    Attributes:
        train: the training split.
    """

    def __init__(self, task: Task, *, device: torch.device, dtype: torch.dtype) -> None:
        self._task, self._device, self._dtype = task, device, dtype
        self._stream = batch_stream(task)
        self.train = self.split("train")

    def split(self, name: SplitName) -> Batch:
        """A whole split."""
        batch: Batch = getattr(self._task.splits, name)
        return tuple(self._moved(t) for t in batch)

    def next_batch(self) -> Batch:
        """The batch of the next inner step."""
        if isinstance(self._stream, FreshStream):
            return tuple(self._moved(column[0]) for column in self._stream.take(1))
        rows = self._stream.take(1)[0].to(self._device)
        return tuple(t[rows] for t in self.train)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
