"""What a summary says of all arms together: profiles, ranks, starts, and task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.findings import Profile, Ranks, Sensitivity
from pacesetter.experiments.analysis.ranking import (
    cliques,
    critical_difference,
    friedman_p_value,
    mean_ranks,
    performance_profile,
)
from pacesetter.experiments.analysis.scores import Scores
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.analysis.task_findings import TaskEntry, TaskSummary
from pacesetter.experiments.runs.records import Entry

FloatArray = NDArray[np.float64]
ProfileOf = Literal["normalised score", "log(reference's test loss / loss)"]

NUM_THRESHOLDS = 101
"""Points of a performance profile."""
NORMALISED_RANGE = (-1.0, 2.0)
"""Thresholds of profiles of normalised scores."""


def reference_lr(scores: Scores) -> float:
    """Learning rate of the reference: what starts are measured by."""
    first = scores.grid.of(scores.reference, scores.grid.tasks[0])
    return first[0].lr


def field_of(scores: Scores) -> tuple[Entry, ...]:
    """One entry per arm: at its largest budget, from the start nearest to the reference's rate."""
    lr = reference_lr(scores)

    def preference(entry: Entry) -> tuple[int, float]:
        far = 0.0 if entry.start_lr is None else 1.0 + abs(np.log(entry.start_lr / lr))
        return -entry.budget, far

    arms: dict[str, list[Entry]] = {}
    for entry in scores.grid.entries:
        arms.setdefault(entry.arm, []).append(entry)
    return tuple(min(several, key=preference) for several in arms.values())


def profiles_of(scores: Scores, field: Sequence[Entry]) -> tuple[dict[Entry, Profile], ProfileOf]:
    """Performance profiles on test: of normalised scores where there are any.

    Args:
        scores: of all runs.
        field: entries to profile.
    """
    rows = [scores.grid.entries.index(entry) for entry in field]
    normalised = scores.normalised.get("test")
    name: ProfileOf
    if normalised is not None and normalised.shape[1]:
        values, name = normalised[rows], "normalised score"
        thresholds = np.linspace(*NORMALISED_RANGE, NUM_THRESHOLDS)
    else:
        values = scores.values["test"][scores.base] - scores.values["test"][rows]
        name = "log(reference's test loss / loss)"
        low, high = np.quantile(values, (0.01, 0.99))
        thresholds = np.linspace(low - 0.1, high + 0.1, NUM_THRESHOLDS)
    resamples = scores.resamples(values.shape[1])
    found = {}
    for entry, runs in zip(field, values, strict=True):
        share, low, high = performance_profile(runs, thresholds, resamples=resamples)
        found[entry] = Profile(thresholds=thresholds, share=share, low=low, high=high)
    return found, name


def ranks_of(scores: Scores, field: Sequence[Entry]) -> Ranks | None:
    """Ranks of the field by mean test loss on each task.

    Args:
        scores: of all runs.
        field: entries to rank.

    Returns:
        None where there are fewer than two tasks or three entries.
    """
    num_tasks = len(scores.grid.tasks)
    if num_tasks < 2 or len(field) < 3:
        return None
    values = scores.values["test"][[scores.grid.entries.index(entry) for entry in field]]
    losses = values.mean(axis=-1)
    ranks = mean_ranks(losses)
    resamples = scores.resamples()
    samples = mean_ranks(np.array([resamples.of(runs).mean(axis=-1) for runs in values]))
    difference = critical_difference(len(field), num_tasks)
    return Ranks(
        ranks={
            field[i]: resamples.around(float(ranks[i]), samples[i])
            for i in np.argsort(ranks, kind="stable")
        },
        friedman_p=friedman_p_value(losses),
        critical_difference=difference,
        cliques=tuple(
            tuple(field[i] for i in group) for group in cliques(ranks.tolist(), difference)
        ),
    )


def sensitivity_of(scores: Scores, labels: Mapping[str, str]) -> tuple[Sensitivity, ...]:
    """What the start does to arms that were run from several.

    An arm's run at its default, which has no start, counts as a start at its learning rate.

    Args:
        scores: of all runs.
        labels: by name of the arm.
    """
    grid, lr = scores.grid, reference_lr(scores)
    starts: dict[str, dict[float, int]] = {}
    for row, entry in enumerate(grid.entries):
        if entry.start_lr is not None:
            starts.setdefault(entry.arm, {})[entry.start_lr] = row
    for row, entry in enumerate(grid.entries):
        if entry.start_lr is None and entry.budget == 1 and entry.arm in starts:
            starts[entry.arm].setdefault(grid.of(entry, grid.tasks[0])[0].lr, row)
    found = []
    values, resamples = scores.values["test"], scores.resamples()
    for arm, rows in starts.items():
        if len(rows) < 2:
            continue
        start_lrs = sorted(rows)
        relative = values[[rows[start] for start in start_lrs]] - values[scores.base]
        means, samples = relative.mean(axis=(1, 2)), resamples.means(relative)
        found.append(
            Sensitivity(
                arm=arm,
                label=labels.get(arm, arm),
                start_lrs=tuple(start_lrs),
                factors=tuple(start / lr for start in start_lrs),
                scores=tuple(resamples.interval(runs) for runs in relative),
                penalty=resamples.around(
                    float(means.mean() - means.min()),
                    samples.mean(axis=0) - samples.min(axis=0),
                ),
            )
        )
    return tuple(found)


def task_summaries(scores: Scores) -> tuple[TaskSummary, ...]:
    """Every task, with every arm on it."""
    grid, ends = scores.grid, scores.ends["test"]
    found = []
    for t, task in enumerate(grid.tasks):
        entries = {entry: _task_entry(scores, e, t) for e, entry in enumerate(grid.entries)}
        order = sorted(entries, key=lambda entry: entries[entry].score.estimate)
        default = scores.losses["test"][scores.base, t]
        found.append(
            TaskSummary(
                name=task,
                horizon=grid.horizon(task),
                metric_name=scores.metric_name(task),
                default=float(default.mean() if ends is None else ends.default[t]),
                tuned=None if ends is None else float(ends.tuned[t]),
                tuned_entry=None if ends is None else ends.entries[t],
                gain=None if ends is None else float(ends.gain[t]),
                counts=ends is not None and bool(ends.counts[t]),
                entries={entry: entries[entry] for entry in order},
            )
        )
    return tuple(found)


def _task_entry(scores: Scores, row: int, t: int) -> TaskEntry:
    def over_seeds(values: FloatArray) -> Interval:
        return scores.resamples(1, len(values)).interval(values[None])

    losses = scores.losses["test"][row, t]
    runs = scores.grid.of(scores.grid.entries[row], scores.grid.tasks[t])
    broken = np.array([r.diverged or r.failed is not None for r in runs])
    sound = np.isfinite(losses) & ~broken
    metric = None
    for values, tasks in scores.metrics.values():
        if t in tasks and sound.any() and np.isfinite(values[row, t][sound]).all():
            metric = over_seeds(values[row, t][sound])
    ends = scores.ends["test"]
    normalised = None
    if ends is not None and ends.counts[t]:
        place = int(ends.counts[:t].sum())
        normalised = over_seeds(scores.normalised["test"][row, place])
    values = scores.values["test"]
    return TaskEntry(
        loss=over_seeds(losses[sound]) if sound.any() else None,
        metric=metric,
        score=over_seeds(values[row, t] - values[scores.base, t]),
        normalised=normalised,
        diverged=int(broken.sum()),
        num_runs=len(runs),
    )
