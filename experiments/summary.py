"""From records of runs to what they say: every arm against the reference, the agent against each.

Pure computation; tables and figures only lay out what is found here. 'Better' and 'worse' are said
where the 95 % interval of the paired difference excludes zero, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.baselines import POLICY, REFERENCE
from pacesetter.experiments.records import Entry, RunRecord
from pacesetter.experiments.statistics import Interval, bootstrap_interval, comparable

FloatArray = NDArray[np.float64]

SCORED_SPLITS: tuple[Literal["test", "outer_valid"], ...] = ("test", "outer_valid")
"""Splits on which arms are compared, the headline's first."""


@dataclass(frozen=True)
class EntrySummary:
    """One arm, from one start, over all tasks and seeds.

    Attributes:
        entry: which.
        label: how tables call it.
        scores: by split, the mean over tasks of log(loss / the reference's loss), with interval.
        trials: mean settings tried per task.
        inner_steps: inner steps spent, tuning included, over all tasks and seeds.
        diverged: how many runs diverged.
        num_runs: of how many.
    """

    entry: Entry
    label: str
    scores: Mapping[str, Interval]
    trials: float
    inner_steps: int
    diverged: int
    num_runs: int


@dataclass(frozen=True)
class Difference:
    """The agent against a rival, in pairs of equal task and seed.

    Attributes:
        ours: the agent's entry.
        rival: the other.
        scores: by split, the mean over tasks of log(our loss / the rival's), with interval.
    """

    ours: Entry
    rival: Entry
    scores: Mapping[str, Interval]

    def finding(self, split: str = "test") -> Literal["better", "worse", "no clear difference"]:
        """What the interval allows to say of the agent."""
        score = self.scores[split]
        if score.below_zero:
            return "better"
        return "worse" if score.above_zero else "no clear difference"


