"""Draws the portrait of a policy as small SVG files; what is drawn is computed elsewhere.

Lines differ in dash and marker as well as in colour, as in all figures of this project.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pacesetter.agent.runs.folder import write_text
from pacesetter.experiments.analysis.statistics import quantile_band
from pacesetter.experiments.portrait_responses import Response
from pacesetter.experiments.portrait_runs import PROGRESS, Rate, TaskRuns
from pacesetter.experiments.report.drawing import line_style
from pacesetter.experiments.report.looks import GRID, INK, LOOKS, MUTED, REFERENCE_LOOK, REST, Look
from pacesetter.experiments.report.plots import Band
from pacesetter.experiments.rivals.schedules import cosine
from pacesetter.inner_models.lookup import require

WIDTH = 7.2
"""Inches, of every figure."""
ACTION_LABELS = ("learning rate", "1 − momentum", "clip ratio")
"""What each action changes the log of."""
_TINY_MARKERS = {"markersize": 2.6, "linewidth": 1.2}
_LEAST_SPAN = 0.1
"""Half height of a panel of actions, at least: what hardly answers looks flat."""


def draw_schedules(
    families: Mapping[str, Mapping[float, Band]],
    path: Path,
    *,
    log: bool,
    yardstick: bool = False,
    columns: int = 3,
) -> None:
    """Draws a panel per family: a quantity over progress, a line and a band per start.

    Args:
        families: bands by start over the best cosine's, by family.
        path: of the SVG file.
        log: whether the vertical axis is logarithmic.
        yardstick: whether to draw the cosine from 1 to nothing, and starts as dots.
        columns: panels beside each other.
    """
    figure, panels = _grid(len(families), columns=columns, height=1.55, shared=True)
    labels: dict[Look, str] = {}
    for axes, (family, bands) in zip(panels, families.items(), strict=False):
        for look, (factor, band) in zip(LOOKS, bands.items(), strict=False):
            style = line_style(look) | _TINY_MARKERS | {"markevery": (2, 8)}
            axes.plot(band.steps, band.median, **style)
            axes.fill_between(
                band.steps, band.low, band.high, color=look.colour, alpha=0.14, linewidth=0
            )
            labels[look] = f"from {factor:g} × the best cosine's rate"
        if yardstick:
            style = line_style(REFERENCE_LOOK) | {"marker": "", "linewidth": 1.2}
            axes.plot(PROGRESS, cosine(PROGRESS, {}), **style)
            labels[REFERENCE_LOOK] = "the best cosine"
        axes.set_title(family, loc="left", fontsize=8.5, color=INK, pad=3)
    panels[0].set_xticks([0.0, 0.5, 1.0])
    if log:
        low, high = _log_range([band for bands in families.values() for band in bands.values()])
        panels[0].set_yscale("log")
        panels[0].set_ylim(low, high)
        _decades(panels[0].yaxis)
    _name_bottom(panels, len(families), columns, "progress")
    _legend(figure, labels)
    _save(figure, path)


def draw_probe(runs: Sequence[TaskRuns], path: Path) -> None:
    """Draws rates against the start, both over the best cosine's: a grey line per task, the median.

    Args:
        runs: all from the same starts.
        path: of the SVG file.
    """
    figure, panels = _grid(2, columns=2, height=2.7, shared=True)
    names: dict[Rate, str] = {"peak": "peak rate", "mean": "mean rate over the run"}
    factors = runs[0].factors
    look = LOOKS[0]
    for axes, (rate, name) in zip(panels, names.items(), strict=True):
        rows = np.array([r.rates(rate) for r in runs])
        for row in rows:
            axes.plot(factors, row, color=REST, linewidth=0.7, alpha=0.7)
        median, low, high = quantile_band(rows)
        axes.fill_between(factors, low, high, color=look.colour, alpha=0.16, linewidth=0)
        axes.plot(factors, median, **line_style(look))
        # Whatever is kept of the start runs along the diagonal.
        kept = median[np.abs(np.log(factors)).argmin()] * factors
        style = line_style(REFERENCE_LOOK) | {"marker": "", "linewidth": 1.2}
        axes.plot(factors, kept, **style)
        axes.set_title(f"{name}, over the best cosine's", loc="left", fontsize=8.5, color=INK)
        axes.set_xlabel("start over the best cosine's rate", fontsize=8.5, color=MUTED)
    panels[0].set_xscale("log")
    panels[0].set_yscale("log")
    _decades(panels[0].xaxis)
    _decades(panels[0].yaxis)
    labels = {
        look: "median over tasks, with quartiles",
        REFERENCE_LOOK: "if nothing were corrected",
    }
    _legend(figure, labels)
    _save(figure, path)


def draw_responses(
    responses: Sequence[Response], path: Path, *, action: int | None = None, columns: int = 4
) -> None:
    """Draws a panel per feature: mean actions over its values, and the deciles that were met.

    Args:
        responses: in the order of the panels; features that never varied have none.
        path: of the SVG file.
        action: number of the one that is drawn, with quartiles over states; None: all three.
        columns: panels beside each other.
    """
    height = 1.25 if action is None else 1.4
    responses = [r for r in responses if r.varied]
    figure, panels = _grid(len(responses), columns=columns, height=height, shared=False)
    actions = range(len(ACTION_LABELS)) if action is None else (action,)
    span = _LEAST_SPAN
    for axes, r in zip(panels, responses, strict=False):
        axes.axhline(0.0, color=REST, linewidth=0.7)
        for j in actions:
            look = LOOKS[j]
            style = line_style(look) | _TINY_MARKERS | {"markevery": (2, 8)}
            if len(r.values) <= 2:
                style |= {"markevery": None, "linestyle": ":"}
            axes.plot(r.values, r.mean[:, j], **style)
            if action is not None:
                axes.fill_between(
                    r.values, r.low[:, j], r.high[:, j], color=look.colour, alpha=0.16, linewidth=0
                )
                span = max(span, float(np.abs([r.low[:, j], r.high[:, j]]).max()))
            span = max(span, float(np.abs(r.mean[:, j]).max()))
        # One broken line is a fifth of the bytes of as many markers.
        ticks = np.repeat(np.unique(r.deciles), 3)
        heights = np.tile([0.0, 0.05, np.nan], len(ticks) // 3)
        place = axes.get_xaxis_transform()
        axes.plot(ticks, heights, transform=place, color=MUTED, linewidth=0.9)
        axes.set_title(r.feature.name, loc="left", fontsize=6.8, color=INK, pad=3)
        axes.xaxis.set_major_locator(require("matplotlib.ticker", extra="compare").MaxNLocator(3))
    panels[0].set_ylim(-1.1 * span, 1.1 * span)
    if action is None:
        _legend(figure, {LOOKS[j]: ACTION_LABELS[j] for j in actions})
    _save(figure, path)


def _grid(count: int, *, columns: int, height: float, shared: bool) -> tuple[Any, Sequence[Any]]:
    """A figure with `count` panels in so many columns; the panels, row by row."""
    rows = -(-count // columns)
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(WIDTH, height * rows + 0.45), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03)
    sharing: Literal["all", "none"] = "all" if shared else "none"
    panels = list(figure.subplots(rows, columns, sharex=sharing, sharey="all", squeeze=False).flat)
    for axes in panels[:count]:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(REST)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, labelsize=7, length=0)
        axes.margins(x=0.02)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _name_bottom(panels: Sequence[Any], count: int, columns: int, name: str) -> None:
    """Names the horizontal axis below the lowest panel of each column."""
    for i in range(max(0, count - columns), count):
        panels[i].set_xlabel(name, fontsize=8, color=MUTED)
        panels[i].tick_params(labelbottom=True)


def _legend(figure: Any, labels: Mapping[Look, str]) -> None:
    lines = require("matplotlib.lines", extra="compare")
    handles = [
        lines.Line2D([], [], **line_style(look), label=label) for look, label in labels.items()
    ]
    if REFERENCE_LOOK in labels:
        handles[list(labels).index(REFERENCE_LOOK)].set_marker("")
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if len(handles) > 3 else len(handles),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=3,
    )


def _log_range(bands: Sequence[Band]) -> tuple[float, float]:
    """Ends of a logarithmic axis for some bands: the last steps of a cosine may be left out."""
    top = max(float(max(b.high.max(), b.median.max())) for b in bands)
    low = min(float(min(b.low.min(), b.median.min())) for b in bands)
    return max(low, top * 1e-4) / 1.3, top * 1.3


def _decades(axis: Any) -> None:
    """Ticks of a logarithmic axis as ordinary text."""
    ticker = require("matplotlib.ticker", extra="compare")
    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if math.log10(high / low) > 2 else (1.0, 2.0, 5.0)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=6))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _save(figure: Any, path: Path) -> None:
    """Writes a figure as SVG, small, and the same bytes for the same figure."""
    matplotlib = require("matplotlib", extra="compare")
    text = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: it can be searched and is drawn in the reader's own font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pacesetter"}):
        figure.savefig(text, format="svg", metadata=metadata)
    write_text(path, small_svg(text.getvalue()))


def small_svg(svg: str) -> str:
    """The same picture in about half of the bytes: without what nobody sees or refers to."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"; stroke-linecap: square|stroke-dashoffset: 0; ", "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 sans-serif", svg)
    # Hundredths of a point are more than can be seen.
    svg = re.sub(r"(?<=[xy]=\")(-?\d+\.\d\d)\d+", r"\1", svg)
    svg = re.sub(
        r'(?<= d=")[^"]+', lambda m: re.sub(r"\s+", " ", re.sub(r"(\.\d\d)\d+", r"\1", m[0])), svg
    )
    return re.sub(r"\n +", "\n", svg)
