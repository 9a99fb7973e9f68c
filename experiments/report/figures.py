"""Draws the figures of a comparison, each once, for the page and for files alike.

What is drawn is computed in `plots`; `drawing` has what becomes of it. matplotlib is
imported when something is drawn; its global state is not touched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.report.drawing import Drawing, line_style
from pacesetter.experiments.report.looks import GRID, INK, LOOKS, MUTED, REFERENCE_LOOK, REST, Look
from pacesetter.experiments.report.plots import Band, finite_ends
from pacesetter.experiments.runs.records import Entry
from pacesetter.inner_models.lookup import require

WIDTH = 3.8
"""Inches: the text of a figure that fills a phone's screen can still be read."""
FEW_POINTS = 8
"""Up to so many points each has its interval drawn; longer lines have bands."""
_DODGE = 0.05
_MARKED = 12
"""Lines of more points than this get a marker at some of them only."""


@dataclass(frozen=True)
class Panel:
    """One of the panels of a figure that share an axis of inner steps.

    Attributes:
        bands: what to draw, by entry.
        name: of the quantity, on the vertical axis.
        log: whether the axis is logarithmic, where all values allow it.
        height: relative to the other panels.
    """

    bands: Mapping[Entry, Band]
    name: str
    log: bool = True
    height: float = 1.0


def draw_run(
    panels: Sequence[Panel],
    *,
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
    text: str,
) -> Drawing:
    """Draws what happened in a run: panels above each other over one axis of inner steps.

    Args:
        panels: from top to bottom.
        looks: by entry.
        labels: by entry.
        text: what the figure shows.
    """
    heights = [panel.height for panel in panels]
    figure = _figure(0.5 + 1.25 * sum(heights))
    rows = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    shown: dict[Entry, None] = {}
    for axes, panel in zip(rows, panels, strict=True):
        _calm(axes)
        for entry, band in panel.bands.items():
            _draw_band(axes, band, looks[entry])
            shown[entry] = None
        lows = [low for band in panel.bands.values() for low in band.low if math.isfinite(low)]
        if panel.log and lows and min(lows) > 0:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        axes.set_title(panel.name, loc="left", fontsize=8.5, color=INK, pad=4)
    rows[-1].set_xlabel("inner step", fontsize=8.5, color=MUTED)
    figure.align_ylabels()
    return Drawing(figure, text, {looks[entry]: labels[entry] for entry in shown})


def draw_lines(
    bands: Mapping[Entry, Band],
    *,
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
    axes_names: tuple[str, str],
    text: str,
    log: bool = False,
    points: Sequence[float] | None = None,
    zero: bool = False,
) -> Drawing:
    """Draws lines with bands over a quantity other than inner steps.

    Args:
        bands: by entry; `Band.steps` holds the quantity. A band of one point is drawn as a level.
        looks: by entry.
        labels: by entry.
        axes_names: of the horizontal and of the vertical axis.
        text: what the figure shows.
        log: whether the horizontal axis is logarithmic.
        points: where the horizontal axis has its ticks; None: where they fall.
        zero: whether to draw a line at zero.
    """
    figure = _figure(3.0)
    axes = figure.subplots()
    _calm(axes)
    if zero:
        axes.axhline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    if log:
        axes.set_xscale("log")
    for row, (entry, band) in enumerate(bands.items()):
        if len(band.steps) > FEW_POINTS:
            _draw_band(axes, band, looks[entry], filled=row < 1 or looks[entry] == REFERENCE_LOOK)
        else:
            shift = (row - (len(bands) - 1) / 2) * _DODGE
            _draw_points(axes, band, looks[entry], shift=shift, span=points)
    if log and points is None:
        _plain_ticks(axes.xaxis)
    if points is not None:
        axes.set_xticks(list(points), [_plain(point) for point in points])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(axes_names[0], fontsize=8.5, color=MUTED)
    axes.set_title(axes_names[1], loc="left", fontsize=8.5, color=INK, pad=6)
    return Drawing(figure, text, {looks[entry]: labels[entry] for entry in bands})


def draw_intervals(
    intervals: Mapping[Entry, Interval],
    *,
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
    xlabel: str,
    text: str,
) -> Drawing:
    """Draws a line per arm with its estimate and interval, labels above the lines.

    Args:
        intervals: what to draw, from top to bottom.
        looks: by entry.
        labels: by entry.
        xlabel: of the axis; its zero is drawn as a line.
        text: what the figure shows.
    """
    figure = _figure(0.7 + 0.34 * max(len(intervals), 1))
    axes = figure.subplots()
    _calm(axes)
    for row, (entry, found) in enumerate(intervals.items()):
        look = looks[entry]
        axes.plot(finite_ends(found), [row, row], color=look.colour, linewidth=2.2)
        axes.plot([found.estimate], [row], marker=look.marker, markersize=5, color=look.colour)
        place = axes.get_yaxis_transform()
        axes.text(0.01, row - 0.27, labels[entry], transform=place, fontsize=8, color=INK)
    axes.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylim(len(intervals) - 0.5, -0.75)
    axes.set_yticks([])
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
    return Drawing(figure, text, {})


def _draw_band(axes: Any, band: Band, look: Look, *, filled: bool = True) -> None:
    every = max(1, math.ceil(len(band.steps) / _MARKED))
    # Markers of different lines stand at different points, or one would hide the others.
    first = LOOKS.index(look) % every if look in LOOKS else 0
    style = line_style(look) | {"markevery": (first, every)}
    above = 3 if look is LOOKS[0] else 2
    axes.plot(band.steps, band.median, zorder=above, gid=f"{look.name}-line", **style)
    if filled:
        area = axes.fill_between(
            band.steps, band.low, band.high, color=look.colour, alpha=0.14, linewidth=0
        )
        area.set_gid(f"{look.name}-band")


def _draw_points(
    axes: Any, band: Band, look: Look, *, shift: float, span: Sequence[float] | None
) -> None:
    """A line with an interval at each of its few points, moved aside from other arms' intervals."""
    above = 3 if look is LOOKS[0] else 2
    style = line_style(look) | {"gid": f"{look.name}-line", "zorder": above}
    if len(band.steps) == 1 and span is not None and len(span) > 1:
        # What needs no trials is as good with any number of them.
        ends = [min(span), max(span)]
        axes.plot(ends, [float(band.median[0])] * 2, **style | {"marker": ""})
        edges = (float(band.low[0]), float(band.high[0]))
        area = axes.fill_between(ends, *edges, color=look.colour, alpha=0.12, linewidth=0)
        area.set_gid(f"{look.name}-band")
        return
    places = band.steps * math.exp(shift) if axes.get_xscale() == "log" else band.steps + shift
    axes.plot(places, band.median, **style)
    bars = axes.vlines(places, band.low, band.high, color=look.colour, linewidth=1.1, alpha=0.6)
    bars.set_gid(f"{look.name}-bars")


def _figure(height: float) -> Any:
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(WIDTH, height), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.04, w_pad=0.04)
    return figure


def _calm(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(REST)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.set_facecolor("none")
    axes.margins(x=0.02)


def _plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as ordinary text, few enough to be read on a phone."""
    ticker = require("matplotlib.ticker", extra="compare")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else math.inf
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.5 else tuple(range(1, 10))
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_minor_locator(ticker.NullLocator())


def _plain(value: float) -> str:
    """A number in short: 1e-5 and not 1e-05.

    >>> [_plain(value) for value in (0.001, 1e-5, 3.0, 2e6)]
    ['0.001', '1e-5', '3', '2e6']
    """
    text = f"{value:.3g}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", text)
