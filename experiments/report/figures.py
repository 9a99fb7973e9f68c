"""Figures of a comparison: what they show, as numbers, and how matplotlib draws them.

A figure has its legend, and no ground of its own. matplotlib is imported when one is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.analysis.findings import Summary, TaskSummary
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.runs.records import Entry, RunRecord
from pacesetter.inner_models.lookup import require

Quantity = Literal["curve", "valid_curve", "lrs", "momenta", "clip_thresholds"]

INK, MUTED, GRID = "#1d2330", "#5c6675", "#d5d9de"
"""Text, secondary text and lines of a grid, on light ground; a dark page inverts them."""
WIDTH, DPI = 3.8, 200
"""Inches (the text of a figure that fills a phone's screen is readable), and resolution of PNG."""
FEW_POINTS = 8
"""Up to so many points each has its interval drawn; longer lines have bands."""
_MARKED = 12
"""Lines of more points than this get a marker at some of them only."""
_PANELS: tuple[tuple[Quantity, str, bool, float], ...] = (
    ("curve", "training loss, mean of each interval", True, 1.5),
    ("valid_curve", "outer-valid loss", True, 1.3),
    ("lrs", "learning rate", True, 1.0),
    ("momenta", "momentum", False, 0.8),
    ("clip_thresholds", "clip threshold (gradient norm)", True, 0.8),
)
"""Histories of a record, their names, whether their axis is logarithmic, and relative heights."""


@dataclass(frozen=True)
class Look:
    """Style of an arm's lines; `dash`: lengths of strokes and gaps in points, empty if solid."""

    colour: str
    dash: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.4

    @property
    def style(self) -> dict[str, Any]:
        return {
            "color": self.colour,
            "linewidth": self.width,
            "linestyle": (0, self.dash) if self.dash else "-",
            "marker": self.marker,
            "markersize": 4,
            "markeredgewidth": 0,
        }


# The colours of Okabe and Ito (2008), made for all kinds of colour vision, darkened for white.
LOOKS = (
    Look("#d0500a", width=2.0),
    Look("#0068a8", marker="s"),
    Look("#008a64", (5, 1.6), "D"),
    Look("#b0548b", (1.4, 1.4), "^"),
    Look("#a26f00", (6, 1.6, 1.4, 1.6), "v"),
    Look("#5b4bb5", (3, 1.2), "P"),
)
"""In the order in which they are assigned; the first is the agent's."""
REFERENCE_LOOK = Look("#4a5261", (4, 2), "x")
OTHERS_LOOK = Look("#8d95a1")


def shown_entries(summary: Summary, ours: Sequence[str]) -> list[Entry]:
    """Entries of the field that are drawn: the agent's, the reference, and the best others."""
    rivals = [e for e in summary.field if e.arm not in ours and e != summary.reference]
    rivals = [e for e in rivals if e.start_lr is None]
    rivals.sort(key=lambda e: summary.of(e).scores["test"].estimate)
    agents = [e for e in summary.field if e.arm in ours][: len(LOOKS)]
    return [*agents, summary.reference, *rivals[: min(4, len(LOOKS) - len(agents))]]


def looks(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Look]:
    """A look for every arm that is shown, whatever its budget and start; one for all others."""
    given = dict(zip((e for e in shown if e != summary.reference), LOOKS, strict=False))
    by_arm = {entry.arm: look for entry, look in given.items()}
    found = {e.entry: by_arm.get(e.entry.arm, OTHERS_LOOK) for e in summary.entries}
    return {**found, **given, summary.reference: REFERENCE_LOOK}


def finite_ends(interval: Interval) -> tuple[float, float]:
    """The ends of an interval; of one that is unknown, the estimate itself.

    >>> finite_ends(Interval(1.0, -math.inf, math.inf))
    (1.0, 1.0)
    """
    ends = (interval.low, interval.high)
    low, high = (end if math.isfinite(end) else interval.estimate for end in ends)
    return low, high


@dataclass(frozen=True)
class Band:
    """A median between quartiles, or an estimate in its interval, over a horizontal axis: (K,)."""

    steps: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray


def band_data(records: Sequence[RunRecord], *, task: str, quantity: Quantity) -> dict[Entry, Band]:
    """Median and quartiles of a history over the seeds that did not crash, on one task.

    An arm that never has the quantity has no band.
    """
    runs: dict[Entry, list[RunRecord]] = {}
    for record in records:
        if record.task == task and getattr(record, quantity):
            runs.setdefault(record.entry, []).append(record)
    bands = {}
    for entry, group in runs.items():
        steps = group[0].valid_steps if quantity == "valid_curve" else group[0].steps
        same = [r for r in group if len(getattr(r, quantity)) == len(steps)]
        values = np.array([getattr(record, quantity) for record in same], dtype=np.float64)
        quartiles = np.full((3, len(steps)), np.nan)
        for point, column in enumerate(values.T):
            known = column[np.isfinite(column)]
            if len(known):
                quartiles[:, point] = np.quantile(known, (0.5, 0.25, 0.75))
        if np.isfinite(values).any():
            bands[entry] = Band(np.array(steps, dtype=np.float64), *quartiles)
    return bands


def score_data(summary: Summary) -> dict[Entry, Interval]:
    """Score on test of every arm of the field but the reference, the best first."""
    found = {e: summary.of(e).scores["test"] for e in summary.field if e != summary.reference}
    return dict(sorted(found.items(), key=lambda item: item[1].estimate))


def budget_data(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Band]:
    """Scores on test against the tuning budget, of arms that are shown.

    One point for an arm with a single budget; nothing where no arm has more than one.
    """
    if not summary.by_budget:
        return {}
    found = {}
    for entry in shown:
        several = summary.by_budget.get(entry.arm, (summary.of(entry),))
        scores = [e.scores["test"] for e in several]
        found[entry] = _band([e.entry.budget for e in several], scores)
    return found


def sensitivity_data(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Band]:
    """Scores on test against the initial learning rate, over the reference's; `shown` first."""
    by_arm = {entry.arm: entry for entry in (*summary.field, *shown)}
    order = [entry.arm for entry in shown]
    found = [(by_arm[s.arm], _band(s.factors, s.scores)) for s in summary.sensitivity]
    found.sort(key=lambda p: order.index(p[0].arm) if p[0].arm in order else len(order))
    return dict(found)


def _band(places: Sequence[float], scores: Sequence[Interval]) -> Band:
    rows = [(x, s.estimate, *finite_ends(s)) for x, s in zip(places, scores, strict=True)]
    return Band(*np.array(rows, dtype=np.float64).T)


class Drawing:
    """A finished figure, with a description for readers who do not see it."""

    def __init__(self, figure: Any, text: str) -> None:
        self._figure, self.text = figure, text

    @cached_property
    def svg(self) -> str:
        """As SVG without ground; text stays text."""
        found = io.StringIO()
        with _theme():
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self._figure.savefig(found, format="svg", metadata=metadata, transparent=True)
        # The layout is kept: computing it again takes most of the time.
        self._figure.set_layout_engine("none")
        # Hundredths of a point are more than can be seen, and half the size of the file.
        paths = re.compile(r'(?<= d=")[^"]+')
        return paths.sub(lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), found.getvalue())

    def png(self) -> bytes:
        """As PNG on white ground."""
        assert self.svg
        found = io.BytesIO()
        self._figure.savefig(found, format="png", dpi=DPI, metadata={"Software": None})
        return found.getvalue()


