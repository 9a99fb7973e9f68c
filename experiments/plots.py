"""Figures of a comparison: for each a function that computes the data and one that draws it.

Figures are single panels, narrow enough to be read on a phone, returned as SVG to be put into a
page. matplotlib is imported when a figure is drawn; its global state is not touched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.records import Entry, RunRecord
from pacesetter.experiments.statistics import Interval, bootstrap_interval, quantile_band
from pacesetter.experiments.summary import Summary
from pacesetter.inner_models.extras import require

FloatArray = NDArray[np.float64]
Quantity = Literal["curve", "lrs", "momenta", "clip_thresholds"]

WIDTH = 4.2
"""Inches: the text of a figure that fills a phone's screen can still be read."""
COLOURS = ("#d1495b", "#f0803c", "#8f2d56", "#00798c", "#6a994e", "#30638e", "#b8a100", "#7a5195")
REFERENCE_COLOUR = "#444444"
OTHERS_COLOUR = "#a8a8a8"


@dataclass(frozen=True)
class Band:
    """Median and quartiles over seeds, against inner steps; all (K,)."""

    steps: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray


def band_data(records: Sequence[RunRecord], *, task: str, quantity: Quantity) -> dict[Entry, Band]:
    """What happened over the steps of a task, by arm and start.

    Args:
        records: of any tasks.
        task: name of the one that is asked for.
        quantity: which of the histories of a record.

    Returns:
        Median and quartiles over seeds; nothing for an arm that never has the quantity.
    """
    runs: dict[Entry, list[RunRecord]] = {}
    for record in records:
        if record.task == task:
            runs.setdefault(record.entry, []).append(record)
    bands = {}
    for entry, group in runs.items():
        values = np.array([getattr(record, quantity) for record in group], dtype=np.float64)
        if np.isfinite(values).any():
            steps = np.array(group[0].steps, dtype=np.float64)
            bands[entry] = Band(steps, *quantile_band(values))
    return bands


def final_data(
    records: Sequence[RunRecord],
    *,
    task: str,
    generator: np.random.Generator,
    split: str = "test",
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


def score_data(summary: Summary, split: str = "test") -> dict[Entry, Interval]:
    """Score of every arm but the reference, the best first."""
    found = {e.entry: e.scores[split] for e in summary.entries if e.entry != summary.reference}
    return dict(sorted(found.items(), key=lambda item: item[1].estimate))


def shown_entries(summary: Summary, ours: Sequence[str], *, rivals: int = 4) -> list[Entry]:
    """Arms whose curves are drawn: the agent's, the reference, and the best other baselines."""
    first = [e.entry for e in summary.entries if e.entry.arm in ours]
    rest = [e for e in score_data(summary) if e.start_lr is None and e not in first]
    return [*first, summary.reference, *rest[:rivals]]


def colours(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, str]:
    """A colour of its own for every arm that is shown; grey for the reference and the rest."""
    found = dict.fromkeys((e.entry for e in summary.entries), OTHERS_COLOUR)
    found |= zip((e for e in shown if e != summary.reference), cycle(COLOURS))
    return {**found, summary.reference: REFERENCE_COLOUR}


def draw_bands(
    bands: Mapping[Entry, Band],
    *,
    colour: Mapping[Entry, str],
    ylabel: str,
    log: bool,
    dashed: Sequence[Entry] = (),
) -> str:
    """Draws lines with bands against inner steps, as SVG.

    Args:
        bands: what to draw.
        colour: by entry.
        ylabel: of the axis.
        log: whether the axis is logarithmic, if all values allow it.
        dashed: entries whose line is dashed.
    """
    figure, axes = _panel(height=2.7)
    for entry, band in bands.items():
        style: Any = (0, (4, 2)) if entry in dashed else "-"
        axes.plot(band.steps, band.median, color=colour[entry], linewidth=1.5, linestyle=style)
        axes.fill_between(
            band.steps, band.low, band.high, color=colour[entry], alpha=0.18, linewidth=0
        )
    lows = [np.nanmin(band.low) for band in bands.values()]
    if log and lows and min(lows) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("inner step")
    axes.set_ylabel(ylabel)
    return _svg(figure)


def draw_intervals(
    intervals: Mapping[Entry, Interval],
    *,
    labels: Mapping[Entry, str],
    colour: Mapping[Entry, str],
    xlabel: str,
    zero: str | None = None,
) -> str:
    """Draws a line per arm with its estimate and interval, labels above the lines, as SVG.

    Args:
        intervals: what to draw, from top to bottom.
        labels: by entry.
        colour: by entry.
        xlabel: of the axis.
        zero: what the zero stands for, drawn as a line; None: no line.
    """
    figure, axes = _panel(height=0.7 + 0.36 * max(len(intervals), 1))
    for row, (entry, found) in enumerate(intervals.items()):
        axes.plot([found.low, found.high], [row, row], color=colour[entry], linewidth=2.5)
        axes.plot([found.estimate], [row], marker="o", markersize=5, color=colour[entry])
        axes.text(0.01, row - 0.28, labels[entry], transform=axes.get_yaxis_transform(), fontsize=8)
    if zero is not None:
        axes.axvline(0.0, color=REFERENCE_COLOUR, linewidth=1, linestyle=(0, (4, 2)))
        xlabel = f"{xlabel}\n0: {zero}"
    axes.set_ylim(len(intervals) - 0.5, -0.75)
    axes.set_yticks([])
    axes.set_xlabel(xlabel)
    return _svg(figure)


def _panel(*, height: float) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(WIDTH, height), layout="constrained"
    )
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as an element for an HTML page, without prolog, metadata or foreign names."""
    matplotlib = require("matplotlib", extra="compare")
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: it can be searched and is drawn in the reader's own font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pacesetter"}):
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    return re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
