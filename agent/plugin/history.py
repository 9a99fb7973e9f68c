"""What a scheduler decided, decision by decision: to look at, to keep, to draw."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, overload

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
            ``"unfamiliar"`` (features unlike those of meta-training), ``"overfitting"`` (the
            validation loss rose) or ``"skipped"`` (updates).
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
        """Adds the latest decision."""
        self._decisions.append(decision)

    @property
    def interventions(self) -> list[Intervention]:
        """All that the guard did, oldest first."""
        return [*(i for d in self for i in d.interventions), *self.interventions_at_end]

    def _told(self) -> list[Decision]:
        """The decisions as tables tell of them, those without a row of their own included."""
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
        """Writes `table` with one line per decision, whole or not at all.

        Args:
            path: of the file; folders on the way are made.

        Returns:
            The path.
        """
        path = Path(path)
        write_text(path, csv_text(self.table()))
        return path

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """What `plot` draws: steps and values of the losses, lr, momentum and clip threshold.

        Values that are unknown or infinite are left out.
        """
        curves = {}
        for name in ("loss", "valid_loss", "lr", "momentum", "clip_threshold"):
            points = [(d.step, getattr(d, name)) for d in self]
            kept = [(s, float(v)) for s, v in points if v is not None and abs(v) < float("inf")]
            curves[name] = ([s for s, _ in kept], [v for _, v in kept])
        return curves

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draws losses, learning rate, momentum and clip threshold against steps.

        Interventions are vertical lines; a legend tells their kinds apart.

        Args:
            path: of the image; its ending says which kind.

        Returns:
            The path.

        Raises:
            ImportError: matplotlib is not installed.
        """
        # Imported when asked for: most jobs never draw.
        return draw_history(self.curves(), interventions=self.interventions, path=Path(path))

    def state_dict(self) -> dict[str, Any]:
        """All of it as JSON types: a round trip through JSON changes nothing."""
        decisions = [
            {
                **asdict(d),
                "features": list(d.features),
                "action": list(d.action),
                "interventions": [asdict(i) for i in d.interventions],
            }
            for d in self
        ]
        return {"decisions": decisions, "at_end": [asdict(i) for i in self.interventions_at_end]}

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Restores what `state_dict` returned; in its first version, the decisions alone."""
        if not isinstance(state, Mapping):
            state = {"decisions": state, "at_end": ()}
        self.interventions_at_end = [Intervention(**i) for i in state["at_end"]]
        self._decisions = [
            Decision(
                **{
                    **d,
                    "features": tuple(d["features"]),
                    "action": tuple(d["action"]),
                    "interventions": tuple(Intervention(**i) for i in d.get("interventions", ())),
                }
            )
            for d in state["decisions"]
        ]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a history's table as CSV, with a line of headings; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_HEADINGS = ("step", "loss", "valid loss", "lr", "momentum", "clip at", *ACTION_NAMES, "")


def _cells(d: Decision) -> tuple[str, ...]:
    """One line of the printed table; what the guard did comes last, in full."""
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


PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "valid_loss"),
    "lr": ("lr",),
    "momentum": ("momentum",),
    "clip threshold": ("clip_threshold",),
}
"""Label of each panel and the curves in it, from top to bottom."""
LOGARITHMIC = ("lr", "clip threshold")
COLOURS = {
    "lr_cut": "#f0803c",
    "rollback": "#d1495b",
    "handover": "#8f2d56",
    "unfamiliar": "#7a5195",
    "overfitting": "#2f6f73",
    "skipped": "#b8a100",
}
OTHER_COLOUR = "#444444"


def draw_history(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    interventions: Sequence[Intervention],
    path: Path,
) -> Path:
    """Draws the curves of a history, one panel above the other, against updates.

    Args:
        curves: steps and values by name, from `History.curves`.
        interventions: drawn as vertical lines through all panels.
        path: of the image; its ending says which kind. Folders on the way are made.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(7, 2 * len(PANELS)), layout="constrained"
    )
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for panel, (label, names) in zip(panels, PANELS.items(), strict=True):
        shown = {name: curves[name] for name in names if curves[name][0]}
        for name, (steps, values) in shown.items():
            panel.plot(steps, values, marker=".", label=name.replace("_", " "))
        values = [value for _, column in shown.values() for value in column]
        if label in LOGARITHMIC and values and min(values) > 0:
            panel.set_yscale("log")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        _mark(panel, interventions, named=panel is panels[0])
    if len(curves["valid_loss"][0]) or interventions:
        panels[0].legend(fontsize="small")
    panels[-1].set_xlabel("update")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _mark(panel: Any, interventions: Sequence[Intervention], *, named: bool) -> None:
    """A line for each intervention, the kinds named once."""
    seen: set[str] = set()
    for i in interventions:
        label = i.kind.replace("_", " ") if named and i.kind not in seen else None
        seen.add(i.kind)
        colour = COLOURS.get(i.kind, OTHER_COLOUR)
        panel.axvline(i.step, color=colour, linewidth=1, linestyle="--", label=label)
