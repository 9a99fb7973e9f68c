"""Scores of runs: records as arrays over arms, tasks and seeds, on scales that tasks share.

Losses may be negative: no metric takes the log of one. Runs that diverged or crashed are kept and
count as failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.analysis.findings import SCORED_SPLITS
from pacesetter.experiments.analysis.statistics import (
    BoolArray,
    Interval,
    Resamples,
    bootstrap_p_value,
    comparable,
    fill_diverged,
)
from pacesetter.experiments.runs.records import Entry, RunRecord
from pacesetter.inner_models.task import SplitName

TUNED_FAMILY = "adamw-"
"""Prefix of the arms of which the best tuned one is the best tuned AdamW."""
LEAST_GAIN = 0.02
"""Tasks where tuning gains less do not count in normalised scores: they would divide by noise."""
_ROUNDING = 1e-6


class Grid:
    """Records in order, one per arm, task and seed; ValueError where one is missing or twice."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.records = records
        self.entries = tuple(dict.fromkeys(r.entry for r in records))
        self.tasks = tuple(dict.fromkeys(r.task for r in records))
        self.seeds = tuple(dict.fromkeys(r.seed for r in records))
        self._table = {(r.entry, r.task, r.seed): r for r in records}
        shape = (len(self.entries), len(self.tasks), len(self.seeds))
        if len(self._table) != len(records) or len(self._table) != math.prod(shape):
            raise ValueError(
                f"need one run for each of {shape[0]} arms, {shape[1]} tasks and {shape[2]} "
                f"seeds, but got {len(records)}, of which {len(self._table)} differ"
            )
        self._horizons = dict.fromkeys(self.tasks, 1)
        for r in records:
            self._horizons[r.task] = max(self._horizons[r.task], *r.steps[-1:], 1)

    def of(self, entry: Entry, task: str) -> list[RunRecord]:
        return [self._table[entry, task, seed] for seed in self.seeds]

    def array(self, number: Callable[[RunRecord], float]) -> FloatArray:
        """A number of every run, (num_entries, num_tasks, num_seeds)."""
        return np.array(
            [[[number(r) for r in self.of(e, t)] for t in self.tasks] for e in self.entries],
            dtype=np.float64,
        )

    def losses(self, split: SplitName) -> FloatArray:
        """Final losses, (num_entries, num_tasks, num_seeds); NaN: a run crashed or exploded."""
        return self.array(lambda r: math.nan if r.failed or r.exploded else r.losses[split])

    def horizon(self, task: str) -> int:
        """Inner steps of a run of a task; crashed runs, which have none, do not count."""
        return self._horizons[task]

    @cached_property
    def untrained(self) -> FloatArray:
        """Loss of the untrained models, (num_tasks,): mean over the runs that know it."""
        known = self.array(lambda r: r.untrained)
        finite = [known[:, t][np.isfinite(known[:, t])] for t in range(len(self.tasks))]
        return np.array([losses.mean() if len(losses) else math.nan for losses in finite])

    @cached_property
    def wall(self) -> FloatArray:
        """Wall-clock of every run, seconds, (num_entries, num_tasks, num_seeds); NaN: unknown."""
        wall = self.array(lambda r: r.wall_seconds)
        return np.where(wall > 0, wall, np.nan)

    @property
    def has_curves(self) -> bool:
        """Whether every run that did not crash has a curve of outer-valid losses."""
        return all(r.valid_curve or r.failed is not None for r in self.records)


@dataclass(frozen=True)
class Anchors:
    """Zero and one of the normalised score on each task; all (num_tasks,).

    Attributes:
        gain: (default - tuned) / default; where a loss of the task is not positive, over
            (untrained - default) instead.
        counts: whether the gain is at least `LEAST_GAIN`.
    """

    default: FloatArray
    tuned: FloatArray
    gain: FloatArray
    counts: BoolArray
    entries: tuple[Entry, ...]


