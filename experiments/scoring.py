"""The scale on which runs are compared, and the resamples: what all parts of a summary share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.findings import SCORED_SPLITS
from pacesetter.experiments.metrics import Anchors, Grid, anchors, normalised_scores, wall_seconds
from pacesetter.experiments.ranking import bootstrap_p_value
from pacesetter.experiments.records import Entry, RunRecord
from pacesetter.experiments.statistics import Interval, Resamples, comparable, fill_diverged
from pacesetter.inner_models.extras import require

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
        losses: by split, (num_entries, num_tasks, num_seeds), finite; see `fill_diverged`.
        values: by split, the same on the scale of `comparable`.
        ends: by split, the ends of the normalised score; None: nothing was tuned.
        normalised: by split, (num_entries, number of tasks that count, num_seeds); empty where
            nothing was tuned.
        relative: whether all losses are positive, so that differences of values are log ratios.
    """

    def __init__(self, records: Sequence[RunRecord], *, reference: Entry, seed: int) -> None:
        self.grid = Grid(records)
        self.reference = reference
        self.base = self.grid.entries.index(reference)
        self._untrained = self.grid.untrained()
        raw = {s: self._losses(s) for s in SCORED_SPLITS}
        self.losses = {s: fill_diverged(x, untrained=self._untrained) for s, x in raw.items()}
        self.values = {s: comparable(x, untrained=self._untrained) for s, x in raw.items()}
        self.ends: dict[str, Anchors | None] = {
            s: anchors(self.grid, s, reference=reference) for s in SCORED_SPLITS
        }
        self.normalised = {
            s: normalised_scores(self.losses[s], ends)
            for s, ends in self.ends.items()
            if ends is not None
        }
        self.relative = all((x > 0).all() for x in self.losses.values())
        self._drawn: dict[tuple[int, int, bool], Resamples] = {}
        self._seed = seed

    def _losses(self, split: str) -> FloatArray:
        return self.grid.array(lambda r: np.nan if r.failed else r.losses[split])  # type: ignore[index]
