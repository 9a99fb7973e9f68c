"""The goals as numbers: what is measured, with its interval, and whether it is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.statistics import Interval, interquartile_mean
from pacesetter.experiments.goals_baselines import CALIBRATED, DEFAULT, TUNED
from pacesetter.experiments.goals_losses import Losses, log_ratio, normalised, paired_log_ratio
from pacesetter.experiments.goals_policy import (
    ADAPTIVE_STARTS,
    POLICY,
    RIGHT_START,
    SEEING,
    SEEING_SHORT,
    SHORT,
    TIMED,
    WRONG_STARTS,
)
from pacesetter.experiments.goals_records import SPLITS
from pacesetter.experiments.goals_rivals import BEST_MULTIPLE, OWN_MULTIPLE, REPLAY, STRICT
from pacesetter.inner_models.task import SplitName

FloatArray = NDArray[np.float64]
Unit = Literal["score", "log ratio", "percent", "count", "times"]

LEAST_SCORE = 1.15
"""Goal 1: interquartile mean of the normalised scores."""
TOLERANCE = {10: 0.05, 100: 0.15}
"""Goal 3: by how much the loss may grow from a start that is so many times off."""
WORST = 0.10
"""Goal 3: by how much the loss may exceed the default's on any task."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One number with its goal.

    Attributes:
        group: which of the goals it belongs to.
        name: what it is.
        values: by split; None: it cannot be said.
        unit: of the values; a percent is given as the log of its ratio.
        goal: the bound of the values, in their unit; None: there is none.
        at_least: whether the bound is one from below.
        certain: whether the whole interval has to reach it.
        remark: such as the tasks at fault.
    """

    group: str
    name: str
    values: dict[SplitName, Interval | None]
    unit: Unit
    goal: float | None = None
    at_least: bool = False
    certain: bool = False
    remark: str = ""

    def reached(self, split: SplitName = SPLITS[0], *, whole: bool | None = None) -> bool | None:
        """Whether the goal is reached on a split; None: there is none, or no value.

        Args:
            split: which.
            whole: whether the whole interval has to reach it; None: as the goal says.
        """
        value = self.values[split]
        if self.goal is None or value is None:
            return None
        if self.certain if whole is None else whole:
            return value.low >= self.goal if self.at_least else value.high < self.goal
        return value.estimate >= self.goal if self.at_least else value.estimate <= self.goal


BySplit = Mapping[SplitName, Losses]


def criteria(losses: BySplit) -> list[Criterion]:
    """All that is measured, in the order of the goals.

    Args:
        losses: by split, those in `SPLITS`.
    """
    return [*_final(losses), *_speed(losses), *_robustness(losses), *_adaptivity(losses)]


def _final(losses: BySplit) -> list[Criterion]:
    found = []
    for arm in (POLICY, SEEING):
        found.append(
            Criterion(
                group="1 final loss",
                name=f"{arm}: normalised score (0 default, 1 tuned)",
                values={s: _score(of, arm) for s, of in losses.items()},
                unit="score",
                goal=LEAST_SCORE,
                at_least=True,
                remark=_left_out(losses[SPLITS[0]]),
            )
        )
        found += [
            Criterion(
                group="1 final loss",
                name=f"{arm}: mean log ratio to {rival}",
                values={
                    s: of.interval(_mean_paired, of.of(arm, RIGHT_START), of.of(rival), of.scale)
                    for s, of in losses.items()
                },
                unit="log ratio",
            )
            for rival in (DEFAULT, TUNED)
        ]
    return found


def _score(of: Losses, arm: str) -> Interval | None:
    arrays = (of.of(arm, RIGHT_START), of.of(DEFAULT), of.of(TUNED), of.learned)
    return of.interval(lambda *a: interquartile_mean(normalised(*a)), *arrays, rows=of.counts)


def _left_out(of: Losses) -> str:
    gains = zip(of.tasks, of.gain, of.counts, strict=True)
    small = [f"{task} ({gain:+.1%})" for task, gain, counts in gains if not counts]
    return f"left out, tuning gains less than 2 %: {', '.join(small)}" if small else ""


def _mean_paired(ours: FloatArray, theirs: FloatArray, scale: FloatArray) -> FloatArray:
    return np.asarray(paired_log_ratio(ours, theirs, scale).mean(axis=(-2, -1)))


def _speed(losses: BySplit) -> list[Criterion]:
    def ratio(*arrays: FloatArray) -> FloatArray:
        return interquartile_mean(log_ratio(*arrays))

    found = [
        Criterion(
            group="2 speed",
            name=f"{arm}: log ratio to tuned with all steps, interquartile mean",
            values={
                s: of.interval(ratio, of.of(arm, RIGHT_START), of.of(TUNED), of.scale)
                for s, of in losses.items()
            },
            unit="log ratio",
            goal=0.0,
        )
        for arm in (SHORT, SEEING_SHORT)
    ]
    of = losses[SPLITS[0]]

    def times(ours: FloatArray, theirs: FloatArray) -> FloatArray:
        return np.asarray(np.log(ours / theirs).mean(axis=(-2, -1)))

    # Runs of a program share its time: there is one number per task.
    base = of.seconds(TIMED)[:, :1]
    for arm in (SHORT, SEEING_SHORT):
        value = of.interval(times, of.seconds(arm, RIGHT_START)[:, :1], base)
        found.append(
            Criterion(
                group="2 speed",
                name=f"{arm}: time per inner step over AdamW's, programs of all seeds",
                values=dict.fromkeys(SPLITS, value),
                unit="times",
            )
        )
    return found


def _robustness(losses: BySplit) -> list[Criterion]:
    found = []
    for start in WRONG_STARTS:
        off = round(max(start / RIGHT_START, RIGHT_START / start))
        way = "high" if start > RIGHT_START else "low"
        growth = {s: of.against(POLICY, POLICY, start, RIGHT_START) for s, of in losses.items()}
        for what in ("mean", "worst task"):
            values = {
                s: of.interval(
                    partial(_over_tasks, what=what),
                    of.of(POLICY, start),
                    of.of(POLICY, RIGHT_START),
                    of.scale,
                )
                for s, of in losses.items()
            }
            worst = losses[SPLITS[0]].tasks[int(growth[SPLITS[0]].argmax())]
            within = int((growth[SPLITS[0]] <= np.log1p(TOLERANCE[off])).sum())
            tally = f"{within} of {len(growth[SPLITS[0]])} tasks within {TOLERANCE[off]:.0%}"
            found.append(
                Criterion(
                    group="3 robustness",
                    name=f"start {off} times too {way}: loss over the right start's, {what}",
                    values=values,
                    unit="percent",
                    goal=float(np.log1p(TOLERANCE[off])),
                    remark=tally if what == "mean" else f"on test: {worst}",
                )
            )
    return [*found, *_failures(losses)]


def _over_tasks(ours: FloatArray, theirs: FloatArray, scale: FloatArray, what: str) -> FloatArray:
    ratios = log_ratio(ours, theirs, scale)
    return np.asarray(ratios.mean(axis=-1) if what == "mean" else ratios.max(axis=-1))


def _failures(losses: BySplit) -> list[Criterion]:
    starts = sorted({RIGHT_START, *WRONG_STARTS, *ADAPTIVE_STARTS})
    arms = {POLICY: starts, SEEING: [RIGHT_START]}
    found = []
    for arm, from_starts in arms.items():
        counts: dict[SplitName, Interval | None] = {
            s: _count(sum(int((of.lost(arm, x) & ~of.lost(DEFAULT)).sum()) for x in from_starts))
            for s, of in losses.items()
        }
        runs = len(from_starts) * losses[SPLITS[0]].of(DEFAULT).size
        found.append(
            Criterion(
                group="3 robustness",
                name=f"{arm}: runs that diverge where the default does not",
                values=counts,
                unit="count",
                goal=0.0,
                remark=f"of {runs} runs, all starts" if len(from_starts) > 1 else f"of {runs} runs",
            )
        )
    for arm in arms:
        ratios = {s: of.against(arm, DEFAULT, RIGHT_START, None) for s, of in losses.items()}
        found.append(
            Criterion(
                group="3 robustness",
                name=f"{arm}: tasks more than {WORST:.0%} worse than the default",
                values={s: _count(int((r > np.log1p(WORST)).sum())) for s, r in ratios.items()},
                unit="count",
                goal=0.0,
                remark="; ".join(
                    f"{s}: {', '.join(bad)}"
                    for s, of in losses.items()
                    if (bad := _named(of.tasks, ratios[s], np.log1p(WORST)))
                ),
            )
        )
    return found


def _named(tasks: Sequence[str], ratios: FloatArray, bound: float) -> list[str]:
    pairs = zip(tasks, ratios, strict=True)
    return [f"{task} ({np.expm1(ratio):+.0%})" for task, ratio in pairs if ratio > bound]


def _count(number: int) -> Interval:
    return Interval(float(number), -np.inf, np.inf)


def _adaptivity(losses: BySplit) -> list[Criterion]:
    listing = ", ".join(f"{start:g}" for start in ADAPTIVE_STARTS)
    rivals: list[tuple[str, str, Sequence[float | None], bool]] = [
        (f"(a) {REPLAY} of meta-train", REPLAY, (RIGHT_START,), True),
        (f"(a') {STRICT}, of these tasks", STRICT, (RIGHT_START,), True),
    ]
    for letter, arm in (("(b)", OWN_MULTIPLE), ("(b')", BEST_MULTIPLE)):
        rivals.append((f"{letter} {arm}, starts {listing}", arm, ADAPTIVE_STARTS, True))
        rivals += [(f"{letter} {arm}, start {x:g}", arm, (x,), False) for x in ADAPTIVE_STARTS]
    rivals.append(("(c) calibrated AdamW cosine", CALIBRATED, (None,), True))
    found = []
    for name, arm, from_starts, judged in rivals:
        values: dict[SplitName, Interval | None] = {}
        for split, of in losses.items():
            pairs = [
                paired_log_ratio(
                    of.of(POLICY, RIGHT_START if start is None else start),
                    of.of(arm, start),
                    of.scale,
                )
                for start in from_starts
            ]
            values[split] = of.interval(_mean_of_runs, np.mean(pairs, axis=0))
        found.append(
            Criterion(
                group="4 adaptivity",
                name=f"policy against {name}: mean log ratio",
                values=values,
                unit="log ratio",
                goal=0.0 if judged else None,
                certain=True,
            )
        )
    return found


def _mean_of_runs(values: FloatArray) -> FloatArray:
    return np.asarray(values.mean(axis=(-2, -1)))