def anchors(grid: Grid, split: SplitName, *, reference: Entry) -> Anchors | None:
    """Zero and one of the normalised score on a split; None where nothing was tuned.

    The best tuned AdamW of a task has the least mean outer-valid loss; its loss on `split` is the
    score's one, whether better or worse than that of other arms there.
    """
    tuned = {i: e for i, e in enumerate(grid.entries) if e.arm.startswith(TUNED_FAMILY)}
    tuned = {i: e for i, e in tuned.items() if e.start_lr is None and e.arm != reference.arm}
    budget = max((e.budget for e in tuned.values()), default=1)
    if budget == 1:
        return None
    losses = fill_diverged(grid.losses(split), untrained=grid.untrained)
    valid = fill_diverged(grid.losses("outer_valid"), untrained=grid.untrained)
    rows = np.array([i for i, e in tuned.items() if e.budget == budget])
    chosen = rows[valid[rows].mean(axis=-1).argmin(axis=0)]
    default = losses[grid.entries.index(reference)].mean(axis=-1)
    best = losses[chosen, np.arange(len(grid.tasks))].mean(axis=-1)
    positive = (losses > 0).all(axis=(0, 2)) & (grid.untrained > 0)
    scale = np.where(positive, default, grid.untrained - default)
    # Where the reference learned nothing there is no scale: any gain of tuning counts.
    gained = default - best
    without = np.select([gained > 0, gained < 0], [np.inf, -np.inf], 0.0)
    gain = np.where(scale > 0, gained / np.where(scale > 0, scale, 1.0), without)
    names = tuple(grid.entries[i] for i in chosen)
    return Anchors(default, best, gain, gain >= LEAST_GAIN, names)


def normalised_scores(losses: FloatArray, ends: Anchors) -> FloatArray:
    """(default - loss) / (default - tuned) on the tasks that count: 0 the default, 1 tuned.

    Of losses (num_entries, num_tasks, num_seeds), finite; the higher the better.

    >>> three = Anchors(np.array([2.0]), np.array([1.0]), np.array([0.5]), np.array([True]), ())
    >>> normalised_scores(np.array([[[2.0, 1.0, 0.5]]]), three).ravel().tolist()
    [0.0, 1.0, 1.5]
    """
    default, tuned = (x[ends.counts][None, :, None] for x in (ends.default, ends.tuned))
    return np.asarray((default - losses[:, ends.counts]) / (default - tuned))


def steps_to_target(grid: Grid, *, reference: Entry) -> FloatArray | None:
    """Share of the steps until outer-valid loss is at the reference's final one.

    Where the reference diverged, any finite loss is as good. None where a curve is missing; of
    (num_entries, num_tasks, num_seeds), NaN where a run never gets there.
    """
    if not grid.has_curves:
        return None
    goal = grid.losses("outer_valid")[grid.entries.index(reference)]
    goal = np.where(np.isfinite(goal), goal + _ROUNDING * np.abs(goal), np.finfo(np.float64).max)
    goals = {(t, s): goal[i, j] for i, t in enumerate(grid.tasks) for j, s in enumerate(grid.seeds)}

    def share(r: RunRecord) -> float:
        pairs = zip(r.valid_steps, r.valid_curve, strict=True)
        first = next((step for step, loss in pairs if loss <= goals[r.task, r.seed]), math.nan)
        return first / grid.horizon(r.task)

    return grid.array(share)


def area_under_curve(grid: Grid) -> FloatArray | None:
    """Mean outer-valid loss over the run, from the untrained model's on, by trapezoids.

    Points that are not finite count as the worst of the task. None where a curve is missing;
    otherwise (num_entries, num_tasks, num_seeds), finite.
    """
    if not grid.has_curves:
        return None
    untrained = dict(zip(grid.tasks, grid.untrained, strict=True))
    worst = {task: float(loss) for task, loss in untrained.items()}
    for r in grid.records:
        worst[r.task] = max([worst[r.task], *filter(math.isfinite, r.valid_curve)])

    def area(r: RunRecord) -> float:
        horizon, bad = grid.horizon(r.task), worst[r.task]
        curve = [v if math.isfinite(v) else bad for v in r.valid_curve] or [bad]
        steps = list(r.valid_steps) or [horizon]
        start = r.untrained if math.isfinite(r.untrained) else untrained[r.task]
        xs, ys = [0, *steps, horizon], [start, *curve, curve[-1]]
        return float(np.sum(np.diff(xs) * (np.array(ys[1:]) + ys[:-1]) / 2) / horizon)

    return grid.array(area)


