"""The last good state of each of N runs, to go back to when one diverges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RunSnapshot:
    """A copy of tensors whose first dimension is the run, row by row.

    Args:
        tensors: each (num_runs, ...), written in place for as long as they are in use. Their state
            now is every run's first good one.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._live = list(tensors)
        self._kept = [tensor.clone() for tensor in tensors]

    def keep(self, rows: Tensor) -> None:
        """Takes the state of some runs as their last good one.

        Args:
            rows: (num_runs,), boolean, on the tensors' device.
        """
        _copy(self._live, self._kept, rows)

    def restore(self, rows: Tensor) -> None:
        """Puts some runs back; `rows` as for `keep`."""
        _copy(self._kept, self._live, rows)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor], rows: Tensor) -> None:
    for source, target in zip(sources, targets, strict=True):
        mask = rows.view(-1, *[1] * (source.dim() - 1))
        target.copy_(torch.where(mask, source, target))
