"""Statistics of comparisons: paired differences, robust means, bootstrap intervals.

Pure functions of arrays. A loss is compared through `comparable`, on whose scale differences mean
the same on every task; an interval comes from resampling seeds within each task, so that it speaks
of these tasks and of other seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NUM_RESAMPLES = 10_000
"""Bootstrap resamples behind an interval."""
CONFIDENCE = 0.95
"""Coverage of intervals."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the values.

    Attributes:
        estimate: the statistic of the values themselves.
        low: lower end.
        high: upper end.
    """

    estimate: float
    low: float
    high: float

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def comparable(losses: FloatArray, *, untrained: FloatArray) -> FloatArray:
    """Maps losses to a scale on which differences mean the same on every task.

    Where all losses of a task are positive, their logs: differences are log ratios. Elsewhere
    losses are divided by their standard deviation over all arms and seeds of the task, so that
    nothing takes the log of a negative. A run that diverged counts as the worst loss that any arm
    had on the task or as that of the untrained model, whichever is greater: it has learned nothing.

    Args:
        losses: (num_arms, num_tasks, num_seeds); not finite where a run diverged.
        untrained: (num_tasks,), a loss of the task's model before its first step.

    Returns:
        The same shape, finite.

    Raises:
        ValueError: shapes do not fit, or a task's untrained loss is not finite.

    >>> values = comparable(np.array([[[1.0]], [[2.0]], [[np.nan]]]), untrained=np.array([4.0]))
    >>> (values - values[0]).round(3).ravel().tolist()
    [0.0, 0.693, 1.386]
    """
    if losses.ndim != 3 or untrained.shape != losses.shape[1:2]:
        raise ValueError(
            "need losses of shape (num_arms, num_tasks, num_seeds) and untrained losses of shape "
            f"(num_tasks,), but got {losses.shape} and {untrained.shape}"
        )
    if not np.isfinite(untrained).all():
        raise ValueError(f"untrained losses must be finite, but got {untrained.tolist()}")
    finite = np.isfinite(losses)
    worst = np.maximum(np.where(finite, losses, -np.inf).max(axis=(0, 2)), untrained)
    filled = np.where(finite, losses, worst[None, :, None])
    values = np.empty_like(filled)
    for t in range(losses.shape[1]):
        if (filled[:, t] > 0).all():
            values[:, t] = np.log(filled[:, t])
        else:
            spread = losses[:, t][finite[:, t]].std() if finite[:, t].any() else 0.0
            values[:, t] = filled[:, t] / (spread if spread > 0 else 1.0)
    return values


def paired_log_ratios(losses: FloatArray, reference: FloatArray) -> FloatArray:
    """Log of each loss over that of the reference run with the same task and seed.

    Args:
        losses: (num_tasks, num_seeds), positive.
        reference: the same shape, positive.

    Returns:
        (num_tasks, num_seeds); below zero where the loss is lower than the reference's.

    Raises:
        ValueError: shapes differ, or a loss is not a positive finite number: use `comparable`.

    >>> paired_log_ratios(np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]])).round(3).tolist()
    [[0.0, 0.693]]
    """
    if losses.shape != reference.shape:
        raise ValueError(f"need losses in pairs, but got {losses.shape} and {reference.shape}")
    both = np.stack((losses, reference))
    if not (np.isfinite(both) & (both > 0)).all():
        raise ValueError("log ratios need positive finite losses; `comparable` takes any")
    return np.log(losses) - np.log(reference)


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Mean of the middle half along the last axis: a quarter is cut off at either end.

    Args:
        values: (..., n); ``n // 4`` values are cut off at each end.

    Returns:
        (...,).

    >>> float(interquartile_mean(np.array([0.0, 1.0, 3.0, 100.0])))
    2.0
    """
    ordered = np.sort(values, axis=-1)
    cut = values.shape[-1] // 4
    return np.asarray(ordered[..., cut : values.shape[-1] - cut].mean(axis=-1))


def quantile_band(
    values: FloatArray, *, low: float = 0.25, high: float = 0.75
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Median and a band around it over the first axis; NaN entries are left out.

    Args:
        values: (num_seeds, num_points).
        low: quantile of the lower edge.
        high: quantile of the upper edge.

    Returns:
        Median, lower edge and upper edge, each (num_points,); NaN where no seed has a value.
    """
    table = np.full((3, values.shape[1]), np.nan)
    for point in range(values.shape[1]):
        known = values[:, point][np.isfinite(values[:, point])]
        if len(known):
            table[:, point] = np.quantile(known, (0.5, low, high))
    return table[0], table[1], table[2]


def mean_over_tasks(samples: FloatArray) -> FloatArray:
    """The default statistic: mean over seeds, then over tasks; (..., T, S) to (...,)."""
    return np.asarray(samples.mean(axis=(-2, -1)))


def iqm_over_runs(samples: FloatArray) -> FloatArray:
    """Interquartile mean over all runs (Agarwal et al. 2021); (..., T, S) to (...,)."""
    return interquartile_mean(samples.reshape(*samples.shape[:-2], -1))


def bootstrap_interval(
    values: FloatArray,
    *,
    generator: np.random.Generator,
    statistic: Callable[[FloatArray], FloatArray] = mean_over_tasks,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile bootstrap stratified by task: seeds are resampled within each task.

    With as few as five seeds such intervals are somewhat too short; a claim that hangs on the last
    digit of one needs more seeds.

    Args:
        values: (num_tasks, num_seeds), one number per run or per pair of runs.
        generator: source of the resamples.
        statistic: from (..., num_tasks, num_seeds) to (...,).
        num_resamples: how many.
        confidence: coverage, within (0, 1).

    Returns:
        The statistic of `values` with its interval.

    Raises:
        ValueError: `values` has another shape, is empty, or holds what is not finite.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"need values of shape (num_tasks, num_seeds), but got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; `comparable` says what a diverged run counts as")
    num_tasks, num_seeds = values.shape
    picks = generator.integers(num_seeds, size=(num_resamples, num_tasks, num_seeds))
    samples = statistic(values[np.arange(num_tasks)[None, :, None], picks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Interval(float(statistic(values)), float(low), float(high))