@dataclass(frozen=True)
class Panel:
    """A plot of bands; one of a single point is drawn as a level.

    Attributes:
        log: whether the axis is logarithmic, where all values allow it.
        height: inches.
    """

    bands: Mapping[Entry, Band]
    name: str
    log: bool = False
    height: float = 2.4


def draw_panels(
    panels: Sequence[Panel],
    *,
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
    xlabel: str,
    text: str,
    ticks: Sequence[float] | None = None,
) -> Drawing:
    """Draws panels above each other over one horizontal axis, with a legend below.

    With `ticks`, the axis is logarithmic, with a line at zero of the vertical one.
    """
    shown = list(dict.fromkeys(entry for panel in panels for entry in panel.bands))
    columns = 2 if max(len(labels[e]) for e in shown) <= 26 else 1
    below = 0.45 + 0.17 * math.ceil(len(shown) / columns)
    with _theme():
        figure = _new_figure(below + sum(panel.height for panel in panels))
        heights = [panel.height for panel in panels]
        rows = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)
        for axes, panel in zip(rows[:, 0], panels, strict=True):
            _calm(axes)
            if ticks is not None:
                axes.axhline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
                axes.set_xscale("log")
            for row, (entry, band) in enumerate(panel.bands.items()):
                if ticks is not None and len(band.steps) <= FEW_POINTS:
                    shift = 0.05 * (row - (len(panel.bands) - 1) / 2)
                    _draw_points(axes, band, looks[entry], shift=shift, span=ticks)
                else:
                    filled = len(panels) > 1 or row < 1 or looks[entry] == REFERENCE_LOOK
                    _draw_band(axes, band, looks[entry], filled=filled)
            lows = [low for band in panel.bands.values() for low in band.low if math.isfinite(low)]
            if panel.log and lows and min(lows) > 0:
                axes.set_yscale("log")
                _plain_ticks(axes.yaxis)
            axes.set_title(panel.name, loc="left", fontsize=8.5, color=INK, pad=4)
        if ticks is not None:
            axes.set_xticks(list(ticks), [_plain(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.set_xlabel(xlabel, fontsize=8.5, color=MUTED)
        lines = require("matplotlib.lines", extra="compare").Line2D
        handles = [lines([], [], **looks[e].style, label=labels[e]) for e in shown]
        style = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 3}
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, **style)
    return Drawing(figure, text)


def draw_task(
    task: TaskSummary,
    records: Sequence[RunRecord],
    *,
    shown: Sequence[Entry],
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
) -> Drawing | None:
    """Loss curves of a task with the schedules under them; None where no run got anywhere."""
    panels = []
    for quantity, name, log, height in _PANELS:
        bands = band_data(records, task=task.name, quantity=quantity)
        drawn = {entry: bands[entry] for entry in shown if entry in bands}
        if drawn:
            panels.append(Panel(drawn, name, log, 1.25 * height))
    if not panels:
        return None
    names = ", ".join(panel.name for panel in panels)
    arms = ", ".join(labels[entry] for entry in panels[0].bands)
    text = f"{task.name}, over {task.horizon} inner steps: {names}; of {arms}"
    return draw_panels(panels, looks=looks, labels=labels, xlabel="inner step", text=text)


def draw_intervals(
    intervals: Mapping[Entry, Interval],
    *,
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
    xlabel: str,
    text: str,
) -> Drawing:
    """Draws a line per arm with its estimate and interval, from top to bottom, and one at zero."""
    with _theme():
        figure = _new_figure(0.7 + 0.34 * max(len(intervals), 1))
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
    return Drawing(figure, text)


@contextmanager
def _theme() -> Iterator[None]:
    matplotlib = require("matplotlib", extra="compare")
    options = {"svg.fonttype": "none", "svg.hashsalt": "pacesetter", "text.parse_math": False}
    with matplotlib.rc_context(options):
        yield


def _new_figure(height: float) -> Any:
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(WIDTH, height), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.04, w_pad=0.04)
    return figure


