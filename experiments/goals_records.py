"""What is kept of a run by the measurement of the goals: in memory, in JSON, and a row of a CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pacesetter.agent.runs.folder import write_json, write_text
from pacesetter.inner_models.task import SplitName

SPLITS: tuple[SplitName, ...] = ("test", "outer_valid")
"""Splits on which the final loss is kept; the first is the one that goals are judged on."""
CSV_COLUMNS = (
    *("task", "arm", "start_lr", "seed", "steps", "setting", "untrained", *SPLITS),
    *("diverged", "wall_seconds", "mean_multiple", "peak_lr"),
)
"""``setting`` is JSON; what a run does not have is empty."""


@dataclass(frozen=True, kw_only=True)
class GoalRun:
    """One finished run. A loss that is not finite stands for a run that diverged.

    Attributes:
        task: its name.
        arm: such as ``"policy"`` or ``"tuned"``.
        start_lr: learning rate from which an agent started; None for AdamW by hand.
        seed: of initial weights and batch order.
        steps: inner steps that were taken.
        setting: hyperparameters of AdamW by hand; empty for an agent.
        untrained: outer-valid loss before the first step.
        losses: final loss on each of `SPLITS`.
        wall_seconds: time of its program, shared equally by the runs in it.
        mean_multiple: geometric mean over the steps of the learning rate over start and plain
            decay; NaN for AdamW by hand.
        peak_lr: greatest mean learning rate of an interval; NaN for AdamW by hand.
        trajectory: (K, 3), what `Replay` plays back; None where nobody will.
    """

    task: str
    arm: str
    start_lr: float | None
    seed: int
    steps: int
    untrained: float
    losses: dict[str, float]
    wall_seconds: float
    setting: dict[str, float | str] = field(default_factory=dict)
    mean_multiple: float = math.nan
    peak_lr: float = math.nan
    trajectory: list[list[float]] | None = None

    @property
    def diverged(self) -> bool:
        """Whether a final loss is not finite."""
        return not all(math.isfinite(loss) for loss in self.losses.values())

    def row(self) -> dict[str, Any]:
        """The run as a row of `CSV_COLUMNS`."""
        whole = {**asdict(self), **self.losses, "diverged": int(self.diverged)}
        whole["setting"] = json.dumps(self.setting, sort_keys=True) if self.setting else None
        row = {name: whole[name] for name in CSV_COLUMNS}
        return {name: "" if _absent(value) else value for name, value in row.items()}


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def to_json(run: GoalRun) -> dict[str, Any]:
    """A run in JSON types; what is not finite becomes null."""
    whole = asdict(run)
    for name in ("untrained", "mean_multiple", "peak_lr"):
        whole[name] = _known(whole[name])
    whole["losses"] = {split: _known(loss) for split, loss in run.losses.items()}
    return whole


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def from_json(entry: dict[str, Any]) -> GoalRun:
    """The run that `to_json` wrote.

    Raises:
        KeyError: the entry is something else.
        TypeError: the same.
    """
    fields = dict(entry)
    for name in ("untrained", "mean_multiple", "peak_lr"):
        fields[name] = math.nan if fields[name] is None else fields[name]
    losses: dict[str, float | None] = fields["losses"]
    fields["losses"] = {k: math.nan if v is None else v for k, v in losses.items()}
    return GoalRun(**fields)


def write_runs(path: Path, runs: Sequence[GoalRun]) -> None:
    """Writes runs as JSON, whole or not at all."""
    write_json(path, [to_json(run) for run in runs])


def read_runs(path: Path) -> list[GoalRun]:
    """Reads what `write_runs` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return [from_json(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold runs of the goals: {error!r}") from error


def write_csv(path: Path, runs: Sequence[GoalRun]) -> None:
    """Writes one row per run, whole or not at all, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(run.row() for run in runs)
    write_text(path, text.getvalue())
