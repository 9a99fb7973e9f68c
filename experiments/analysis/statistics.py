"""Statistics of comparisons: paired differences, robust means, bootstrap intervals.

Functions of arrays. A loss is compared through `comparable`, on whose scale differences mean
the same on every task. An interval comes from resampling: seeds within each task, so that it
speaks of these tasks and of other seeds; or tasks too, so that it speaks of other tasks like these
(what a comparison reports). Ends are percentiles, as in rliable (Agarwal et al. 2021,
arXiv:2108.13264); with as few as five tasks or seeds such intervals are somewhat too short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Statistic = Callable[[FloatArray], FloatArray]
"""From (..., num_tasks, num_seeds) to (...,)."""

NUM_RESAMPLES = 10_000
"""Bootstrap resamples behind an interval."""
CONFIDENCE = 0.95
"""Coverage of intervals."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, all in the unit of the values.

    Attributes:
        estimate: the statistic of the values themselves.
        low: lower end; minus infinity where a single run cannot say.
        high: upper end; infinity where a single run cannot say.
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


def fill_diverged(losses: FloatArray, *, untrained: FloatArray) -> FloatArray:
    """Gives runs that diverged a loss: they have learned nothing, and are not left out.

    It is the worst loss that any arm had on the task, or that of the untrained model, whichever is
    greater.

    Args:
        losses: (num_arms, num_tasks, num_seeds); not finite where a run diverged.
        untrained: (num_tasks,), a loss of the task's model before its first step.

    Returns:
        The same shape, finite.

    Raises:
        ValueError: shapes do not fit, or a task's untrained loss is not finite.
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
    return np.where(finite, losses, worst[None, :, None])


def comparable(losses: FloatArray, *, untrained: FloatArray) -> FloatArray:
    """Maps losses to a scale on which differences mean the same on every task.

    Where all losses of a task are positive, their logs: differences are log ratios. Elsewhere
    losses are divided by their standard deviation over all arms and seeds of the task, so that
    nothing takes the log of a negative. What a run that diverged counts as, `fill_diverged` says.

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
    filled = fill_diverged(losses, untrained=untrained)
    finite = np.isfinite(losses)
    values = np.empty_like(filled)
    for t in range(losses.shape[1]):
        if (filled[:, t] > 0).all():
            values[:, t] = np.log(filled[:, t])
        else:
            spread = losses[:, t][finite[:, t]].std() if finite[:, t].any() else 0.0
            values[:, t] = filled[:, t] / (spread if spread > 0 else 1.0)
    return values


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Mean of the middle half along the last axis: a quarter is cut off at either end.

    Args:
        values: (..., n); ``n // 4`` values are cut off at each end.

    Returns:
        (...,).

    >>> float(interquartile_mean(np.array([0.0, 1.0, 3.0, 100.0])))
    2.0
    """
    size = values.shape[-1]
    cut = size // 4
    if not cut:
        return np.asarray(values.mean(axis=-1))
    ordered = np.partition(values, (cut, size - cut - 1), axis=-1)
    return np.asarray(ordered[..., cut : size - cut].mean(axis=-1))


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


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap resamples, drawn once and used for every figure, so that figures agree.

    Runs are paired: seed number s of a task is the same resampled seed for every arm.

    Attributes:
        tasks: (num_resamples, num_tasks), the task in each place.
        seeds: (num_resamples, num_tasks, num_seeds), the seeds of the task in each place.
        over_tasks: whether tasks were resampled; else every task is in its own place.
    """

    tasks: IntArray
    seeds: IntArray
    over_tasks: bool

    @staticmethod
    def draw(
        num_tasks: int,
        num_seeds: int,
        *,
        generator: np.random.Generator,
        over_tasks: bool = True,
        num_resamples: int = NUM_RESAMPLES,
    ) -> Resamples:
        """Draws them: of tasks first, then of seeds within each place.

        Args:
            num_tasks: how many there are, and are drawn.
            num_seeds: how many there are of each task, and are drawn.
            generator: source of the resamples.
            over_tasks: resample tasks with replacement, and seeds within each (two levels); else
                every task is kept once and only its seeds are resampled (stratified).
            num_resamples: how many.
        """
        shape = (num_resamples, num_tasks)
        kept = np.broadcast_to(np.arange(num_tasks), shape)
        tasks = generator.integers(num_tasks, size=shape) if over_tasks else kept
        seeds = generator.integers(num_seeds, size=(*shape, num_seeds))
        return Resamples(tasks, seeds, over_tasks)

    def of(self, values: FloatArray) -> FloatArray:
        """Values of every resample: (num_tasks, num_seeds) to (num_resamples, T, S)."""
        return np.asarray(values[self.tasks[:, :, None], self.seeds])

    @cached_property
    def weights(self) -> FloatArray:
        """Share of each run in each resample, (num_resamples, num_tasks x num_seeds)."""
        count, num_tasks, num_seeds = self.seeds.shape
        size = num_tasks * num_seeds
        places = self.tasks[:, :, None] * num_seeds + self.seeds
        places = places + size * np.arange(count)[:, None, None]
        counts = np.bincount(places.ravel(), minlength=count * size)
        return np.asarray(counts.reshape(count, size) / size)

    def means(self, values: FloatArray) -> FloatArray:
        """Mean over tasks and seeds in every resample: (..., T, S) to (..., num_resamples)."""
        return np.asarray(values.reshape(*values.shape[:-2], -1) @ self.weights.T)

    @property
    def informative(self) -> bool:
        """Whether resamples can differ: of a single run, an interval cannot be had."""
        num_tasks, num_seeds = self.seeds.shape[1:]
        return num_seeds > 1 or (num_tasks > 1 and self.over_tasks)

    def interval(
        self,
        values: FloatArray,
        statistic: Statistic = mean_over_tasks,
        *,
        confidence: float = CONFIDENCE,
    ) -> Interval:
        """A statistic of values with its percentile interval.

        Args:
            values: (num_tasks, num_seeds), one number per run or per pair of runs.
            statistic: of them.
            confidence: coverage, within (0, 1).

        Raises:
            ValueError: `values` has another shape, or holds what is not finite.
        """
        if values.shape != (self.tasks.shape[1], self.seeds.shape[2]) or not values.size:
            raise ValueError(f"need values of shape (num_tasks, num_seeds), but got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("values must be finite; `comparable` says what diverged runs count as")
        samples = self.means(values) if statistic is mean_over_tasks else statistic(self.of(values))
        return self.around(float(statistic(values)), samples, confidence=confidence)

    def around(
        self, estimate: float, samples: FloatArray, *, confidence: float = CONFIDENCE
    ) -> Interval:
        """The percentile interval of a statistic whose resampled values are (num_resamples,)."""
        if not self.informative:
            return Interval(estimate, -np.inf, np.inf)
        tail = (1 - confidence) / 2
        low, high = np.quantile(samples, (tail, 1 - tail))
        return Interval(estimate, float(low), float(high))


def bootstrap_interval(
    values: FloatArray,
    *,
    generator: np.random.Generator,
    statistic: Statistic = mean_over_tasks,
    over_tasks: bool = False,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile bootstrap of one statistic; `Resamples` serves many.

    Args:
        values: (num_tasks, num_seeds), one number per run or per pair of runs.
        generator: source of the resamples.
        statistic: from (..., num_tasks, num_seeds) to (...,).
        over_tasks: resample tasks as well as seeds within them; else seeds within each task.
        num_resamples: how many.
        confidence: coverage, within (0, 1).

    Returns:
        The statistic of `values` with its interval.

    Raises:
        ValueError: `values` has another shape, is empty, or holds what is not finite.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"need values of shape (num_tasks, num_seeds), but got {values.shape}")
    resamples = Resamples.draw(
        *values.shape, generator=generator, over_tasks=over_tasks, num_resamples=num_resamples
    )
    return resamples.interval(values, statistic, confidence=confidence)
