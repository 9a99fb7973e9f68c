"""Records of runs: one for each run, in memory, in JSON (all of it) and in CSV (a row per run)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pacesetter.agent.runs.folder import write_json, write_text
from pacesetter.inner_models.task import SplitName

REPORTED_SPLITS: tuple[SplitName, ...] = ("train", "outer_valid", "test")
"""Splits on which the final loss is kept; `test` is read only here."""
VALID_POINTS = 10
"""Points of a validation curve, where a run has so many intervals."""
EXPLODED = 1000
"""A final loss of so many times that of the untrained model counts as diverged."""
CSV_COLUMNS = (
    *("task", "arm", "seed", "start_lr", "budget", "setting", "lr", "trials", "inner_steps"),
    *("wall_seconds", "untrained", *REPORTED_SPLITS, "best_outer_valid", "metric_name"),
    *(f"metric_{split}" for split in REPORTED_SPLITS),
    *("diverged", "failed"),
)
"""``setting`` is JSON; what a run does not have is empty."""


class Entry(NamedTuple):
    """A line of a table.

    Attributes:
        start_lr: the learning rate that it started from, where that is not its own to choose.
        budget: trials that it was given to choose a setting.
    """

    arm: str
    start_lr: float | None = None
    budget: int = 1


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run. Numbers that are not finite stand for a run that diverged or crashed.

    Attributes:
        seed: fixes initial weights and batch order; equal over arms.
        start_lr: learning rate that an agent started from, or that a baseline was given instead
            of its own; None for other baselines.
        lr: learning rate of the setting, at its peak.
        trials: settings that were tried to choose it; 1: none but this.
        inner_steps: inner steps spent, on tuning for this task and on this run.
        untrained: outer-valid loss before the first step.
        losses: final loss by split; of `REPORTED_SPLITS`, but for trials.
        steps: (K,), inner step at which each interval ended.
        curve: (K,), mean training loss of each interval.
        lrs: (K,), mean learning rate of each interval.
        clip_thresholds: (K,), gradient norm beyond which was clipped at the interval's end; NaN
            where nothing ever is.
        trajectory: (K, 3), an agent's log factor of lr, log(1 - momentum) and log clip ratio, each
            relative to its start; None for a baseline.
        budget: trials that the arm was given; 1 for an agent and for what is not tuned.
        setting: the chosen values by hyperparameter; empty for an agent.
        best: least loss that was seen on the way or at the end, by split; on outer_valid alone.
        metric_name: such as ``"accuracy"``; None: the task has none.
        metric: its final value by split; None: the task has none.
        valid_steps: at most `VALID_POINTS` inner steps, at which outer-valid was looked at.
        valid_curve: the loss on outer_valid then.
        wall_seconds: time of the run's training alone; siblings share theirs equally.
        failed: why the run crashed; None: it did not.
        exploded: why the run counts as diverged although its losses are finite; None: it does not.
    """

    task: str
    arm: str
    seed: int
    lr: float
    losses: dict[str, float]
    start_lr: float | None = None
    trials: int = 1
    inner_steps: int = 0
    untrained: float = math.nan
    steps: list[int] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    clip_thresholds: list[float] = field(default_factory=list)
    trajectory: list[list[float]] | None = None
    budget: int = 1
    setting: dict[str, float | str] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    metric_name: str | None = None
    metric: dict[str, float] | None = None
    valid_steps: list[int] = field(default_factory=list)
    valid_curve: list[float] = field(default_factory=list)
    wall_seconds: float = math.nan
    failed: str | None = None
    exploded: str | None = None

    @property
    def diverged(self) -> bool:
        return self.exploded is not None or not all(map(math.isfinite, self.losses.values()))

    @property
    def entry(self) -> Entry:
        return Entry(self.arm, self.start_lr, self.budget)

    def row(self) -> dict[str, Any]:
        whole = {**asdict(self), **self.losses, "diverged": int(self.diverged)}
        whole["setting"] = json.dumps(self.setting, sort_keys=True)
        whole["best_outer_valid"] = self.best.get("outer_valid")
        for split in REPORTED_SPLITS:
            whole[f"metric_{split}"] = None if self.metric is None else self.metric[split]
        return {name: "" if whole[name] is None else whole[name] for name in CSV_COLUMNS}


def mark_exploded(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Marks the runs that count as diverged although their losses are finite.

    Those with a final loss above `EXPLODED` times that of the untrained model, or, on a negative
    scale, times the depth of the best run. Their curves end where they exceed it.
    """
    scales: dict[str, list[float]] = {}
    for r in records:
        known = [abs(r.untrained), *(-loss for loss in r.losses.values())]
        scales.setdefault(r.task, []).extend(v for v in known if 0 < v < math.inf)
    limits = {task: EXPLODED * max(scale, default=math.inf) for task, scale in scales.items()}

    def marked(r: RunRecord) -> RunRecord:
        limit = limits[r.task]
        worst = max((v for v in r.losses.values() if limit < v < math.inf), default=None)
        if worst is None or r.failed is not None:
            return r

        def cut(values: Sequence[float]) -> list[float]:
            return [v if v <= limit else math.nan for v in values]

        return replace(
            r,
            curve=cut(r.curve),
            valid_curve=cut(r.valid_curve),
            best=dict(zip(r.best, cut([*r.best.values()]), strict=True)),
            exploded=f"its loss ended at {worst:.2g}, over {EXPLODED:,} times that before training",
        )

    return [marked(r) for r in records]


def least(losses: Sequence[float]) -> float:
    """The least of some losses; NaN where none is finite."""
    return min((loss for loss in losses if math.isfinite(loss)), default=math.nan)


def valid_points(steps: Sequence[int]) -> tuple[int, ...]:
    """At which of the ends of intervals outer-valid is looked at, the last among them.

    >>> valid_points(range(2, 41, 2))
    (4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
    >>> valid_points([7, 9])
    (7, 9)
    """
    count = min(len(steps), VALID_POINTS)
    return tuple(steps[-(-(k + 1) * len(steps) // count) - 1] for k in range(count))


_NUMBERS = ("untrained", "lr", "wall_seconds")
_TABLES = ("losses", "best", "metric")
_COLUMNS = ("curve", "lrs", "momenta", "clip_thresholds", "valid_curve")


def write_records(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes records as JSON, whole or not at all; what is not finite becomes null."""
    write_json(path, [_without_nan(asdict(record)) for record in records])


def read_records(path: Path) -> list[RunRecord]:
    """Reads what `write_records` wrote; ValueError where the file holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [RunRecord(**_with_nan(entry)) for entry in found]
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not hold records of runs: {error}") from error


def write_csv(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes one row per run, whole or not at all, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.row() for record in records)
    write_text(path, text.getvalue())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(entry: dict[str, Any]) -> dict[str, Any]:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    found = {**entry, **{name: number(entry[name]) for name in _NUMBERS}}
    found |= {name: [number(value) for value in entry[name]] for name in _COLUMNS}
    for name in _TABLES:
        if entry[name] is not None:
            found[name] = {key: number(value) for key, value in entry[name].items()}
    return found
