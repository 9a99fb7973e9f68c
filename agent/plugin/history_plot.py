"""Draws what a scheduler did over a run: apart from the record, which most jobs never draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pacesetter.agent.plugin.history import Intervention
from pacesetter.inner_models.lookup import require

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
