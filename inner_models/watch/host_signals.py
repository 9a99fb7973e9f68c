"""`TrainingSignals` for one run whose gradients live in host memory, in plain Python numbers.

There a norm can be read for free, and a float costs a hundredth of a tensor: what a step leaves is
written into two arrays, and the summary is made by the same function as on a device.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pacesetter.inner_models.watch.signals import (
    ABSURD,
    COUNTED_AT_MOST,
    NO_GRADIENT,
    NORM_RATE,
    WINDOW_SUMS,
    IntervalStatistics,
    Reduce,
    summarise,
)

_ABSURD = ABSURD[torch.float64]
_UNKNOWN = (math.nan,) * (WINDOW_SUMS - 2)


class HostSignals:
    """Statistics of one run; see `TrainingSignals` for what its methods mean."""

    def __init__(self) -> None:
        self._norm_mean, self._norm_count = 0.0, 0
        self._norm, self._threshold = NO_GRADIENT, math.inf
        self._rows, self._window = array("d"), array("d")

    def record_gradient(self, norm: float, clip_ratio: float) -> tuple[float, float, bool]:
        """Takes in the norm of one step's gradient.

        Args:
            norm: of the whole gradient before clipping, or NO_GRADIENT.
            clip_ratio: clip threshold over the running mean of earlier norms.

        Returns:
            The factor for the gradient, the threshold, and whether the norm is finite.
        """
        mean, count = self._norm_mean, self._norm_count
        base = mean if count else math.inf
        threshold = base * clip_ratio
        self._norm, self._threshold = norm, threshold
        if not 0 < norm < _ABSURD:
            return 1.0, threshold, norm < _ABSURD
        self._norm_count = count + 1
        rate = max(1 / (count + 1), NORM_RATE)
        self._norm_mean = mean + rate * (min(norm, COUNTED_AT_MOST * base) - mean)
        return (threshold / norm if threshold < norm else 1.0), threshold, True

    def record_loss(self, loss: float) -> None:
        """Takes in one step's loss and closes the step."""
        self._rows.extend((loss, self._norm, self._threshold))
        self._norm, self._threshold = NO_GRADIENT, math.inf

    def record_window(
        self, *, param_sq: float, grad_sq: float, directions: Sequence[float] | None
    ) -> None:
        """Takes in one step of the window at an interval's end.

        Args:
            param_sq: squared norm of the parameters.
            grad_sq: squared norm of the gradient.
            directions: None while the optimizer has no state; else five numbers.
        """
        self._window.extend((param_sq, grad_sq, *(directions or _UNKNOWN)))

    def fetch(self, reduce: Reduce | None = None) -> IntervalStatistics:
        """The interval's statistics; starts a new one.

        Args:
            reduce: applied to all rows before anything is made of them; see `Reduce`.
        """
        rows = np.array(self._rows).reshape(-1, 3, 1).swapaxes(0, 1)
        window = np.array(self._window).reshape(-1, WINDOW_SUMS, 1)
        self._rows, self._window = array("d"), array("d")
        return summarise(rows, window, running=np.array([self._norm_mean]), reduce=reduce)

    def state_dict(self) -> dict[str, Tensor]:
        """What `TrainingSignals.state_dict` returns: one can go on where the other stopped."""
        rows = torch.tensor([*self._rows, 0.0, self._norm, self._threshold], dtype=torch.float64)
        window = torch.tensor(self._window.tolist(), dtype=torch.float64)
        return {
            "norm_mean": torch.tensor([self._norm_mean], dtype=torch.float64),
            "norm_count": torch.tensor([float(self._norm_count)], dtype=torch.float64),
            "rows": rows.reshape(-1, 3, 1).transpose(0, 1).contiguous(),
            "window": window.reshape(-1, WINDOW_SUMS, 1),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned, or that of a `TrainingSignals` of one run."""
        self._norm_mean = float(state["norm_mean"])
        self._norm_count = int(state["norm_count"])
        *rows, _, self._norm, self._threshold = (
            state["rows"].to("cpu", torch.float64).transpose(0, 1).flatten().tolist()
        )
        self._rows = array("d", rows)
        self._window = array("d", state["window"].to("cpu", torch.float64).flatten().tolist())