class Scores:
    """Losses of all runs on scales that tasks share.

    Attributes:
        base: the reference's place among the entries.
        losses: by split, (num_entries, num_tasks, num_seeds); NaN where a run diverged or failed.
        values: by split, the same on the scale of `comparable`, finite.
        ends: by split, the ends of the normalised score; None: nothing was tuned.
        normalised: by split, (num_entries, number of tasks that count, num_seeds); no split where
            nothing was tuned.
        relative: whether all losses are positive, so that differences of values are log ratios.
    """

    def __init__(self, records: Sequence[RunRecord], *, reference: Entry, seed: int) -> None:
        self.grid = Grid(records)
        self.reference = reference
        self.base = self.grid.entries.index(reference)
        self.losses: dict[str, FloatArray] = {}
        self.values: dict[str, FloatArray] = {}
        self.ends: dict[str, Anchors | None] = {}
        self.normalised: dict[str, FloatArray] = {}
        self.relative = True
        for split in SCORED_SPLITS:
            raw = self.grid.losses(split)
            filled = fill_diverged(raw, untrained=self.grid.untrained)
            self.losses[split] = np.where(np.isfinite(raw), raw, np.nan)
            self.values[split] = comparable(raw, untrained=self.grid.untrained)
            self.relative &= bool((filled > 0).all())
            ends = self.ends[split] = anchors(self.grid, split, reference=reference)
            if ends is not None:
                self.normalised[split] = normalised_scores(filled, ends)
        self._drawn: dict[tuple[int, int], Resamples] = {}
        self._seed = seed

    def resamples(self, num_tasks: int | None = None, num_seeds: int | None = None) -> Resamples:
        """Resamples of so many tasks and seeds, all of them unless given; drawn once."""
        num_tasks = len(self.grid.tasks) if num_tasks is None else num_tasks
        num_seeds = len(self.grid.seeds) if num_seeds is None else num_seeds
        key = (num_tasks, num_seeds)
        if key not in self._drawn:
            self._drawn[key] = Resamples.draw(*key, generator=np.random.default_rng(self._seed))
        return self._drawn[key]

    def p_value(self, samples: FloatArray) -> float:
        """Two-sided p-value of zero from resamples; 1 for a single run."""
        return bootstrap_p_value(samples) if self.resamples().informative else 1.0

    def against_base(self, losses: FloatArray) -> FloatArray:
        """Other losses of all runs, compared with the reference's on the scale of `comparable`."""
        values = comparable(losses, untrained=self.grid.untrained)
        return np.asarray(values - values[self.base])

    def overhead(self, row: int, other: int) -> Interval | None:
        """Geometric mean of an entry's wall-clock over another's, in pairs of task and seed."""
        ratios = np.log(self.grid.wall[row]) - np.log(self.grid.wall[other])
        if not np.isfinite(ratios).all():
            return None
        found = self.resamples().interval(ratios)
        with np.errstate(over="ignore"):
            ends = np.exp([found.estimate, found.low, found.high])
        return Interval(*(float(end) for end in ends))

    @cached_property
    def metrics(self) -> dict[str, tuple[FloatArray, list[int]]]:
        """By name of a task metric: its values on test (all runs; NaN: none), and its tasks."""
        values = self.grid.array(lambda r: (r.metric or {}).get("test", math.nan))
        found: dict[str, tuple[FloatArray, list[int]]] = {}
        for t, task in enumerate(self.grid.tasks):
            name = self.metric_name(task)
            if name is not None:
                found.setdefault(name, (values, []))[1].append(t)
        return found

    def metric_name(self, task: str) -> str | None:
        """Name of a task's metric; None: it has none."""
        runs = (r for entry in self.grid.entries for r in self.grid.of(entry, task))
        return next((r.metric_name for r in runs if r.metric and r.metric_name), None)
