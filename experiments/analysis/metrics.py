"""What is measured of runs: arrays over arms, tasks and seeds, made from records.

Pure computation, a function per metric. Losses may be negative: nothing takes the log of one here.
Runs that diverged or never got to the target are kept and counted as failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.statistics import fill_diverged
from pacesetter.experiments.runs.records import Entry, RunRecord
from pacesetter.inner_models.task import SplitName

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

TUNED_FAMILY = "adamw-"
"""Arms whose names begin so define the best tuned AdamW."""
LEAST_GAIN = 0.02
"""Tasks where tuning gains less do not count in normalised scores: they would divide by noise."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Grid:
    """Records in order: one for each arm, task and seed.

    Attributes:
        records: of finished or crashed runs, one for each.
        entries: arms, starts and budgets, as the records come.
        tasks: names, as the records come.
        seeds: as the records come.

    Raises:
        ValueError: a run is missing or there twice.
    """

    records: Sequence[RunRecord]
    entries: tuple[Entry, ...] = field(init=False)
    tasks: tuple[str, ...] = field(init=False)
    seeds: tuple[int, ...] = field(init=False)
    _table: dict[tuple[Entry, str, int], RunRecord] = field(init=False, repr=False)
    _horizons: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "entries", tuple(dict.fromkeys(r.entry for r in self.records)))
        put(self, "tasks", tuple(dict.fromkeys(r.task for r in self.records)))
        put(self, "seeds", tuple(dict.fromkeys(r.seed for r in self.records)))
        put(self, "_table", {(r.entry, r.task, r.seed): r for r in self.records})
        shape = (len(self.entries), len(self.tasks), len(self.seeds))
        if len(self._table) != len(self.records) or len(self._table) != math.prod(shape):
            raise ValueError(
                f"need one run for each of {shape[0]} arms, {shape[1]} tasks and {shape[2]} "
                f"seeds, but got {len(self.records)}, of which {len(self._table)} differ"
            )

        horizons = dict.fromkeys(self.tasks, 1)
        for r in self.records:
            horizons[r.task] = max(horizons[r.task], *r.steps[-1:], 1)
        put(self, "_horizons", horizons)

    def of(self, entry: Entry, task: str) -> list[RunRecord]:
        """Runs of one arm on one task, by seed."""
        return [self._table[entry, task, seed] for seed in self.seeds]

    def array(self, number: Callable[[RunRecord], float]) -> FloatArray:
        """A number of every run, (num_entries, num_tasks, num_seeds)."""
        return np.array(
            [[[number(r) for r in self.of(e, t)] for t in self.tasks] for e in self.entries],
            dtype=np.float64,
        )

    def losses(self, split: SplitName) -> FloatArray:
        """Final losses, (num_entries, num_tasks, num_seeds); NaN where a run crashed."""
        return self.array(lambda r: r.losses[split] if r.failed is None else math.nan)

    def horizon(self, task: str) -> int:
        """Inner steps of a run of a task; crashed runs, which have none, do not count."""
        return self._horizons[task]

    def untrained(self) -> FloatArray:
        """Loss of the untrained models, (num_tasks,): mean over the runs that know it."""
        known = self.array(lambda r: r.untrained)
        return np.array([_finite_mean(known[:, t]) for t in range(len(self.tasks))])


