"""What a comparison found, as plain values: by arm, by task, in pairs, in ranks and profiles.

`summary` computes it from records of runs; tables, figures and the report only lay it out. Every
interval is at 95 % and, where nothing else is said, over other tasks like these and other seeds.
'Better' and 'worse' are said where the p-value, corrected by Holm's method for the number of arms,
is below 5 %, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.statistics import CONFIDENCE, Interval
from pacesetter.experiments.analysis.task_findings import Failure, TaskSummary
from pacesetter.experiments.runs.records import Entry

FloatArray = NDArray[np.float64]
Finding = Literal["better", "worse", "no clear difference"]

SCORED_SPLITS: tuple[Literal["test", "outer_valid"], ...] = ("test", "outer_valid")
"""Splits on which arms are compared, the headline's first."""


def finding(score: Interval, p_value: float) -> Finding:
    """What may be said of a difference of losses.

    Args:
        score: the difference; below zero is better.
        p_value: corrected for how many claims are made together.

    >>> finding(Interval(-0.1, -0.2, -0.01), 0.2)  # its own interval would say so, Holm does not
    'no clear difference'
    """
    if p_value >= 1 - CONFIDENCE:
        return "no clear difference"
    if score.below_zero:
        return "better"
    return "worse" if score.above_zero else "no clear difference"


