"""The scales on which runs are compared, and the resamples: what all parts of a summary share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.findings import SCORED_SPLITS
from pacesetter.experiments.analysis.metrics import (
    Anchors,
    Grid,
    anchors,
    normalised_scores,
    wall_seconds,
)
from pacesetter.experiments.analysis.ranking import bootstrap_p_value
from pacesetter.experiments.analysis.statistics import (
    CONFIDENCE,
    Interval,
    Resamples,
    comparable,
    fill_diverged,
)
from pacesetter.experiments.runs.records import Entry, RunRecord
from pacesetter.inner_models.lookup import require

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Scores:
    """Losses of all runs on scales that tasks share.

    Args:
        records: one for each arm, task and seed.
        reference: what scores are relative to.
        seed: of all resamples.

    Attributes:
        grid: the records in order.
        reference: as given.
        base: the reference's place among the entries.
        losses: by split, (num_entries, num_tasks, num_seeds); NaN where a run diverged or failed.
        values: by split, the same on the scale of `comparable`, finite.
        ends: by split, the ends of the normalised score; None: nothing was tuned.
        normalised: by split, (num_entries, number of tasks that count, num_seeds); no split where
            nothing was tuned.
    """

    def __init__(self, records: Sequence[RunRecord], *, reference: Entry, seed: int) -> None:
        self.grid = Grid(records)
        self.reference = reference
        self.base = self.grid.entries.index(reference)
        self._untrained = self.grid.untrained()
        self.losses: dict[str, FloatArray] = {}
        self.values: dict[str, FloatArray] = {}
        self.ends: dict[str, Anchors | None] = {}
        self.normalised: dict[str, FloatArray] = {}
        self._relative = True
        for split in SCORED_SPLITS:
            raw = self.grid.losses(split)
            filled = fill_diverged(raw, untrained=self._untrained)
            ends = anchors(self.grid, split, reference=reference)
            self.losses[split] = np.where(np.isfinite(raw), raw, np.nan)
            self.values[split] = comparable(raw, untrained=self._untrained)
            self.ends[split] = ends
            self._relative &= bool((filled > 0).all())
            if ends is not None:
                self.normalised[split] = normalised_scores(filled, ends)
        self._drawn: dict[tuple[int, int, bool], Resamples] = {}
        self._seed = seed

    @property
    def relative(self) -> bool:
        """Whether all losses are positive, so that differences of values are log ratios."""
        return self._relative

    def resamples(
        self, num_tasks: int | None = None, num_seeds: int | None = None, *, over_tasks: bool = True
    ) -> Resamples:
        """Resamples from the seed that all share; default: of all tasks and seeds."""
        num_tasks = len(self.grid.tasks) if num_tasks is None else num_tasks
        num_seeds = len(self.grid.seeds) if num_seeds is None else num_seeds
        key = (num_tasks, num_seeds, over_tasks)
        if key not in self._drawn:
            self._drawn[key] = Resamples.draw(
                num_tasks,
                num_seeds,
                generator=np.random.default_rng(self._seed),
                over_tasks=over_tasks,
            )
        return self._drawn[key]

    def p_value(self, samples: FloatArray) -> float:
        """Two-sided p-value of zero from resamples; 1 where a single run cannot say."""
        return bootstrap_p_value(samples) if self.resamples().informative else 1.0

    def against_base(self, losses: FloatArray) -> FloatArray:
        """Other losses of all runs, compared with the reference's on the scale of `comparable`."""
        values = comparable(losses, untrained=self._untrained)
        return np.asarray(values - values[self.base])

    @cached_property
    def best(self) -> FloatArray | None:
        """Best outer-valid loss within each run, against the reference's; None: not recorded."""
        if not all("outer_valid" in r.best or r.failed is not None for r in self.grid.records):
            return None
        return self.against_base(self.grid.array(lambda r: r.best.get("outer_valid", math.nan)))

    @cached_property
    def wall(self) -> FloatArray:
        """Wall-clock of every run, seconds; NaN where it is not known."""
        return wall_seconds(self.grid)

    def overhead(self, row: int, other: int) -> Interval | None:
        """Geometric mean of an entry's wall-clock over another's, in pairs of task and seed."""
        ratios = np.log(self.wall[row]) - np.log(self.wall[other])
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


def share_interval(hits: BoolArray, resamples: Resamples) -> Interval:
    """A share of runs with its interval: the bootstrap's, or Wilson's where that is wider.

    Runs of a task are alike, which Wilson's does not know; but of no hits in ten runs the bootstrap
    would say that there never are any.

    Args:
        hits: (num_tasks, num_seeds).
        resamples: of as many tasks and seeds.

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
