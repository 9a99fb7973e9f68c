"""Final losses of the goals' runs as arrays, and how they are compared.

Losses of a task are means over seeds. Two are compared by the log of their ratio; where a loss of
the task is not positive, by their difference over what the default has learned. Intervals come from
resampling tasks, and seeds within them, the same ones for all arms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.metrics import LEAST_GAIN
from pacesetter.experiments.analysis.statistics import Interval, Resamples, fill_diverged
from pacesetter.experiments.goals_baselines import DEFAULT, TUNED
from pacesetter.experiments.goals_records import GoalRun
from pacesetter.inner_models.task import SplitName

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def log_ratio(ours: FloatArray, theirs: FloatArray, scale: FloatArray) -> FloatArray:
    """Compares mean losses over seeds: (..., T, S) each to (..., T).

    Args:
        ours: losses.
        theirs: losses that they are held against.
        scale: zero where the logs are compared; elsewhere what differences are divided by.

    >>> log_ratio(np.array([[2.0, 4.0]]), np.array([[3.0, 3.0]]), np.zeros((1, 2))).tolist()
    [0.0]
    """
    a, b, by = ours.mean(axis=-1), theirs.mean(axis=-1), scale.mean(axis=-1)
    plain = by > 0
    logs = np.log(np.where(plain, 1.0, a)) - np.log(np.where(plain, 1.0, b))
    return np.asarray(np.where(plain, (a - b) / np.where(plain, by, 1.0), logs))


def paired_log_ratio(ours: FloatArray, theirs: FloatArray, scale: FloatArray) -> FloatArray:
    """As `log_ratio`, but run by run: (..., T, S) to (..., T, S)."""
    return log_ratio(ours[..., None], theirs[..., None], scale[..., None])


def normalised(
    ours: FloatArray, default: FloatArray, tuned: FloatArray, learned: FloatArray
) -> FloatArray:
    """(default - ours) / (default - tuned) of mean losses: (..., T, S) each to (..., T).

    Args:
        ours: losses.
        default: losses of what is called zero.
        tuned: losses of what is called one.
        learned: what a gain is a share of. A resample in which tuning gains next to nothing would
            divide by noise: the gain is taken to be at least `LEAST_GAIN` of this.
    """
    zero, one = default.mean(axis=-1), tuned.mean(axis=-1)
    gain = np.maximum(zero - one, LEAST_GAIN * learned.mean(axis=-1))
    return np.asarray((zero - ours.mean(axis=-1)) / gain)


class Losses:
    """Final losses on one split, by arm and start.

    Args:
        runs: one for each arm, start, task and seed.
        split: which.
        seed: of the resamples.

    Attributes:
        tasks: their names.
        scale: (num_tasks, num_seeds), as `log_ratio` wants it.
        learned: (num_tasks, num_seeds), what gains are shares of: the default's loss, or, where a
            loss is not positive, what the default has learned.
        gain: (num_tasks,), share of it that tuning gains.
        counts: (num_tasks,), whether that is enough for a normalised score.

    Raises:
        ValueError: a run is missing.
    """

    def __init__(self, runs: Sequence[GoalRun], split: SplitName, *, seed: int = 0) -> None:
        self.tasks = tuple(dict.fromkeys(r.task for r in runs))
        seeds = tuple(dict.fromkeys(r.seed for r in runs))
        arms = list(dict.fromkeys((r.arm, r.start_lr) for r in runs))
        table = {(r.arm, r.start_lr, r.task, r.seed): r for r in runs}
        if len(table) != len(arms) * len(self.tasks) * len(seeds):
            raise ValueError(
                f"need a run for each of {len(arms)} arms, {len(self.tasks)} tasks and "
                f"{len(seeds)} seeds, but got {len(table)}"
            )
        grid = [[[table[(*arm, t, s)] for s in seeds] for t in self.tasks] for arm in arms]

        def array(number: Callable[[GoalRun], float]) -> FloatArray:
            return np.array([[[number(r) for r in row] for row in rows] for rows in grid])

        raw = array(lambda r: r.losses[split])
        untrained = array(lambda r: r.untrained)[0]
        filled = fill_diverged(raw, untrained=untrained.mean(axis=-1))
        self._places = {arm: i for i, arm in enumerate(arms)}
        self._filled = filled
        self._lost = ~np.isfinite(raw)
        self._seconds = array(lambda r: r.wall_seconds / r.steps)
        self._seed = seed
        positive = ((filled > 0).all(axis=(0, 2)) & (untrained > 0).all(axis=-1))[:, None]
        default = self.of(DEFAULT)
        learned = np.maximum(untrained - default, np.finfo(np.float64).tiny)
        self.scale = np.where(positive, 0.0, learned.mean(axis=-1, keepdims=True))
        self.scale = np.broadcast_to(self.scale, default.shape)
        self.learned = np.where(positive, default, learned)
        gains = (default - self.of(TUNED)).mean(axis=-1)
        self.gain = gains / self.learned.mean(axis=-1)
        self.counts = self.gain >= LEAST_GAIN

    def of(self, arm: str, start: float | None = None) -> FloatArray:
        """Losses of an arm, (num_tasks, num_seeds); those of runs that diverged are filled in."""
        return np.asarray(self._filled[self._places[arm, start]])

    def lost(self, arm: str, start: float | None = None) -> BoolArray:
        """Which runs of an arm diverged, (num_tasks, num_seeds)."""
        return np.asarray(self._lost[self._places[arm, start]])

    def seconds(self, arm: str, start: float | None = None) -> FloatArray:
        """Time per inner step and run, (num_tasks, num_seeds)."""
        return np.asarray(self._seconds[self._places[arm, start]])

    def against(
        self, arm: str, rival: str, start: float | None, other: float | None = None
    ) -> FloatArray:
        """`log_ratio` of an arm from a start to a rival from another, (num_tasks,)."""
        return log_ratio(self.of(arm, start), self.of(rival, other), self.scale)

    def scores(self, arm: str, start: float | None = None) -> FloatArray:
        """Normalised scores, (num_tasks,); NaN for tasks that do not count."""
        found = normalised(self.of(arm, start), self.of(DEFAULT), self.of(TUNED), self.learned)
        return np.where(self.counts, found, np.nan)

    def interval(
        self,
        statistic: Callable[..., FloatArray],
        *arrays: FloatArray,
        rows: BoolArray | None = None,
    ) -> Interval | None:
        """A statistic of arrays with its interval.

        Args:
            statistic: from arrays (..., T, S) to (...,).
            arrays: (num_tasks, num_seeds) each, resampled together.
            rows: (num_tasks,), the tasks that count; None: all. Where none does, neither is there
                an interval.
        """
        kept = [a if rows is None else a[rows] for a in arrays]
        if not len(kept[0]):
            return None
        draws = Resamples.draw(*kept[0].shape, generator=np.random.default_rng(self._seed))
        samples = statistic(*(draws.of(a) for a in kept))
        return draws.around(float(statistic(*kept)), samples)
