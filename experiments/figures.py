"""Draws the figures of a comparison, each once: for the page, and as SVG and PNG files.

What is drawn is computed in `plots`. On a page colours are CSS variables, so that one drawing
serves light and dark, and text is in the page's own font; a file has its own legend and colours.
matplotlib is imported when something is drawn; its global state is not touched.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pacesetter.agent.run_folder import write_bytes
from pacesetter.experiments.looks import GRID, INK, LOOKS, MUTED, REST, Look, css_variables
from pacesetter.experiments.plots import Band
from pacesetter.experiments.records import Entry
from pacesetter.experiments.statistics import Interval
from pacesetter.inner_models.extras import require

WIDTH = 4.4
"""Inches: the text of a figure that fills a phone's screen can still be read."""
DPI = 200
"""Of PNG files."""
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


class Drawing:
    """A figure that is ready to be put into a page or into files.

    Args:
        figure: matplotlib's.
        text: what the figure shows, for those who do not see it.
        legend: labels of what is drawn, by look; for files only, a page has a legend of its own.
    """

    def __init__(self, figure: Any, text: str, legend: Mapping[Look, str]) -> None:
        self._figure, self._text, self._legend = figure, text, dict(legend)

    def element(self, name: str) -> str:
        """The figure as an element for an HTML page, without prolog, metadata or foreign names.

        Args:
            name: unique on the page; no id that the element defines is used by another.
        """
        svg = self._svg()
        svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
        svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
        # Of a line's id its class is made: the legend's switches act on all figures at once.
        svg = re.sub(r' id="(s\d)(?:-\w+)?"', r' class="\1"', svg)
        used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
        svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in used else "", svg)
        for found in used:
            svg = re.sub(rf'(?<=["#]){re.escape(found)}(?=["\)])', f"{name}-{found}", svg)
        svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
        for colour, variable in css_variables().items():
            svg = svg.replace(colour, f"var({variable})")
        svg = re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)
        size = ' width="100%" height="auto"'
        head = f'<svg role="img" aria-label="{escape(self._text)}"'
        return head + re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1).replace(
            "<svg", size, 1
        ).removeprefix(size)

    def write(self, stem: Path) -> None:
        """Writes the figure with its legend as ``stem.svg`` and ``stem.png``."""
        if len(self._legend) > 1:
            matplotlib_lines = require("matplotlib.lines", extra="compare")
            handles = [
                matplotlib_lines.Line2D([], [], **line_style(look), label=label)
                for look, label in self._legend.items()
            ]
            rows = math.ceil(len(handles) / 2)
            width, height = self._figure.get_size_inches()
            self._figure.set_size_inches(width, height + 0.17 * rows + 0.1)
            self._figure.legend(
                handles=handles,
                loc="outside lower center",
                ncols=2,
                frameon=False,
                fontsize=7.5,
                labelcolor=INK,
                handlelength=3,
            )
            self._legend = {}
        write_bytes(stem.with_name(f"{stem.name}.svg"), self._svg().encode())
        picture = io.BytesIO()
        self._figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(stem.with_name(f"{stem.name}.png"), picture.getvalue())

    def _svg(self) -> str:
        matplotlib = require("matplotlib", extra="compare")
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # Text stays text: it can be searched and is drawn in the reader's own font.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pacesetter"}):
            self._figure.savefig(text, format="svg", metadata=metadata)
        return text.getvalue()


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
        _plain_ticks(axes.xaxis)
    if points is not None:
        axes.set_xticks(list(points), [f"{point:g}" for point in points])
        axes.set_xticks([], minor=True)
    for entry, band in bands.items():
        _draw_band(axes, band, looks[entry], span=points)
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
        axes.plot([found.low, found.high], [row, row], color=look.colour, linewidth=2.2)
        axes.plot([found.estimate], [row], marker=look.marker, markersize=5, color=look.colour)
        place = axes.get_yaxis_transform()
        axes.text(0.01, row - 0.27, labels[entry], transform=place, fontsize=8, color=INK)
    axes.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylim(len(intervals) - 0.5, -0.75)
    axes.set_yticks([])
    axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
    return Drawing(figure, text, {})


def line_style(look: Look) -> dict[str, Any]:
    """Arguments of matplotlib for a line of this look."""
    return {
        "color": look.colour,
        "linewidth": look.width,
        "linestyle": (0, look.dash) if look.dash else "-",
        "marker": look.marker,
        "markersize": 4,
        "markeredgewidth": 0,
    }


def _draw_band(
    axes: Any, band: Band, look: Look, *, span: Sequence[float] | None = None
) -> None:
    steps, median, low, high = band.steps, band.median, band.low, band.high
    if len(steps) == 1 and span is not None and len(span) > 1:
        # What needs no trials is as good with any number of them.
        steps = [min(span), max(span)]
        median, low, high = ([float(values[0])] * 2 for values in (median, low, high))
    every = max(1, math.ceil(len(steps) / _MARKED))
    # Markers of different lines stand at different points, or one would hide the others.
    first = LOOKS.index(look) % every if look in LOOKS else 0
    style = line_style(look) | {"markevery": (first, every) if every > 1 else None}
    above = 3 if look is LOOKS[0] else 2
    axes.plot(steps, median, zorder=above, gid=f"{look.name}-line", **style)
    area = axes.fill_between(steps, low, high, color=look.colour, alpha=0.14, linewidth=0)
    area.set_gid(f"{look.name}-band")


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
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_minor_locator(ticker.NullLocator())
