"""What the figures of a comparison show, as numbers; `figures` draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.findings import EntrySummary, Summary
from pacesetter.experiments.analysis.statistics import Interval, bootstrap_interval, quantile_band
from pacesetter.experiments.runs.records import Entry, RunRecord

FloatArray = NDArray[np.float64]
Quantity = Literal["curve", "valid_curve", "lrs", "momenta", "clip_thresholds"]


@dataclass(frozen=True)
class Band:
    """A line with a band around it; all (K,).

    Attributes:
        steps: inner steps, or whatever else the horizontal axis is.
        median: the line; the median over seeds, or an estimate.
        low: lower edge of the band; a quartile, or the end of an interval.
        high: upper edge.
    """

    steps: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray


def band_data(records: Sequence[RunRecord], *, task: str, quantity: Quantity) -> dict[Entry, Band]:
    """What happened over the steps of a task, by arm, start and budget.

    Args:
        records: of any tasks.
        task: name of the one that is asked for.
        quantity: which of the histories of a record.

    Returns:
        Median and quartiles over the seeds that did not crash; nothing for an arm that never has
        the quantity.
    """
    runs: dict[Entry, list[RunRecord]] = {}
    for record in records:
        if record.task == task and getattr(record, quantity):
            runs.setdefault(record.entry, []).append(record)
    bands = {}
    for entry, group in runs.items():
        steps = group[0].valid_steps if quantity == "valid_curve" else group[0].steps
        same = [r for r in group if len(getattr(r, quantity)) == len(steps)]
        values = np.array([getattr(record, quantity) for record in same], dtype=np.float64)
        if np.isfinite(values).any():
            bands[entry] = Band(np.array(steps, dtype=np.float64), *quantile_band(values))
    return bands


def final_data(
    records: Sequence[RunRecord],
    *,
    task: str,
    generator: np.random.Generator,
    split: Literal["train", "outer_valid", "test"] = "test",
) -> dict[Entry, Interval]:
    """Mean final loss of a task over seeds with its 95 % interval, the least first.

    Runs that diverged are left out of the mean; an arm of which all did is left out altogether.

    Args:
        records: of any tasks.
        task: name of the one that is asked for.
        generator: of the bootstrap.
        split: on which the loss was taken.
    """
    losses: dict[Entry, list[float]] = {}
    for record in records:
        if record.task == task and np.isfinite(record.losses[split]):
            losses.setdefault(record.entry, []).append(record.losses[split])
    found = {
        entry: bootstrap_interval(np.array([values]), generator=generator)
        for entry, values in losses.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].estimate))


def score_data(summary: Summary) -> dict[Entry, Interval]:
    """Score on test of every arm of the field but the reference, the best first."""
    rows = [e for e in summary.field if e != summary.reference]
    found = {e: summary.of(e).scores["test"] for e in rows}
    return dict(sorted(found.items(), key=lambda item: item[1].estimate))


def profile_data(summary: Summary) -> dict[Entry, Band]:
    """Performance profiles: over a score, the share of runs that did better."""
    return {
        entry: Band(profile.thresholds, profile.share, profile.low, profile.high)
        for entry, profile in summary.profiles.items()
    }


def budget_data(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Band]:
    """Scores on test against the tuning budget, for arms that are shown.

    Args:
        summary: of a comparison.
        shown: one entry per arm; an arm with a single budget gives a band of one point.

    Returns:
        Bands over trials; nothing where no arm has more than one budget.
    """
    if not summary.by_budget:
        return {}
    found = {}
    for entry in shown:
        several = summary.by_budget.get(entry.arm, (summary.of(entry),))
        found[entry] = _band([e.entry.budget for e in several], [_score(e) for e in several])
    return found


def sensitivity_data(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Band]:
    """Scores on test against the start of the learning rate, over the reference's.

    Args:
        summary: of a comparison.
        shown: entries that are to be drawn; others with several starts come after them.
    """
    by_arm = {entry.arm: entry for entry in (*summary.field, *shown)}
    order = [entry.arm for entry in shown]
    found = {
        by_arm[s.arm]: _band(s.factors, s.scores) for s in summary.sensitivity if s.arm in by_arm
    }
    return dict(sorted(found.items(), key=lambda item: _place(order, item[0].arm)))


def task_slugs(tasks: Sequence[str]) -> dict[str, str]:
    """Names that can stand in an address and in a file name, by task; no two are equal.

    >>> task_slugs(["digits/0", "digits 0"])
    {'digits/0': 'digits-0', 'digits 0': 'digits-0-2'}
    """
    found: dict[str, str] = {}
    for task in tasks:
        plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in task).strip("-")
        slug, number = plain or "task", 1
        while slug in found.values():
            number += 1
            slug = f"{plain or 'task'}-{number}"
        found[task] = slug
    return found


def finite_ends(interval: Interval) -> tuple[float, float]:
    """The ends of an interval; of one that is unknown, the estimate itself.

    >>> finite_ends(Interval(1.0, -math.inf, math.inf))
    (1.0, 1.0)
    """
    low, high = interval.low, interval.high
    return (
        low if math.isfinite(low) else interval.estimate,
        high if math.isfinite(high) else interval.estimate,
    )


def _score(summary: EntrySummary) -> Interval:
    return summary.scores["test"]


def _band(places: Sequence[float], scores: Sequence[Interval]) -> Band:
    ends = [finite_ends(score) for score in scores]
    columns = (places, [s.estimate for s in scores], [a for a, _ in ends], [b for _, b in ends])
    return Band(*(np.array(column, dtype=np.float64) for column in columns))


def _place(order: Sequence[str], arm: str) -> int:
    return order.index(arm) if arm in order else len(order)