def _calm(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.margins(x=0.02)


def _draw_band(axes: Any, band: Band, look: Look, *, filled: bool) -> None:
    every = max(1, math.ceil(len(band.steps) / _MARKED))
    # Markers of different lines lie at different points, or one would hide the others.
    first = LOOKS.index(look) % every if look in LOOKS else 0
    above = 3 if look is LOOKS[0] else 2
    axes.plot(band.steps, band.median, zorder=above, markevery=(first, every), **look.style)
    if filled:
        area = {"color": look.colour, "alpha": 0.14, "linewidth": 0}
        axes.fill_between(band.steps, band.low, band.high, **area)


def _draw_points(axes: Any, band: Band, look: Look, *, shift: float, span: Sequence[float]) -> None:
    """A line with an interval at each of its few points, moved aside from other arms' intervals."""
    style = look.style | {"zorder": 3 if look is LOOKS[0] else 2}
    if len(band.steps) == 1 and len(span) > 1:
        # An arm without tuning is as good with any number of trials.
        ends = [min(span), max(span)]
        axes.plot(ends, [float(band.median[0])] * 2, **style | {"marker": ""})
        edges = (float(band.low[0]), float(band.high[0]))
        axes.fill_between(ends, *edges, color=look.colour, alpha=0.12, linewidth=0)
        return
    places = band.steps * math.exp(shift)
    axes.plot(places, band.median, **style)
    axes.vlines(places, band.low, band.high, color=look.colour, linewidth=1.1, alpha=0.6)


def _plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as ordinary text, few enough to be read on a phone."""
    ticker = require("matplotlib.ticker", extra="compare")
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else math.inf
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.5 else tuple(range(1, 10))
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_locator(ticker.NullLocator())


def _plain(value: float) -> str:
    """A number in short: 1e-5 and not 1e-05.

    >>> [_plain(value) for value in (0.001, 1e-5, 3.0, 2e6)]
    ['0.001', '1e-5', '3', '2e6']
    """
    text = f"{value:.3g}"
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", text)
