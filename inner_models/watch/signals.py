"""Raw statistics of training, gathered on the device and fetched once per decision.

The trainer feeds N runs at once and the plug-in feeds one; both get the same numbers. A step only
writes its loss, gradient norm and clip threshold into a table, and nothing here waits for the
device until `TrainingSignals.fetch`: all that is made of the table is made on the host, by
`summarise`. The one recurrence on the device is the running mean that the next threshold needs.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
Reduce = Callable[[FloatArray], FloatArray]
"""Takes a table of any shape and returns one like it: the mean over all processes of a job."""

ABSURD = {torch.float64: 1e150, torch.float32: 1e15}
"""Beyond this a number counts as infinite: its square, summed over an interval, would be."""
NO_GRADIENT = -1.0
"""Stands for the gradient norm of a step that had none."""
WINDOW_SUMS = 7
"""Numbers that one step of a window leaves; see `TrainingSignals.record_window`."""
COUNTED_AT_MOST = 5.0
"""A gradient norm enters the running mean at most this many times the mean."""
NORM_RATE = 0.02
"""Slowest rate of the running mean of gradient norms, per inner step."""

_FIRST_ROWS = 32
_UNKNOWN = (math.nan,) * (WINDOW_SUMS - 2)


def _no_rows() -> FloatArray:
    return np.empty((0, 0))


@dataclass(frozen=True)
class IntervalStatistics:
    """Statistics of one interval; float64, and of shape (num_runs,) where nothing else is said.

    Attributes:
        loss_mean: mean training loss over steps where it was finite; NaN if it never was.
        loss_std: its standard deviation within the interval.
        norm_mean: mean gradient norm before clipping; NaN if it was never finite.
        norm_std: its standard deviation within the interval.
        clipped_share: share of steps whose gradient was clipped.
        nonfinite_share: share of steps with a loss or gradient norm that was not finite.
        cos_momentum: mean cosine of gradient and momentum at the interval's end; NaN if unknown.
        cos_update: mean cosine of gradient and previous update (minus its direction), the
            hypergradient: positive means that the last step was too short (Baydin et al. 2018).
        update_norm: mean norm of an update, before weight decay; NaN if unknown.
        param_norm: mean norm of all parameters.
        norm_running: running mean of gradient norms at the interval's end, which the clip
            threshold is a multiple of; 0 while there is none.
        losses: (steps, num_runs), the training loss of every step as it came, finite or not.
        norms: (steps, num_runs), the gradient norm of every step before clipping, finite or not;
            NaN where a step had no gradient, which does not count as broken.
        broken: (steps, num_runs), whether the loss or gradient norm was not finite.
    """

    loss_mean: FloatArray
    loss_std: FloatArray
    norm_mean: FloatArray
    norm_std: FloatArray
    clipped_share: FloatArray
    nonfinite_share: FloatArray
    cos_momentum: FloatArray
    cos_update: FloatArray
    update_norm: FloatArray
    param_norm: FloatArray
    norm_running: FloatArray
    losses: FloatArray = field(default_factory=_no_rows)
    norms: FloatArray = field(default_factory=_no_rows)
    broken: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), dtype=bool))


def summarise(
    rows: FloatArray,
    window: FloatArray,
    *,
    running: FloatArray,
    absurd: float = ABSURD[torch.float64],
    reduce: Reduce | None = None,
) -> IntervalStatistics:
    """Makes the statistics of an interval from what its steps have left.

    Args:
        rows: (3, steps, num_runs): losses, gradient norms and clip thresholds.
        window: (steps of the window, WINDOW_SUMS, num_runs).
        running: (num_runs,), running mean of gradient norms at the end.
        absurd: beyond this a number counts as infinite.
        reduce: applied to both tables, as one, before anything is made of them.
    """
    if reduce is not None:
        shapes = rows.shape, window.shape
        reduced = reduce(np.concatenate((rows.reshape(-1), window.reshape(-1))))
        rows, window = reduced[: rows.size].reshape(shapes[0]), reduced[rows.size :]
        window = window.reshape(shapes[1])
    losses, norms, thresholds = rows
    steps = max(len(losses), 1)
    with np.errstate(all="ignore"):
        no_gradient = norms == NO_GRADIENT
        sound = norms < absurd
        known = sound & ~no_gradient
        sane = np.abs(losses) < absurd
        broken = ~(sane & sound)
        loss_mean, loss_std = _moments(losses, sane)
        norm_mean, norm_std = _moments(norms, known)
        param_sq, grad_sq, grad_momentum, momentum_sq, grad_update, update_sq, update_norm = (
            window.swapaxes(0, 1)
        )
        cos_momentum = grad_momentum / np.sqrt(grad_sq * momentum_sq)
        cos_update = grad_update / np.sqrt(grad_sq * update_sq)
        # A zero or broken gradient has no direction: the step does not count.
        aimed = np.isfinite(cos_momentum) & np.isfinite(cos_update) & np.isfinite(update_norm)
        every = np.ones_like(aimed)
        return IntervalStatistics(
            loss_mean=loss_mean,
            loss_std=loss_std,
            norm_mean=norm_mean,
            norm_std=norm_std,
            clipped_share=(known & (norms > thresholds)).sum(0) / steps,
            nonfinite_share=broken.sum(0) / steps,
            cos_momentum=_mean(np.clip(cos_momentum, -1, 1), aimed),
            cos_update=_mean(np.clip(cos_update, -1, 1), aimed),
            update_norm=_mean(update_norm, aimed),
            param_norm=_mean(np.nan_to_num(np.sqrt(param_sq)), every),
            norm_running=running.copy(),
            losses=losses.copy(),
            norms=np.where(no_gradient, np.nan, norms),
            broken=broken,
        )


def window_length(interval: int) -> int:
    """Number of steps at an interval's end in which directions are compared.

    >>> [window_length(n) for n in (1, 5, 12, 1000)]
    [1, 1, 2, 4]
    """
    return max(1, min(4, interval // 5))


class TrainingSignals:
    """Statistics of runs on one device, in tables of float64 where the device has it."""

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
        self._steps = self._window_steps = self._announced = 0
        self._reserve(_FIRST_ROWS, window_length(_FIRST_ROWS) + 1)

    def begin_interval(self, steps: int) -> bool:
        """Makes room for an interval, so that its steps can be recorded and replayed as graphs.

        Without it the room grows as steps come in, which a replayed graph would not notice. Returns
        whether tables have moved: graphs that were recorded before are of no use then.
        """
        self._announced = steps
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
        """Copies the interval's rows, reduced, to the host at once; starts a new interval."""
        steps, width = max(self._steps, self._announced), self._norm_mean.shape[0]
        window_steps = max(self._window_steps, window_length(self._announced))
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
        self._steps = self._window_steps = self._announced = 0

    def _reserve(self, steps: int, window_steps: int) -> bool:
        """Sees to it that the tables are as long as that; returns whether they had to move."""
        have, have_window = self._rows.shape[1], len(self._window)
        # Twice what is asked for: the next interval may be longer, and moving is expensive.
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


