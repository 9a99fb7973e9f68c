"""Statistics of comparisons: scales, bootstrap intervals, corrected p-values, profiles and ranks.

Pure functions of arrays; a lower value is better wherever losses are meant. The bootstrap resamples
tasks and the seeds within them, for statements on other tasks like these. Interval ends are
percentiles, as in rliable (Agarwal et al. 2021, arXiv:2108.13264); with as few as five tasks or
seeds such intervals are somewhat too short. Ranks follow Demšar 2006 (JMLR 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pacesetter.envs.actions import FloatArray
from pacesetter.inner_models.lookup import require

BoolArray = NDArray[np.bool_]
Statistic = Callable[[FloatArray], FloatArray]
"""From (..., num_tasks, num_seeds) to (...,)."""

NUM_RESAMPLES = 10_000
"""Bootstrap resamples behind an interval."""
CONFIDENCE = 0.95
"""Coverage of intervals."""
TAILS = ((1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2)
"""Quantiles at the ends of an interval."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, infinite where a single run cannot say."""

    estimate: float
    low: float
    high: float


def fill_diverged(losses: FloatArray, *, untrained: FloatArray) -> FloatArray:
    """Replaces losses that are not finite by the worst one, so that no run is left out.

    The worst is that of any arm on the task, or of the untrained model, whichever is greater.
    Losses are (num_arms, num_tasks, num_seeds), `untrained` is (num_tasks,) and finite.
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
    losses are divided by their standard deviation over all arms and seeds of the task. Shapes and
    diverged runs are as in `fill_diverged`.

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
    """Mean of the middle half along the last axis: ``n // 4`` values are cut off at either end.

    >>> float(interquartile_mean(np.array([0.0, 1.0, 3.0, 100.0])))
    2.0
    """
    size = values.shape[-1]
    cut = size // 4
    if not cut:
        return np.asarray(values.mean(axis=-1))
    ordered = np.partition(values, (cut, size - cut - 1), axis=-1)
    return np.asarray(ordered[..., cut : size - cut].mean(axis=-1))


def mean_over_tasks(samples: FloatArray) -> FloatArray:
    """The default statistic: mean over seeds, then over tasks; (..., T, S) to (...,)."""
    return np.asarray(samples.mean(axis=(-2, -1)))


def iqm_over_runs(samples: FloatArray) -> FloatArray:
    """Interquartile mean over all runs (Agarwal et al. 2021); (..., T, S) to (...,)."""
    return interquartile_mean(samples.reshape(*samples.shape[:-2], -1))


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap resamples on two levels, drawn once and used for every number.

    Tasks are drawn with replacement, (num_resamples, num_tasks), and seeds within each,
    (num_resamples, num_tasks, num_seeds). Runs are paired: seed number s of a task is the same
    resampled seed for every arm.
    """

    tasks: NDArray[np.int64]
    seeds: NDArray[np.int64]

    @staticmethod
    def draw(
        num_tasks: int,
        num_seeds: int,
        *,
        generator: np.random.Generator,
        num_resamples: int = NUM_RESAMPLES,
    ) -> Resamples:
        shape = (num_resamples, num_tasks)
        tasks = generator.integers(num_tasks, size=shape)
        return Resamples(tasks, generator.integers(num_seeds, size=(*shape, num_seeds)))

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
        """Whether resamples can differ; a single run has no interval."""
        return math.prod(self.seeds.shape[1:]) > 1

    def interval(self, values: FloatArray, statistic: Statistic = mean_over_tasks) -> Interval:
        """A statistic with its percentile interval, for values (num_tasks, num_seeds)."""
        if values.shape != self.seeds.shape[1:] or not values.size:
            raise ValueError(f"need values of shape (num_tasks, num_seeds), but got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("values must be finite; see `comparable` for runs that diverged")
        samples = self.means(values) if statistic is mean_over_tasks else statistic(self.of(values))
        return self.around(float(statistic(values)), samples)

    def around(self, estimate: float, samples: FloatArray) -> Interval:
        """The percentile interval of a statistic whose resampled values are (num_resamples,)."""
        if not self.informative:
            return Interval(estimate, -np.inf, np.inf)
        low, high = np.quantile(samples, TAILS)
        return Interval(estimate, float(low), float(high))


def share_interval(hits: BoolArray, resamples: Resamples) -> Interval:
    """A share of hits, (num_tasks, num_seeds): the bootstrap's interval, or Wilson's if wider.

    Wilson's ignores that runs of a task are alike; the bootstrap's has no width without any hits.

    >>> draws = Resamples.draw(1, 10, generator=np.random.default_rng(0))
    >>> found = share_interval(np.zeros((1, 10), dtype=bool), draws)
    >>> found.estimate, found.low, round(found.high, 3)
    (0.0, 0.0, 0.278)
    """
    drawn = resamples.interval(hits.astype(np.float64))
    test = require("scipy.stats", extra="compare").binomtest(int(hits.sum()), hits.size)
    wilson = test.proportion_ci(CONFIDENCE, method="wilson")
    low, high = min(drawn.low, wilson.low), max(drawn.high, wilson.high)
    return Interval(drawn.estimate, float(max(low, 0.0)), float(min(high, 1.0)))


def bootstrap_p_value(samples: FloatArray) -> float:
    """Two-sided p-value of zero from bootstrap resamples of a difference, (num_resamples,).

    It is below 1 - confidence where the percentile interval excludes zero, and at least
    2 / (n + 1) with n resamples.

    >>> bootstrap_p_value(np.array([-1.0, -2.0, -1.5]))
    0.5
    """
    tail = min(np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(samples) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of claims made together, corrected for their number (Holm 1979), in their order.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in corrected]


def improvement_probabilities(
    ours: FloatArray, rivals: FloatArray, *, resamples: Resamples
) -> list[Interval]:
    """Chance that a run of ours has a lower loss than a rival's on the same task (rliable).

    Over all pairs of seeds, ties counting half: Mann and Whitney's U over the number of pairs, mean
    over tasks. Ours are (num_tasks, num_seeds), the rivals' (num_rivals, num_tasks, num_seeds);
    both sides are resampled together.
    """
    mine, theirs = ours[None, :, :, None], rivals[:, :, None, :]
    wins = (mine < theirs) + 0.5 * (mine == theirs)
    count, num_tasks, num_seeds = resamples.seeds.shape
    places = resamples.seeds + num_seeds * np.arange(count * num_tasks).reshape(count, -1, 1)
    shares = np.bincount(places.ravel(), minlength=resamples.seeds.size).reshape(-1, num_seeds)
    shares = shares / num_seeds
    drawn = resamples.tasks.ravel()
    chances = np.empty((len(rivals), count * num_tasks))
    for t in range(num_tasks):
        here = shares[drawn == t]
        chances[:, drawn == t] = ((here @ wins[:, t]) * here).sum(axis=-1)
    samples = chances.reshape(len(rivals), count, num_tasks).mean(axis=-1)
    return [
        resamples.around(float(win.mean()), sample)
        for win, sample in zip(wins, samples, strict=True)
    ]


def performance_profile(
    scores: FloatArray, thresholds: FloatArray, *, resamples: Resamples
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Share of runs whose score exceeds each threshold (rliable's run-score distribution).

    Scores are (num_tasks, num_seeds), higher being better. Returns the share and the ends of its
    point-wise 95 % band, as many as thresholds.
    """
    above = (scores[None] > thresholds[:, None, None]).astype(np.float64)
    low, high = np.quantile(resamples.means(above), TAILS, axis=-1)
    return above.mean(axis=(1, 2)), low, high


def mean_ranks(losses: FloatArray) -> FloatArray:
    """Mean over tasks of the rank among arms, the least loss being rank 1; ties share theirs.

    Losses are (num_arms, ..., num_tasks), the result is (num_arms, ...).
    """
    ranks = require("scipy.stats", extra="compare").rankdata(losses, axis=0)
    return np.asarray(ranks.mean(axis=-1))


def friedman_p_value(losses: FloatArray) -> float:
    """Friedman's test that all arms do equally well, of losses (num_arms, num_tasks)."""
    if (losses == losses[:1]).all():
        return 1.0
    return float(require("scipy.stats", extra="compare").friedmanchisquare(*losses).pvalue)


def critical_difference(num_arms: int, num_tasks: int) -> float:
    """Least difference of mean ranks that Nemenyi's test calls one, at 5 % over all pairs.

    >>> round(critical_difference(4, 14), 2)  # the example of Demšar 2006
    1.25
    """
    studentized = require("scipy.stats", extra="compare").studentized_range
    quantile = studentized.ppf(CONFIDENCE, num_arms, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_arms * (num_arms + 1) / (6 * num_tasks)))
