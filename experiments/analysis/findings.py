"""Findings of a comparison as plain values: by arm, by task, in pairs, in ranks and profiles.

`summary` computes them from records of runs; tables, figures and the report only lay them out.
Intervals are at 95 % and, unless noted otherwise, over other tasks like these and other seeds. A
score is the mean over tasks of log(loss / the reference's loss). 'Better' and 'worse' are claimed
only where the p-value, corrected by Holm's method for the number of arms, is below 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.analysis.statistics import CONFIDENCE, Interval
from pacesetter.experiments.runs.records import Entry

Finding = Literal["better", "worse", "no clear difference"]
ProfileOf = Literal["normalised score", "log(reference's test loss / loss)"]

SCORED_SPLITS: tuple[Literal["test", "outer_valid"], ...] = ("test", "outer_valid")
"""Splits on which arms are compared, the headline's first."""


def finding(score: Interval, p_value: float) -> Finding:
    """The claim that a difference of losses allows; below zero is better.

    >>> finding(Interval(-0.1, -0.2, -0.01), 0.2)  # the interval alone would allow more
    'no clear difference'
    """
    if p_value >= 1 - CONFIDENCE:
        return "no clear difference"
    if score.high < 0:
        return "better"
    return "worse" if score.low > 0 else "no clear difference"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores and their corrected p-values, by split."""

    scores: Mapping[str, Interval]
    p_values: Mapping[str, float]

    def finding(self, split: str = "test") -> Finding:
        return finding(self.scores[split], self.p_values[split])


@dataclass(frozen=True, kw_only=True)
class EntrySummary(Scored):
    """One arm, from one start and with one tuning budget, over all tasks and seeds.

    Attributes:
        p_values: corrected over all arms.
        iqm: by split, the interquartile mean over runs of the same log ratios.
        normalised: by split, the interquartile mean over runs of the normalised score (0: the
            reference, 1: the best tuned AdamW) of tasks where tuning gains something; empty where
            there is no such task or nothing was tuned.
        best: score of the best outer-valid loss within each run; None: not recorded.
        area: score of the mean outer-valid loss over the run; None: not recorded.
        steps_to_target: mean share of the steps until outer-valid loss is at the reference's final
            one; a run that never gets there counts as 1. None: not recorded.
        reached: share of runs that get there.
        metrics: by name of the metric, mean over the tasks that have it of the difference from the
            reference's, on test.
        overhead: geometric mean of wall-clock over the reference's; None: not recorded.
        inner_steps: inner steps spent, tuning included, over all tasks and seeds.
    """

    entry: Entry
    label: str
    iqm: Mapping[str, Interval]
    normalised: Mapping[str, Interval]
    best: Interval | None
    area: Interval | None
    steps_to_target: Interval | None
    reached: Interval | None
    metrics: Mapping[str, Interval]
    overhead: Interval | None
    trials: float
    inner_steps: int
    diverged: int
    num_runs: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Difference(Scored):
    """The agent against a rival, in pairs of equal task and seed.

    Attributes:
        scores: mean over tasks of log(our loss / the rival's).
        p_values: corrected over the rivals of this entry of the agent.
        improvement: chance that a run of ours has a lower test loss than a rival's of the same
            task; 0.5 means neither.
        overhead: geometric mean of our wall-clock over the rival's; None: not recorded.
    """

    ours: Entry
    rival: Entry
    improvement: Interval
    overhead: Interval | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Share of an arm's runs with a score above each threshold, and its band; all (n,)."""

    thresholds: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks over tasks by test loss (Demšar 2006), rank 1 being the best.

    Attributes:
        ranks: by entry, the best first.
        critical_difference: of two mean ranks, by Nemenyi's test at 5 % over all pairs.
    """

    ranks: Mapping[Entry, Interval]
    friedman_p: float
    critical_difference: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Effect of the initial learning rate on an arm that was run from several.

    Attributes:
        start_lrs: ascending.
        factors: the same over the learning rate of the reference.
        scores: of each start, on test.
        penalty: mean over starts of the score above that from the arm's best start.
    """

    arm: str
    label: str
    start_lrs: tuple[float, ...]
    factors: tuple[float, ...]
    scores: tuple[Interval, ...]
    penalty: Interval


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One arm on one task; intervals are over seeds.

    Attributes:
        loss: mean test loss of runs that did not diverge; None: all did.
        metric: mean of the task's metric on test over the same runs; None: it has none.
        score: mean log(test loss / the reference's); diverged runs count.
        normalised: mean normalised score on test; None where the task does not count for it.
    """

    loss: Interval | None
    metric: Interval | None
    score: Interval
    normalised: Interval | None
    diverged: int
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """One task.

    Attributes:
        metric_name: "accuracy", "perplexity", ...; None: it has none.
        default: mean test loss of the reference, the normalised score's zero.
        tuned: mean test loss of the best tuned AdamW, its one; None: nothing was tuned.
        tuned_entry: the best tuned AdamW, chosen by outer-valid loss.
        gain: of tuning: (default - tuned) / default; over (untrained - default) where losses may
            be negative. None: nothing was tuned.
        counts: whether the gain is enough for the task to count in normalised scores.
    """

    name: str
    horizon: int
    metric_name: str | None
    default: float
    tuned: float | None
    tuned_entry: Entry | None
    gain: float | None
    counts: bool
    entries: Mapping[Entry, TaskEntry]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Runs of an arm that crashed or exploded on a task, with the reason of the first of them.

    One that failed everywhere is left out of all other tables.
    """

    entry: Entry
    label: str
    task: str
    runs: int
    reason: str
    left_out: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All findings of a comparison.

    Attributes:
        entries: every arm, start and budget, in the order of the records; without those that
            failed everywhere.
        differences: every entry of the agent against every other arm that fits: those without a
            start, and those from the same start.
        relative: whether scores are logs of ratios on every task; elsewhere some task has losses
            that are not positive, and its differences are over their spread.
        field: one entry per arm, at its largest budget and nearest to the reference's learning
            rate; these are ranked and profiled together.
        profile_of: the quantity of the profiles' thresholds.
        ranks: None where fewer than two tasks or three arms were run.
        doubts: about tasks whose losses say little, a sentence each.
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
    profile_of: ProfileOf
    ranks: Ranks | None
    sensitivity: tuple[Sensitivity, ...]
    failures: tuple[Failure, ...]
    doubts: tuple[str, ...] = ()
    tuned_budget: int | None

    @property
    def labels(self) -> dict[Entry, str]:
        return {e.entry: e.label for e in self.entries}

    @property
    def by_budget(self) -> dict[str, tuple[EntrySummary, ...]]:
        """Arms that were run with more than one tuning budget, by name: ascending budgets."""
        found: dict[str, list[EntrySummary]] = {}
        for e in sorted(self.entries, key=lambda e: e.entry.budget):
            if e.entry.start_lr is None:
                found.setdefault(e.entry.arm, []).append(e)
        return {arm: tuple(several) for arm, several in found.items() if len(several) > 1}

    def of(self, entry: Entry) -> EntrySummary:
        """The summary of an entry; KeyError where it was not run, or failed everywhere."""
        return {e.entry: e for e in self.entries}[entry]
