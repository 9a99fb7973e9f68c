"""The record of a run: its decisions, and its schedule update by update.

A `History` is for people and tables. A `RecordedSchedule` can be replayed without the agent: as
torch's `LambdaLR`, or from a CSV file in whatever framework.
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pacesetter.agent.runs.folder import write_text
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.inner_models.lookup import require


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One step that the guard took to keep a run from breaking.

    Attributes:
        step: updates done when it was taken.
        kind: ``"lr_cut"``, ``"rollback"``, ``"handover"`` (to the plain decay, for good),
            ``"unfamiliar"`` (features unlike those of meta-training) or ``"overfitting"`` (the
            validation loss rose).
        detail: what was seen and what was done, for people to read.
    """

    step: int
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.step}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision of the agent.

    Attributes:
        step: updates done when it was taken.
        loss: mean training loss over the interval before it; NaN if it was never finite.
        features: what the policy saw, in the order of FEATURE_NAMES.
        action: what it answered, in the order of ACTION_NAMES, each in [-1, 1].
        lr: learning rate of the next update, first param group.
        lr_factor: the same over its start, common to all groups.
        momentum: from the next update on, first group that has any; None if none has.
        clip_threshold: of the next update's gradient norm; infinite if there is none.
        valid_loss: the latest validation loss of the interval before it; None if there was none.
        interventions: of the guard, since the decision before.
    """

    step: int
    loss: float
    features: tuple[float, ...]
    action: tuple[float, ...]
    lr: float
    lr_factor: float
    momentum: float | None
    clip_threshold: float
    valid_loss: float | None = None
    interventions: tuple[Intervention, ...] = ()

    def row(self) -> dict[str, Any]:
        """The decision as one row of a table, by the names in COLUMNS: numbers, None and text."""
        cells = {name: getattr(self, name) for name in _NUMBERS}
        cells.update(zip(_ACTIONS, self.action, strict=True))
        cells["interventions"] = "; ".join(map(str, self.interventions))
        cells.update(zip(FEATURE_NAMES, self.features, strict=True))
        return cells


_NUMBERS = ("step", "loss", "valid_loss", "lr", "lr_factor", "momentum", "clip_threshold")
_ACTIONS = tuple(f"action_{name}" for name in ACTION_NAMES)
COLUMNS = (*_NUMBERS, *_ACTIONS, "interventions", *FEATURE_NAMES)
"""Columns of the table of a history, in order."""

PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "valid_loss"),
    **{name.replace("_", " "): (name,) for name in ("lr", "momentum", "clip_threshold")},
}
"""Label of each panel and the curves in it, from top to bottom."""
LOGARITHMIC = ("lr", "clip threshold")
COLOURS = {
    "lr_cut": "#f0803c",
    "rollback": "#d1495b",
    "handover": "#8f2d56",
    "unfamiliar": "#7a5195",
    "overfitting": "#2f6f73",
}
OTHER_COLOUR = "#444444"


class History(Sequence[Decision]):
    """The decisions of one run, oldest first; reads like a list, prints as a table.

    Attributes:
        interventions_at_end: what the guard did at the horizon, where nothing is decided.
    """

    def __init__(self) -> None:
        self._decisions: list[Decision] = []
        self.interventions_at_end: list[Intervention] = []

    def __len__(self) -> int:
        return len(self._decisions)

    @overload
    def __getitem__(self, index: int) -> Decision: ...

    @overload
    def __getitem__(self, index: slice) -> list[Decision]: ...

    def __getitem__(self, index: int | slice) -> Decision | list[Decision]:
        return self._decisions[index]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._decisions)

    def __repr__(self) -> str:
        return f"<History of {len(self)} decisions>"

    def __str__(self) -> str:
        return "\n".join(_aligned([_HEADINGS, *map(_cells, self._told())])) if self else repr(self)

    def append(self, decision: Decision) -> None:
        """Adds the latest decision.

        What the guard did at a horizon that has moved since joins the first decision after it.
        """
        told = (*self.interventions_at_end, *decision.interventions)
        self._decisions.append(replace(decision, interventions=told))
        self.interventions_at_end = []

    @property
    def interventions(self) -> list[Intervention]:
        return [*(i for d in self for i in d.interventions), *self.interventions_at_end]

    def _told(self) -> list[Decision]:
        """The decisions, with what came after the last one joined to it."""
        if not (self._decisions and self.interventions_at_end):
            return self._decisions
        *earlier, last = self._decisions
        told = (*last.interventions, *self.interventions_at_end)
        return [*earlier, replace(last, interventions=told)]

    def table(self) -> list[dict[str, Any]]:
        """One row per decision, by the names in COLUMNS; ``pandas.DataFrame`` takes it as it is.

        What the guard did at the horizon is told in the last row.
        """
        return [d.row() for d in self._told()]

    def to_csv(self, path: str | PathLike[str]) -> Path:
        """Writes `table` with one line per decision, whole or not at all; makes folders."""
        write_text(Path(path), csv_text(self.table()))
        return Path(path)

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """What `plot` draws: steps and values of the losses, lr, momentum and clip threshold.

        Values that are unknown or infinite are left out.
        """
        curves = {}
        for name in ("loss", "valid_loss", "lr", "momentum", "clip_threshold"):
            points = [(d.step, getattr(d, name)) for d in self]
            kept = [(s, float(v)) for s, v in points if v is not None and math.isfinite(v)]
            curves[name] = ([s for s, _ in kept], [v for _, v in kept])
        return curves

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draws losses, learning rate, momentum and clip threshold against updates.

        Interventions are vertical lines through all panels; a legend tells their kinds apart.

        Args:
            path: of the image, its ending says which kind; folders on the way are made.

        Raises:
            ImportError: matplotlib is not installed.
        """
        make_figure = require("matplotlib.figure", extra="compare").Figure
        figure = make_figure(figsize=(7, 2 * len(PANELS)), layout="constrained")
        panels = figure.subplots(len(PANELS), 1, sharex=True)
        curves = self.curves()
        first = {i.kind: i for i in reversed(self.interventions)}
        for panel, (label, names) in zip(panels, PANELS.items(), strict=True):
            shown = {name: curves[name] for name in names if curves[name][0]}
            for name, (steps, values) in shown.items():
                panel.plot(steps, values, marker=".", label=name.replace("_", " "))
            values = [value for _, column in shown.values() for value in column]
            if label in LOGARITHMIC and values and min(values) > 0:
                panel.set_yscale("log")
            panel.set_ylabel(label)
            panel.grid(alpha=0.3)
            for i in self.interventions:
                told = panel is panels[0] and i is first[i.kind]
                kind = i.kind.replace("_", " ") if told else None
                colour = COLOURS.get(i.kind, OTHER_COLOUR)
                panel.axvline(i.step, color=colour, linewidth=1, linestyle="--", label=kind)
        if len(curves["valid_loss"][0]) or self.interventions:
            panels[0].legend(fontsize="small")
        panels[-1].set_xlabel("update")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return path

    def state_dict(self) -> dict[str, Any]:
        """All of it as JSON types: a round trip through JSON changes nothing."""
        tuples = ("features", "action", "interventions")
        decisions = [
            {name: list(v) if name in tuples else v for name, v in asdict(d).items()} for d in self
        ]
        return {"decisions": decisions, "at_end": [asdict(i) for i in self.interventions_at_end]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.interventions_at_end = [Intervention(**i) for i in state["at_end"]]
        self._decisions = []
        for d in state["decisions"]:
            tuples = {name: tuple(d[name]) for name in ("features", "action")}
            told = tuple(Intervention(**i) for i in d["interventions"])
            self._decisions.append(Decision(**{**d, **tuples, "interventions": told}))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_HEADINGS = ("step", "loss", "valid loss", "lr", "momentum", "clip at", *ACTION_NAMES, "")


def _cells(d: Decision) -> tuple[str, ...]:
    numbers = (d.loss, d.valid_loss, d.lr, d.momentum, d.clip_threshold)
    return (
        str(d.step),
        *("-" if value is None else f"{value:.4g}" for value in numbers),
        *(f"{value:+.2f}" for value in d.action),
        "; ".join(map(str, d.interventions)),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns to the right, but the last, which is text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = []
    for row in rows:
        *cells, text = (c.rjust(w) for c, w in zip(row, widths, strict=True))
        lines.append("  ".join([*cells, text]).rstrip())
    return lines


SCHEDULE_COLUMNS = ("step", "lr_factor", "lr", "momentum", "clip_threshold")
_SCHEDULE = ("lr_factors", "momenta", "clip_thresholds")


class RecordedSchedule:
    """Learning rate, momentum and clip threshold of every update, in three packed arrays.

    Attributes:
        lr_factors: learning rate over its start.
        momenta: NaN where there was none to control.
        clip_thresholds: of the gradient norm; infinite where nothing would have been clipped.

    >>> schedule = RecordedSchedule()
    >>> schedule.append(0.5, momentum=0.9)
    >>> schedule.append(0.25, momentum=0.8, clip_threshold=2.0)
    >>> [schedule.lr_lambda()(step) for step in range(4)]
    [0.5, 0.25, 0.25, 0.25]
    """

    def __init__(self) -> None:
        self.lr_factors = array("d")
        self.momenta = array("d")
        self.clip_thresholds = array("d")

    def __len__(self) -> int:
        return len(self.lr_factors)

    def __repr__(self) -> str:
        return f"<RecordedSchedule of {len(self)} updates>"

    def append(
        self, lr_factor: float, *, momentum: float | None, clip_threshold: float = math.inf
    ) -> None:
        self.lr_factors.append(lr_factor)
        self.momenta.append(math.nan if momentum is None else momentum)
        self.clip_thresholds.append(clip_threshold)

    def lr_lambda(self) -> Callable[[int], float]:
        """For torch's `LambdaLR`: from updates done to the learning rate over its start.

        It holds a copy; beyond the end the last value holds.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self:
            raise ValueError("the schedule is empty: there was no update to record yet")
        factors = array("d", self.lr_factors)
        return lambda step: factors[min(max(step, 0), len(factors) - 1)]

    def to_lambda_lr(self, optimizer: Optimizer) -> LambdaLR:
        """A scheduler of torch with these learning rates; momentum and clipping are not in it.

        The factors count from the learning rates that the optimizer has.
        """
        return LambdaLR(optimizer, self.lr_lambda())

    def to_csv(self, path: str | PathLike[str], *, base_lr: float) -> Path:
        """Writes one line per update, whole or not at all; numbers are exact; makes folders.

        The column ``lr`` is that of a run that started from `base_lr`.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(SCHEDULE_COLUMNS)
        rows = zip(self.lr_factors, self.momenta, self.clip_thresholds, strict=True)
        for step, (factor, momentum, threshold) in enumerate(rows):
            known = "" if math.isnan(momentum) else momentum
            writer.writerow((step, factor, factor * base_lr, known, threshold))
        write_text(Path(path), text.getvalue())
        return Path(path)

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> RecordedSchedule:
        """Reads what `to_csv` wrote; the column ``lr`` may be missing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, or a line cannot be used; the message names it.
        """
        schedule = cls()
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {*SCHEDULE_COLUMNS} - {"lr", *(reader.fieldnames or ())}
            if missing:
                raise ValueError(
                    f"{path}, line 1: expected the columns {', '.join(SCHEDULE_COLUMNS)}, but "
                    f"{', '.join(sorted(missing))} missing"
                )
            for row in reader:
                try:
                    schedule._append_row(row)
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        return schedule

    def _append_row(self, row: Mapping[str, str | None]) -> None:
        step, factor, threshold = (_cell(row, n) for n in ("step", "lr_factor", "clip_threshold"))
        momentum = _cell(row, "momentum") if row["momentum"] else None
        if step != len(self):
            raise ValueError(f"expected step {len(self)}, but got {row['step']}")
        if not 0 <= factor < math.inf:
            raise ValueError(f"lr_factor must be finite and not negative: {factor}")
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), but got {momentum}")
        if not threshold > 0:
            raise ValueError(f"clip_threshold must be positive, but got {threshold}")
        self.append(factor, momentum=momentum, clip_threshold=threshold)

    def state_dict(self) -> dict[str, Tensor]:
        """Three float64 tensors of shape (number of updates,)."""
        arrays = {name: getattr(self, name).tolist() for name in _SCHEDULE}
        return {name: torch.tensor(a, dtype=torch.float64) for name, a in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _SCHEDULE:
            setattr(self, name, array("d", state[name].tolist()))


def _cell(row: Mapping[str, str | None], name: str) -> float:
    text = row[name]
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{name} must be a number, but got {text!r}") from None
