"""What a comparison found on single tasks, as plain values: losses, what counts, what crashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.runs.records import Entry


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One arm on one task; intervals are over seeds.

    Attributes:
        loss: mean test loss of runs that did not diverge; None: all did.
        metric: mean of the task's metric on test over the same runs; None: it has none.
        score: mean log(test loss / the reference's); diverged runs count.
        normalised: mean normalised score on test; None where the task does not count for it.
        diverged: how many runs diverged or failed.
        num_runs: of how many.
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
        name: of the task.
        horizon: inner steps of a run.
        metric_name: "accuracy", "perplexity", ...; None: it has none.
        default: mean test loss of the reference, the normalised score's zero.
        tuned: mean test loss of the best tuned AdamW, its one; None: nothing was tuned.
        tuned_entry: which that is, chosen by outer-valid loss.
        gain: what tuning gains: (default - tuned) / default; over (untrained - default) where
            losses may be negative. None: nothing was tuned.
        counts: whether the gain is enough for the task to count in normalised scores.
        entries: the arms, the best first.
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
    """Runs of an arm that crashed on a task.

    Attributes:
        entry: the arm, its start and budget.
        label: how tables call it.
        task: name of the task.
        runs: how many.
        reason: what the first of them said.
        left_out: whether the arm failed everywhere and so is in no other table.
    """

    entry: Entry
    label: str
    task: str
    runs: int
    reason: str
    left_out: bool
