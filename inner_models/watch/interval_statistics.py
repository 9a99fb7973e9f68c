"""What an interval of training looked like: the summary of what its steps have left.

A pure function of two tables, shared by all that gather them: the signals of the trainer's many
runs, of a job on a device, and of a job on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Reduce = Callable[[FloatArray], FloatArray]
"""Takes a table of any shape and returns one like it: the mean over all processes of a job."""

ABSURD = {torch.float64: 1e150, torch.float32: 1e15}
"""Beyond this a number counts as infinite: its square, summed over an interval, would be."""
NO_GRADIENT = -1.0
"""Stands for the gradient norm of a step that had none."""
WINDOW_SUMS = 7
"""Numbers that one step of a window leaves; see `TrainingSignals.record_window`."""


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

    Returns:
        The statistics.
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
            nonfinite_share=(~(sane & sound)).sum(0) / steps,
            cos_momentum=_mean(np.clip(cos_momentum, -1, 1), aimed),
            cos_update=_mean(np.clip(cos_update, -1, 1), aimed),
            update_norm=_mean(update_norm, aimed),
            param_norm=_mean(np.nan_to_num(np.sqrt(param_sq)), every),
            norm_running=running.copy(),
            losses=losses.copy(),
            norms=np.where(no_gradient, np.nan, norms),
        )


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
