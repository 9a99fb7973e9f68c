"""The last state of each of N runs that has proved good, to go back to when one diverges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RunSnapshot:
    """Two copies of tensors whose first dimension is the run, row by row.

    A loss is that of the weights before its update: what the latest update did is not known yet. So
    a state is kept as a candidate, and is gone back to only when the next interval was good too.

    Args:
        tensors: each (num_runs, ...), written in place for as long as they are in use. Their state
            now, untrained, is good enough to go back to.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._live = list(tensors)
        self._good = [tensor.clone() for tensor in tensors]
        self._candidate = [tensor.clone() for tensor in tensors]

    def keep(self, rows: Tensor) -> None:
        """Takes the state of some runs as candidates, and their last candidates as good.

        Args:
            rows: (num_runs,), boolean, on the tensors' device.
        """
        _copy(self._candidate, self._good, rows)
        _copy(self._live, self._candidate, rows)

    def distrust(self, rows: Tensor) -> None:
        """Drops the candidates of some runs: what came after them was not good."""
        _copy(self._good, self._candidate, rows)

    def restore(self, rows: Tensor) -> None:
        """Puts some runs back to their last good state."""
        _copy(self._good, self._live, rows)
        self.distrust(rows)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    for source, target in zip(sources, targets, strict=True):
        mask = rows.view(-1, *[1] * (source.dim() - 1))
        target.copy_(torch.where(mask, source, target))
