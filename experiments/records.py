"""What is kept of a run: one record, in memory, in JSON (all of it) and in CSV (a row per run)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pacesetter.agent.run_folder import write_json, write_text
from pacesetter.inner_models.task import SplitName

REPORTED_SPLITS: tuple[SplitName, ...] = ("train", "outer_valid", "test")
"""Splits on which the final loss is kept; `test` is read only here."""
CSV_COLUMNS = (
    *("task", "arm", "seed", "start_lr", "lr", "trials", "inner_steps"),
    *("untrained", *REPORTED_SPLITS, "diverged"),
)


class Entry(NamedTuple):
    """A line of a table: an arm and, where it has one, the learning rate that it started from."""

    arm: str
    start_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run. Numbers that are not finite stand for a run that diverged.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seed: fixes initial weights and batch order; equal over arms.
        start_lr: learning rate that an agent started from; None for a baseline.
        lr: learning rate in effect: chosen by tuning, calibrated, default or the start.
        trials: settings that were tried to choose it; 1: none but this.
        inner_steps: inner steps spent, on tuning for this task and on this run.
        untrained: outer-valid loss before the first step.
        losses: final loss on each of `REPORTED_SPLITS`.
        steps: (K,), inner step at which each interval ended.
        curve: (K,), mean training loss of each interval.
        lrs: (K,), mean learning rate of each interval.
        momenta: (K,), momentum in each interval.
        clip_thresholds: (K,), gradient norm beyond which was clipped at the interval's end; NaN
            where nothing ever is.
        trajectory: (K, 3), an agent's log factor of lr, log(1 - momentum) and log clip ratio, each
            relative to its start; None for a baseline.
    """

    task: str
    arm: str
    seed: int
    start_lr: float | None
    lr: float
    trials: int
    inner_steps: int
    untrained: float
    losses: dict[str, float]
    steps: list[int]
    curve: list[float]
    lrs: list[float]
    momenta: list[float]
    clip_thresholds: list[float]
    trajectory: list[list[float]] | None = None

    @property
    def diverged(self) -> bool:
        """Whether a final loss is not finite."""
        return not all(math.isfinite(loss) for loss in self.losses.values())

    @property
    def entry(self) -> Entry:
        """The line of a table that this run belongs to."""
        return Entry(self.arm, self.start_lr)

    def row(self) -> dict[str, Any]:
        """The run as a row of `CSV_COLUMNS`."""
        whole = {**asdict(self), **self.losses, "diverged": int(self.diverged)}
        whole["start_lr"] = "" if self.start_lr is None else self.start_lr
        return {name: whole[name] for name in CSV_COLUMNS}


_MAYBE_BROKEN = ("curve", "clip_thresholds")


def write_records(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes records as JSON, whole or not at all; what is not finite becomes null."""
    write_json(path, [_without_nan(asdict(record)) for record in records])


def read_records(path: Path) -> list[RunRecord]:
    """Reads what `write_records` wrote.

    Raises:
        ValueError: the file holds something else.
    """
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

    entry = {**entry, "untrained": number(entry["untrained"])}
    entry["losses"] = {name: number(loss) for name, loss in entry["losses"].items()}
    for name in _MAYBE_BROKEN:
        entry[name] = [number(value) for value in entry[name]]
    return entry