class HostSignals:
    """`TrainingSignals` of one run whose gradients are in host memory, in plain Python numbers.

    There a norm can be read for free, and a float costs a hundredth of a tensor.
    """

    def __init__(self) -> None:
        self._norm_mean, self._norm_count = 0.0, 0
        self._norm, self._threshold = NO_GRADIENT, math.inf
        self._rows, self._window = array("d"), array("d")

    def record_gradient(self, norm: float, clip_ratio: float) -> tuple[float, float, bool]:
        mean, count = self._norm_mean, self._norm_count
        base = mean if count else math.inf
        threshold = base * clip_ratio
        self._norm, self._threshold = norm, threshold
        if not 0 < norm < ABSURD[torch.float64]:
            return 1.0, threshold, norm < ABSURD[torch.float64]
        self._norm_count = count + 1
        rate = max(1 / (count + 1), NORM_RATE)
        self._norm_mean = mean + rate * (min(norm, COUNTED_AT_MOST * base) - mean)
        return (threshold / norm if threshold < norm else 1.0), threshold, True

    def record_loss(self, loss: float) -> None:
        self._rows.extend((loss, self._norm, self._threshold))
        self._norm, self._threshold = NO_GRADIENT, math.inf

    def record_window(
        self, *, param_sq: float, grad_sq: float, directions: Sequence[float] | None
    ) -> None:
        self._window.extend((param_sq, grad_sq, *(directions or _UNKNOWN)))

    def fetch(self, reduce: Reduce | None = None) -> IntervalStatistics:
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


def _mean(values: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """Mean over the steps where a value is known: (steps, num_runs) -> (num_runs,)."""
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _moments(values: FloatArray, known: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over the steps where a value is known."""
    if not len(values):
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    # Relative to the first: values that are all the same, however large, have no spread at all,
    # and those that have a large constant part do not lose theirs.
    first = values[known.argmax(0), np.arange(values.shape[1])]
    shifted = np.where(known, values - first, 0.0)
    mean = _mean(shifted, known)
    return first + mean, np.sqrt(_mean(np.square(shifted - mean), known))