@dataclass(frozen=True, kw_only=True)
class EntrySummary:
    """One arm, from one start and with one tuning budget, over all tasks and seeds.

    Attributes:
        entry: which.
        label: how tables call it.
        scores: by split, the mean over tasks of log(loss / the reference's loss), with interval.
        seed_scores: the same with intervals over other seeds of these very tasks.
        iqm: by split, the interquartile mean over runs of the same.
        p_values: by split, of `scores`, corrected over all arms.
        normalised: by split, the interquartile mean over runs of the normalised score (0: the
            reference, 1: the best tuned AdamW) of tasks where tuning gains something; empty where
            there is no such task or nothing was tuned.
        normalised_mean: by split, its mean.
        best: as `scores`, of the best outer-valid loss within each run; None: not recorded.
        area: as `scores`, of the mean outer-valid loss over the run; None: not recorded.
        steps_to_target: mean share of the steps until outer-valid loss is what the reference has
            in the end; a run that never gets there counts as 1. None: not recorded.
        seconds_to_target: the same in wall-clock, over the reference's mean time for a whole run
            of the task; a run that never gets there counts as the task's longest run.
        reached: share of runs that get there.
        metrics: by name of the metric, mean over the tasks that have it of the difference from the
            reference's, on test.
        regret: of the worst task: largest over tasks of the mean of log(test loss / that of the
            arm which is best on the task); its interval is over seeds, for that task and that arm.
        worst_task: the task of that.
        seconds: mean wall-clock of a run, seconds; NaN: not recorded. Runs trained side by side
            share their time equally.
        overhead: geometric mean of wall-clock over the reference's; None: not recorded.
        trials: mean settings tried per task.
        inner_steps: inner steps spent, tuning included, over all tasks and seeds.
        diverged: how many runs diverged or failed.
        diverged_share: the same as a share, with interval.
        num_runs: of how many.
        failed: how many runs crashed; they count as diverged.
    """

    entry: Entry
    label: str
    scores: Mapping[str, Interval]
    seed_scores: Mapping[str, Interval]
    iqm: Mapping[str, Interval]
    p_values: Mapping[str, float]
    normalised: Mapping[str, Interval]
    normalised_mean: Mapping[str, Interval]
    best: Interval | None
    area: Interval | None
    steps_to_target: Interval | None
    seconds_to_target: Interval | None
    reached: Interval | None
    metrics: Mapping[str, Interval]
    regret: Interval
    worst_task: str
    seconds: float
    overhead: Interval | None
    trials: float
    inner_steps: int
    diverged: int
    diverged_share: Interval
    num_runs: int
    failed: int

    def finding(self, split: str = "test") -> Finding:
        """What may be said of the arm against the reference."""
        return finding(self.scores[split], self.p_values[split])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The agent against a rival, in pairs of equal task and seed.

    Attributes:
        ours: the agent's entry.
        rival: the other.
        scores: by split, the mean over tasks of log(our loss / the rival's), with interval.
        p_values: by split, of `scores`, corrected over the rivals of this entry of the agent.
        improvement: chance that a run of ours has a lower test loss than a rival's of the same
            task; 0.5 means neither.
        overhead: geometric mean of our wall-clock over the rival's; None: not recorded.
    """

    ours: Entry
    rival: Entry
    scores: Mapping[str, Interval]
    p_values: Mapping[str, float]
    improvement: Interval
    overhead: Interval | None

    def finding(self, split: str = "test") -> Finding:
        """What may be said of the agent."""
        return finding(self.scores[split], self.p_values[split])


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Performance profile of an arm: share of runs with a score above each threshold; all (n,).

    Attributes:
        thresholds: ascending scores on test, higher being better; see `Summary.profile_of`.
        share: of runs above.
        low: lower edge of the point-wise 95 % band.
        high: upper edge.
    """

    thresholds: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks over tasks by test loss (Demšar 2006), rank 1 being the best.

    Attributes:
        ranks: by entry, with interval, the best first.
        friedman_p: p-value of 'all arms do equally well'.
        critical_difference: least difference that Nemenyi's test calls one, at 5 % over all pairs.
        cliques: largest groups of entries that do not differ by as much.
    """

    ranks: Mapping[Entry, Interval]
    friedman_p: float
    critical_difference: float
    cliques: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What the start of the learning rate does to an arm that was run from several.

    Attributes:
        arm: its name.
        label: how figures call it.
        start_lrs: ascending.
        factors: the same over the learning rate of the reference.
        scores: of each start, the mean over tasks of log(test loss / the reference's).
        penalty: mean over starts of the score above that from the arm's best start: 0 means that
            the start does not matter.
    """

    arm: str
    label: str
    start_lrs: tuple[float, ...]
    factors: tuple[float, ...]
    scores: tuple[Interval, ...]
    penalty: Interval


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a comparison found.

    Attributes:
        tasks: names.
        seeds: of the report.
        entries: every arm, start and budget, in the order of the records; without those that
            failed everywhere.
        differences: every entry of the agent against every other arm that fits: those without a
            start, and those from the same start.
        reference: what scores are relative to.
        relative: whether scores are logs of ratios on every task; elsewhere some task has losses
            that are not positive, and its differences are over their spread.
        task_summaries: in the order of `tasks`.
        field: one entry per arm, at its largest budget and nearest to the reference's learning
            rate: what is ranked and profiled together.
        profiles: of the field.
        profile_of: what their scores are.
        ranks: of the field; None where fewer than two tasks or three arms were run.
        sensitivity: of arms that were run from several starts.
        failures: what crashed.
        tuned_budget: of the arms that define a normalised score of one; None: nothing was tuned.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    entries: tuple[EntrySummary, ...]
    differences: tuple[Difference, ...]
    reference: Entry
    relative: bool
    task_summaries: tuple[TaskSummary, ...]
    field: tuple[Entry, ...]
    profiles: Mapping[Entry, Profile]
    profile_of: Literal["normalised score", "log(reference's test loss / loss)"]
    ranks: Ranks | None
    sensitivity: tuple[Sensitivity, ...]
    failures: tuple[Failure, ...]
    tuned_budget: int | None

    @property
    def labels(self) -> dict[Entry, str]:
        """Labels by entry."""
        return {e.entry: e.label for e in self.entries}

    @property
    def by_budget(self) -> dict[str, tuple[EntrySummary, ...]]:
        """Arms that were run with more than one tuning budget, by name: ascending budgets."""
        found: dict[str, list[EntrySummary]] = {}
        for e in self.entries:
            if e.entry.start_lr is None:
                found.setdefault(e.entry.arm, []).append(e)
        return {
            arm: tuple(sorted(several, key=lambda e: e.entry.budget))
            for arm, several in found.items()
            if len(several) > 1
        }

    def of(self, entry: Entry) -> EntrySummary:
        """The summary of an entry.

        Raises:
            KeyError: it was not run, or failed everywhere.
        """
        for e in self.entries:
            if e.entry == entry:
                return e
        raise KeyError(f"no entry {entry}; there are {[e.entry for e in self.entries]}")