def _finite_mean(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


@dataclass(frozen=True)
class Anchors:
    """What the normalised score calls zero and one on each task; all (num_tasks,).

    Attributes:
        default: mean loss of the reference.
        tuned: mean loss of the best tuned AdamW.
        gain: (default - tuned) / default; where a loss of the task is not positive, over
            (untrained - default) instead.
        counts: whether the gain is at least `LEAST_GAIN`.
        entries: the best tuned AdamW of each task.
    """

    default: FloatArray
    tuned: FloatArray
    gain: FloatArray
    counts: BoolArray
    entries: tuple[Entry, ...]


def tuned_entries(entries: Sequence[Entry], reference: Entry) -> list[Entry]:
    """The AdamW arms at the largest tuning budget: the best of them is the score's one.

    Empty where nothing was tuned.
    """
    family = [
        e
        for e in entries
        if e.arm.startswith(TUNED_FAMILY) and e.start_lr is None and e.arm != reference.arm
    ]
    budget = max((e.budget for e in family), default=1)
    return [e for e in family if e.budget == budget] if budget > 1 else []


def anchors(grid: Grid, split: SplitName, *, reference: Entry) -> Anchors | None:
    """Finds the ends of the normalised score; None where nothing was tuned.

    The best tuned AdamW of a task is the one with the least mean outer-valid loss; its loss on
    `split` is the score's one, be it good or bad luck there.

    Args:
        grid: all runs.
        split: on which losses are scored.
        reference: the entry whose loss is the score's zero.
    """
    tuned = tuned_entries(grid.entries, reference)
    if not tuned:
        return None
    untrained = grid.untrained()
    losses = fill_diverged(grid.losses(split), untrained=untrained)
    valid = fill_diverged(grid.losses("outer_valid"), untrained=untrained)
    rows = np.array([grid.entries.index(e) for e in tuned])
    chosen = rows[valid[rows].mean(axis=-1).argmin(axis=0)]
    default = losses[grid.entries.index(reference)].mean(axis=-1)
    best = losses[chosen, np.arange(len(grid.tasks))].mean(axis=-1)
    positive = (losses > 0).all(axis=(0, 2)) & (untrained > 0)
    scale = np.where(positive, default, untrained - default)
    # Where the reference learned nothing there is no scale: whatever tuning gains counts.
    gained = default - best
    without = np.select([gained > 0, gained < 0], [np.inf, -np.inf], 0.0)
    gain = np.where(scale > 0, gained / np.where(scale > 0, scale, 1.0), without)
    names = tuple(grid.entries[i] for i in chosen)
    return Anchors(default, best, gain, gain >= LEAST_GAIN, names)


def normalised_scores(losses: FloatArray, ends: Anchors) -> FloatArray:
    """(default - loss) / (default - tuned) on the tasks that count: 0 the default, 1 tuned.

    Args:
        losses: (num_entries, num_tasks, num_seeds), finite; see `fill_diverged`.
        ends: of the same tasks.

    Returns:
        (num_entries, number of tasks that count, num_seeds); higher is better.

    >>> three = Anchors(np.array([2.0]), np.array([1.0]), np.array([0.5]), np.array([True]), ())
    >>> normalised_scores(np.array([[[2.0, 1.0, 0.5]]]), three).ravel().tolist()
    [0.0, 1.0, 1.5]
    """
    default, tuned = (x[ends.counts][None, :, None] for x in (ends.default, ends.tuned))
    return np.asarray((default - losses[:, ends.counts]) / (default - tuned))


@dataclass(frozen=True)
class TimeToTarget:
    """When runs got to the target; all (num_entries, num_tasks, num_seeds).

    Attributes:
        reached: whether they did.
        steps: share of the horizon at the first evaluation that was as good; 1 where none was.
        seconds: that share of the run's wall-clock, over the reference's mean for a run of the
            task; where none was, the task's longest run. NaN: no wall-clock is recorded.
    """

    reached: BoolArray
    steps: FloatArray
    seconds: FloatArray


def time_to_target(grid: Grid, *, reference: Entry) -> TimeToTarget | None:
    """How soon runs are as good on outer-valid as the reference is in the end, by task and seed.

    Runs that never are, crashed and diverged ones among them, are kept: means are restricted
    means. Where the reference diverged, any finite loss is as good. None where a curve is missing.

    Args:
        grid: all runs.
        reference: the entry that sets the target.
    """
    if not has_curves(grid):
        return None
    goal = grid.losses("outer_valid")[grid.entries.index(reference)]
    goal = np.where(np.isfinite(goal), goal + _ROUNDING * np.abs(goal), np.finfo(np.float64).max)
    steps = np.full((len(grid.entries), *goal.shape), np.nan)
    for t, task in enumerate(grid.tasks):
        horizon = grid.horizon(task)
        for e, entry in enumerate(grid.entries):
            for s, record in enumerate(grid.of(entry, task)):
                pairs = zip(record.valid_steps, record.valid_curve, strict=True)
                hits = [step for step, loss in pairs if loss <= goal[t, s]]
                if hits:
                    steps[e, t, s] = hits[0] / horizon
    reached = np.isfinite(steps)
    steps = np.where(reached, steps, 1.0)
    wall = wall_seconds(grid)
    longest = np.array([np.nanmax(w) if np.isfinite(w).any() else np.nan for w in _by_task(wall)])
    own = np.where(reached, steps * wall, longest[None, :, None])
    base = wall[grid.entries.index(reference)].mean(axis=-1)
    return TimeToTarget(reached, steps, own / base[None, :, None])


def wall_seconds(grid: Grid) -> FloatArray:
    """Wall-clock of every run, (num_entries, num_tasks, num_seeds); NaN where it is not known."""
    wall = grid.array(lambda r: r.wall_seconds)
    return np.where(wall > 0, wall, np.nan)


def _by_task(values: FloatArray) -> list[FloatArray]:
    return [values[:, t] for t in range(values.shape[1])]


def has_curves(grid: Grid) -> bool:
    """Whether every run that did not crash has a curve of outer-valid losses."""
    return all(r.valid_curve or r.failed is not None for r in grid.records)


def area_under_curve(grid: Grid) -> FloatArray | None:
    """Mean outer-valid loss over the run, from the untrained model's on, by trapezoids.

    Points that are not finite count as `fill_diverged` says. None where a curve is missing.

    Returns:
        (num_entries, num_tasks, num_seeds), finite, in the unit of the loss.
    """
    if not has_curves(grid):
        return None
    untrained = grid.untrained()
    areas = np.empty((len(grid.entries), len(grid.tasks), len(grid.seeds)))
    for t, task in enumerate(grid.tasks):
        horizon = grid.horizon(task)
        rows = [grid.of(entry, task) for entry in grid.entries]
        curves = [v for row in rows for r in row for v in r.valid_curve if math.isfinite(v)]
        worst = max([untrained[t], *curves])
        for e, row in enumerate(rows):
            for s, record in enumerate(row):
                curve = [v if math.isfinite(v) else worst for v in record.valid_curve] or [worst]
                steps = list(record.valid_steps) or [horizon]
                start = record.untrained if math.isfinite(record.untrained) else untrained[t]
                xs, ys = [0, *steps, horizon], [start, *curve, curve[-1]]
                areas[e, t, s] = np.sum(np.diff(xs) * (np.array(ys[1:]) + ys[:-1]) / 2) / horizon
    return areas
