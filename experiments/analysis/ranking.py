"""How arms stand to each other: corrected p-values, chances to win, profiles, ranks.

Pure functions of arrays; lower is better wherever losses are meant. What `scipy.stats` has is taken
from there; the rest follows the formulas of rliable (Agarwal et al. 2021, arXiv:2108.13264) and of
Demšar 2006 (JMLR 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.statistics import CONFIDENCE, Interval, Resamples
from pacesetter.inner_models.lookup import require

FloatArray = NDArray[np.float64]


def bootstrap_p_value(samples: FloatArray) -> float:
    """Two-sided p-value of 'zero' from bootstrap resamples of a difference.

    It falls below 1 - confidence where the percentile interval excludes zero, and never to zero: n
    resamples cannot show less than 2 / (n + 1).

    Args:
        samples: (num_resamples,).

    >>> bootstrap_p_value(np.array([-1.0, -2.0, -1.5]))
    0.5
    """
    tail = min(np.count_nonzero(samples <= 0), np.count_nonzero(samples >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(samples) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for how many there are (Holm 1979); each stays in its place.

    Args:
        p_values: of the claims that are made together.

    Returns:
        Corrected ones: below 0.05 for as many claims as may be made at a 5 % chance of any being
        wrong.

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
    over tasks. An interval that holds 0.5 says nothing.

    Args:
        ours: (num_tasks, num_seeds), losses.
        rivals: (num_rivals, num_tasks, num_seeds), losses.
        resamples: of tasks and seeds; both sides are resampled together.
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

    Args:
        scores: (num_tasks, num_seeds), higher is better.
        thresholds: (n,).
        resamples: of tasks and seeds.

    Returns:
        The share and the ends of its point-wise 95 % band, each (n,).
    """
    above = (scores[None] > thresholds[:, None, None]).astype(np.float64)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resamples.means(above), (tail, 1 - tail), axis=-1)
    return above.mean(axis=(1, 2)), low, high


def mean_ranks(losses: FloatArray) -> FloatArray:
    """Mean over tasks of the rank among arms, the least loss being rank 1; ties share theirs.

    Args:
        losses: (num_arms, ..., num_tasks), one number per arm and task.

    Returns:
        (num_arms, ...).
    """
    ranks = require("scipy.stats", extra="compare").rankdata(losses, axis=0)
    return np.asarray(ranks.mean(axis=-1))


def friedman_p_value(losses: FloatArray) -> float:
    """Friedman's test that all arms do equally well, from `scipy.stats.friedmanchisquare`.

    Args:
        losses: (num_arms, num_tasks), three arms or more.
    """
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


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """The bars of a critical-difference diagram: largest groups that do not differ.

    Args:
        ranks: mean rank of each arm.
        difference: the critical one.

    Returns:
        Indices of arms by rank, two or more in each group.

    >>> cliques([1.0, 3.0, 1.5, 2.4], 1.0)
    [(0, 2), (2, 3), (3, 1)]
    """
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    found: list[tuple[int, ...]] = []
    reach = 0
    for first in range(len(order)):
        end = first
        while end < len(order) and ranks[order[end]] - ranks[order[first]] < difference:
            end += 1
        if end > reach and end - first > 1:
            found.append(tuple(order[first:end]))
        reach = max(reach, end)
    return found
