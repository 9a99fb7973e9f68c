"""The raw statistics of training, gathered on the device and fetched once per decision.

The trainer feeds N runs at once and the plug-in feeds one; both get the same numbers. A step only
writes its loss, gradient norm and clip threshold into a table, and nothing here waits for the
device until `TrainingSignals.fetch`: all that is made of the table is made on the host, by
`summarise`. The one recurrence on the device is the running mean that the next threshold needs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pacesetter.inner_models.watch.interval_statistics import (
    ABSURD,
    NO_GRADIENT,
    WINDOW_SUMS,
    FloatArray,
    IntervalStatistics,
    Reduce,
    summarise,
)

__all__ = [
    "COUNTED_AT_MOST",
    "NORM_RATE",
    "NO_GRADIENT",
    "FloatArray",
    "IntervalStatistics",
    "Reduce",
    "TrainingSignals",
    "window_length",
]


COUNTED_AT_MOST = 5.0
"""A gradient norm enters the running mean at most this many times the mean."""
NORM_RATE = 0.02
"""Slowest rate of the running mean of gradient norms, per inner step."""

_FIRST_ROWS = 32


def window_length(interval: int) -> int:
    """Number of steps at an interval's end in which directions are compared.

    >>> [window_length(n) for n in (1, 5, 12, 1000)]
    [1, 1, 2, 4]
    """
    return max(1, min(4, interval // 5))


class TrainingSignals:
    """Statistics of `num_runs` runs on one device.

    Args:
        num_runs: how many runs are watched.
        device: where losses and gradients live.
        dtype: of the tables; float64 where the device has it.
    """

    def __init__(
        self, num_runs: int, *, device: torch.device | str, dtype: torch.dtype = torch.float64
    ) -> None:
        self._dtype, self._absurd = dtype, ABSURD[dtype]
        self._norm_mean = torch.zeros(num_runs, device=device, dtype=dtype)
        self._norm_count = torch.zeros(num_runs, device=device, dtype=dtype)
        # Rows are counted on the device, where a replayed graph counts too, and on the host, where
        # looking costs nothing; what a replay hides from the host is what `begin_interval` told.
        self._row = torch.zeros(1, device=device, dtype=torch.int64)
        self._window_row = torch.zeros(1, device=device, dtype=torch.int64)
        self._rows = self._norm_mean.new_empty(3, 0, num_runs)
        self._window = self._norm_mean.new_empty(0, WINDOW_SUMS, num_runs)
        self._steps = self._window_steps = self._told = 0
        self._reserve(_FIRST_ROWS, window_length(_FIRST_ROWS) + 1)

    def begin_interval(self, steps: int) -> bool:
        """Makes room for an interval, so that its steps can be recorded and replayed as graphs.

        Without it the room grows as steps come in, which a replayed graph would not notice.

        Args:
            steps: of the interval that begins.

        Returns:
            Whether tables have moved: graphs that were recorded before are of no use then.
        """
        self._told = steps
        return self._reserve(steps + 1, window_length(steps) + 1)

    def record_gradient(self, norm: Tensor, clip_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes in one step's gradient norms and says how to clip.

        The threshold is `clip_ratio` times the running mean of earlier norms; the first step of a
        run is not clipped.

        Args:
            norm: (num_runs,), norm of the whole gradient before clipping; NO_GRADIENT where an
                update is left out for a reason that is no fault of the run's.
            clip_ratio: (num_runs,).

        Returns:
            Three tensors of shape (num_runs,): the factor for the gradients (1 where nothing is
            clipped), the threshold (infinite where there is none), and whether the norm is finite.
        """
        norm = norm.to(self._dtype)
        finite = norm < self._absurd
        # A gradient of zero says nothing about scale: counted, it would make the next threshold
        # zero, and so every later gradient.
        known = finite & (norm > 0)
        base = torch.where(self._norm_count > 0, self._norm_mean, torch.inf)
        threshold = base * clip_ratio
        scale = torch.where(known, (threshold / norm).clamp(max=1.0), 1.0)
        self._norm_count += known
        rate = self._norm_count.reciprocal().clamp(min=NORM_RATE)
        change = rate * (torch.minimum(norm, COUNTED_AT_MOST * base) - self._norm_mean)
        self._norm_mean += torch.where(known, change, 0.0)
        self._rows[1].index_copy_(0, self._row, norm[None])
        self._rows[2].index_copy_(0, self._row, threshold[None])
        return scale, threshold, finite

    def record_loss(self, loss: Tensor) -> None:
        """Takes in one step's losses, shape (num_runs,), and closes the step."""
        self._rows[0].index_copy_(0, self._row, loss.to(self._dtype)[None])
        self._row += 1
        self._steps += 1
        if self._steps >= self._rows.shape[1]:
            self._reserve(self._steps + 1, 0)

    def record_window(
        self,
        *,
        param_sq: Tensor,
        grad_sq: Tensor,
        directions: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None,
    ) -> None:
        """Takes in one step of the window at an interval's end.

        Args:
            param_sq: (num_runs,), squared norm of the parameters.
            grad_sq: (num_runs,), squared norm of the gradient.
            directions: None while the optimizer has no state; else five (num_runs,) tensors:
                <gradient, momentum>, |momentum|^2, <gradient, u>, |u|^2 and |lr u|, where ``-lr u``
                is the previous update before weight decay.
        """
        found = directions or (torch.full_like(self._norm_mean, torch.nan),) * (WINDOW_SUMS - 2)
        row = torch.stack([t.to(self._dtype) for t in (param_sq, grad_sq, *found)])
        self._window.index_copy_(0, self._window_row, row[None])
        self._window_row += 1
        self._window_steps += 1
        if self._window_steps >= len(self._window):
            self._reserve(0, self._window_steps + 1)

    def fetch(self, reduce: Reduce | None = None) -> IntervalStatistics:
        """Copies the interval's rows to the host, in one transfer, and starts a new interval.

        Args:
            reduce: applied to all rows before anything is made of them; see `Reduce`.
        """
        steps, width = max(self._steps, self._told), self._norm_mean.shape[0]
        window_steps = max(self._window_steps, window_length(self._told))
        packed = torch.cat(
            (
                self._norm_mean[None],
                torch.cat((self._row, self._window_row)).to(self._dtype)[:, None].expand(2, width),
                self._rows[:, :steps].reshape(-1, width),
                self._window[:window_steps].reshape(-1, width),
            )
        )
        table = packed.to("cpu", torch.float64).numpy()
        counts = table[1:3, 0].astype(np.int64)
        rows = table[3 : 3 + 3 * steps].reshape(3, steps, width)[:, : counts[0]]
        window = table[3 + 3 * steps :].reshape(-1, WINDOW_SUMS, width)[: counts[1]]
        self._clear()
        return summarise(rows, window, running=table[0], absurd=self._absurd, reduce=reduce)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on in the middle of an interval. Waits for the device."""
        return {
            "norm_mean": self._norm_mean.clone(),
            "norm_count": self._norm_count.clone(),
            # The last row is that of the step which has its gradient, perhaps, but no loss yet.
            "rows": self._rows[:, : int(self._row) + 1].clone(),
            "window": self._window[: int(self._window_row)].clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned; shapes must agree."""
        self._clear()
        self._norm_mean.copy_(state["norm_mean"])
        self._norm_count.copy_(state["norm_count"])
        rows, window = state["rows"], state["window"]
        self._reserve(rows.shape[1] + 1, len(window) + 1)
        self._rows[:, : rows.shape[1]].copy_(rows)
        self._window[: len(window)].copy_(window)
        self._steps, self._window_steps = rows.shape[1] - 1, len(window)
        self._row.fill_(self._steps)
        self._window_row.fill_(self._window_steps)

    def _clear(self) -> None:
        self._row.zero_()
        self._window_row.zero_()
        self._blank(self._rows)
        self._steps = self._window_steps = self._told = 0

    def _reserve(self, steps: int, window_steps: int) -> bool:
        """Sees to it that the tables are as long as that; returns whether they had to move."""
        have, have_window = self._rows.shape[1], len(self._window)
        # Twice what is asked for: the next interval may be longer, and moving is dear.
        if steps > have:
            rows = self._rows.new_empty(3, 2 * steps, self._rows.shape[2])
            self._blank(rows)
            rows[:, :have] = self._rows
            self._rows = rows
        if window_steps > have_window:
            window = self._window.new_zeros(2 * window_steps, *self._window.shape[1:])
            window[:have_window] = self._window
            self._window = window
        return steps > have or window_steps > have_window

    @staticmethod
    def _blank(rows: Tensor) -> None:
        """Makes rows those of steps that had no gradient."""
        rows[0].zero_()
        rows[1].fill_(NO_GRADIENT)
        rows[2].fill_(torch.inf)