@dataclass(frozen=True)
class Summary:
    """What a comparison found.

    Attributes:
        tasks: names.
        seeds: of the report.
        entries: every arm and start, in the order of the records.
        differences: every entry of the agent against every other arm that fits: those without a
            start, and those from the same start.
        reference: what scores are relative to.
        relative: whether scores are logs of ratios on every task; elsewhere some task has losses
            that are not positive, and its differences are over their spread.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    entries: tuple[EntrySummary, ...]
    differences: tuple[Difference, ...]
    reference: Entry
    relative: bool

    @property
    def labels(self) -> dict[Entry, str]:
        """Labels by entry."""
        return {e.entry: e.label for e in self.entries}


def entry_label(entry: Entry, labels: Mapping[str, str]) -> str:
    """How tables call an arm from a start.

    >>> entry_label(Entry("policy", 1e-3), {"policy": "policy"})
    'policy from 0.001'
    """
    label = labels.get(entry.arm, entry.arm)
    return label if entry.start_lr is None else f"{label} from {entry.start_lr:g}"


def summarise(
    records: Sequence[RunRecord],
    *,
    generator: np.random.Generator,
    labels: Mapping[str, str] | None = None,
    ours: Sequence[str] = (POLICY.name,),
    reference: str = REFERENCE,
) -> Summary:
    """Scores every arm.

    Args:
        records: one per task, seed, arm and start; none missing.
        generator: of the bootstrap.
        labels: by name of the arm; an arm without one goes by its name.
        ours: names of the agent's arms, held against all others.
        reference: name of the arm that scores are relative to; it has no start.

    Raises:
        ValueError: a run is missing or there twice, or the reference was not run.
    """
    table = {(r.entry, r.task, r.seed): r for r in records}
    entries = tuple(dict.fromkeys(r.entry for r in records))
    tasks = tuple(dict.fromkeys(r.task for r in records))
    seeds = tuple(dict.fromkeys(r.seed for r in records))
    if len(table) != len(records) or len(table) != len(entries) * len(tasks) * len(seeds):
        raise ValueError(
            f"need one run for each of {len(entries)} arms, {len(tasks)} tasks and {len(seeds)} "
            f"seeds, but got {len(records)}, of which {len(table)} differ"
        )
    if Entry(reference) not in entries:
        raise ValueError(f"the reference {reference!r} is not among the arms that were run")
    grid = [[[table[e, t, s] for s in seeds] for t in tasks] for e in entries]
    untrained = np.array([np.mean([r.untrained for r in row]) for row in grid[0]])
    values = {
        split: comparable(
            np.array([[[r.losses[split] for r in row] for row in rows] for rows in grid]),
            untrained=untrained,
        )
        for split in SCORED_SPLITS
    }
    row_of = {entry: i for i, entry in enumerate(entries)}
    # The same resamples for every pair: a pair has one interval, however often it is asked for.
    resamples = int(generator.integers(2**63))

    def against(one: Entry, other: Entry) -> dict[str, Interval]:
        return {
            split: bootstrap_interval(
                value[row_of[one]] - value[row_of[other]],
                generator=np.random.default_rng(resamples),
            )
            for split, value in values.items()
        }

    summaries = []
    for entry, rows in zip(entries, grid, strict=True):
        runs = [record for row in rows for record in row]
        summaries.append(
            EntrySummary(
                entry=entry,
                label=entry_label(entry, labels or {}),
                scores=against(entry, Entry(reference)),
                trials=float(np.mean([r.trials for r in runs])),
                inner_steps=_inner_steps(rows),
                diverged=sum(r.diverged for r in runs),
                num_runs=len(runs),
            )
        )
    differences = [
        Difference(mine, rival, against(mine, rival))
        for mine in entries
        if mine.arm in ours
        for rival in entries
        if rival != mine and rival.start_lr in (None, mine.start_lr)
    ]
    positive = [loss > 0 for r in records for loss in r.losses.values() if math.isfinite(loss)]
    return Summary(
        tasks, seeds, tuple(summaries), tuple(differences), Entry(reference), all(positive)
    )


def _inner_steps(rows: Sequence[Sequence[RunRecord]]) -> int:
    """Inner steps of all runs, with each task's tuning, which its seeds share, counted once."""
    total = 0
    for row in rows:
        tuning = row[0].inner_steps - row[0].steps[-1]
        total += tuning + sum(r.steps[-1] for r in row)
    return total


def verdict(summary: Summary) -> list[str]:
    """What can be said of the agent on the test split: a sentence for each start."""
    sentences = []
    unit = "log ratio" if summary.relative else "log ratio, or difference over its spread"
    for entry in dict.fromkeys(d.ours for d in summary.differences):
        rows = [d for d in summary.differences if d.ours == entry]
        found: dict[str, list[str]] = {}
        for row in rows:
            rival = summary.labels[row.rival]
            if entry.start_lr is not None:
                rival = rival.removesuffix(f" from {entry.start_lr:g}")
            found.setdefault(row.finding(), []).append(rival)
        parts = [
            f"{word}: {', '.join(found[key])}"
            for key, word in (
                ("better", "better than"),
                ("no clear difference", "not clearly different from"),
                ("worse", "worse than"),
            )
            if key in found
        ]
        score = next(e.scores["test"] for e in summary.entries if e.entry == entry)
        what = f"test loss {_percent(score.estimate)} than" if summary.relative else "score against"
        sentences.append(
            f"{capital(summary.labels[entry])}: {what} {summary.labels[summary.reference]}'s "
            f"({unit} {signed_interval(score)}, mean over tasks); {'; '.join(parts)}."
        )
    return sentences


def signed_interval(interval: Interval) -> str:
    """An interval in words.

    >>> signed_interval(Interval(-0.1, -0.2, 0.05))
    '-0.100 [-0.200, +0.050]'
    """
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def capital(text: str) -> str:
    """The text with its first letter in upper case, and no other letter changed."""
    return text[:1].upper() + text[1:]


def _percent(log_ratio: float) -> str:
    change = 100 * math.expm1(log_ratio)
    return f"{abs(change):.2g} % {'lower' if change < 0 else 'higher'}"
