"""Parts of which the report is built: the page around it, tables that sort, intervals, legends.

Whatever a user named goes through `escape` here; parts are strings of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pacesetter.experiments.analysis.findings import Finding
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.report.looks import OTHERS_LOOK, Look
from pacesetter.experiments.report.plots import finite_ends
from pacesetter.experiments.report.script import SCRIPT
from pacesetter.experiments.report.style import style_sheet
from pacesetter.experiments.runs.records import Entry

_GLYPH = (136.0, 16.0)
_FAR = 3.0
"""A scale reaches this far beyond its middle half at most; what lies further gets an arrow."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: what it shows.
        value: by which it is sorted; None or NaN: it has none and comes last.
    """

    html: str
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its name.
        numeric: whether it is sorted by number, and flush right.
        hint: what it means, as a tooltip.
        long: whether its text may be broken into lines.
    """

    head: str
    numeric: bool = True
    hint: str = ""
    long: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; its first cell is its head.

    Attributes:
        cells: one per column.
        classes: ``"ours"``, ``"reference"`` or ``"extra"``, which is shown on demand only.
    """

    cells: Sequence[Cell]
    classes: str = ""


@dataclass(frozen=True)
class Scale:
    """The horizontal scale that the intervals of a column share.

    Attributes:
        low: value at the left end.
        high: value at the right end.
        zero: value at which a line is drawn.
    """

    low: float
    high: float
    zero: float = 0.0

    @staticmethod
    def around(intervals: Iterable[Interval], *, zero: float = 0.0) -> Scale:
        """A scale on which most of some intervals can be told apart."""
        found = [i for i in intervals if math.isfinite(i.estimate)]
        middles = sorted(i.estimate for i in found) or [zero]
        first, last = middles[len(middles) // 4], middles[-1 - len(middles) // 4]
        reach = _FAR * max(last - first, abs(first - zero), abs(last - zero), 1e-9) / 2
        low = max(min([zero, *(finite_ends(i)[0] for i in found)]), first - reach)
        high = min(max([zero, *(finite_ends(i)[1] for i in found)]), last + reach)
        return Scale(low, max(high, low + 1e-9), zero)

    def place(self, value: float) -> float:
        """Where a value lies on the drawing, within its edges."""
        share = (value - self.low) / (self.high - self.low)
        return 6 + (_GLYPH[0] - 12) * min(max(share, 0.0), 1.0)


def text_cell(text: str) -> Cell:
    """A cell of plain text."""
    return Cell(escape(text), text)


def number_cell(value: float | None, form: str = "{:.3g}") -> Cell:
    """A cell of a number; one that is not known is a dash."""
    known = value is not None and math.isfinite(value)
    return Cell(form.format(value), value) if known else Cell("–")


def interval_cell(interval: Interval | None, *, form: str = "{:.3g}", factor: float = 1.0) -> Cell:
    """A cell of an estimate with the ends of its interval.

    Args:
        interval: None: a dash.
        form: of each number.
        factor: by which numbers are multiplied to be shown.
    """
    if interval is None or not math.isfinite(interval.estimate):
        return Cell("–")
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    numbers = [form.format(factor * x) for x in (interval.estimate, interval.low, interval.high)]
    numbers = [number.replace("-", "−") for number in numbers]
    ends = f' <span class="ends">[{numbers[1]}, {numbers[2]}]</span>' if known else ""
    return Cell(numbers[0] + ends, interval.estimate)


def glyph_cell(interval: Interval, scale: Scale, *, look: Look = OTHERS_LOOK) -> Cell:
    """A cell that draws an interval on the scale of its column."""
    width, height = _GLYPH
    middle, colour = height / 2, f"var(--{look.name})"
    low, high = (scale.place(end) for end in finite_ends(interval))
    at, zero = scale.place(interval.estimate), scale.place(scale.zero)
    if interval.estimate > scale.high or interval.estimate < scale.low:
        tip = width - 1 if interval.estimate > scale.high else 1
        mark = (
            f'<path d="M{tip:.0f} {middle}L{at:.1f} {middle - 4}V{middle + 4}Z" fill="{colour}"/>'
        )
    else:
        mark = f'<circle cx="{at:.1f}" cy="{middle}" r="3.6" fill="{colour}"/>'
    return Cell(
        f'<svg class="glyph" viewBox="0 0 {width:.0f} {height:.0f}" aria-hidden="true">'
        f'<path d="M{zero:.1f} 0V{height:.0f}" stroke="var(--rest)" stroke-dasharray="2 2"/>'
        f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{colour}" stroke-width="2"/>'
        f"{mark}</svg>",
        interval.estimate,
    )


def finding_cell(found: Finding) -> Cell:
    """A cell that says whether something is better."""
    order = {"better": 0, "no clear difference": 1, "worse": 2}[found]
    return Cell(f'<span class="chip {found.split()[0]}">{found}</span>', f"{order}")


def head_cell(label: str, look: Look | None = None, *, link: str | None = None) -> Cell:
    """The first cell of a row: a name, with the colour of its lines, or with a link."""
    html = escape(label)
    if link is not None:
        html = f'<a href="{escape(link)}">{html}</a>'
    if look is not None:
        swatch = f'<span class="swatch" style="background: var(--{look.name})"></span>'
        html = f'<span class="named">{swatch}{html}</span>'
    return Cell(html, label)


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    name: str,
    sorted_by: int | None = None,
    sortable: bool = True,
    key: str = "",
    narrow: bool = False,
) -> str:
    """A table in a box of its own that scrolls, with a button in every head to sort by.

    Args:
        columns: heads.
        rows: in the order in which they are shown at first.
        name: what the table is, for those who do not see it.
        sorted_by: the column by which rows are sorted already, ascending.
        sortable: whether it can be sorted.
        key: id of the box.
        narrow: whether it takes no more room than it needs.
    """
    heads = []
    for i, column in enumerate(columns):
        kind = "number" if column.numeric else "text"
        order = ' aria-sort="ascending"' if i == sorted_by else ""
        hint = f' title="{escape(column.hint)}"' if column.hint else ""
        text = escape(column.head)
        inner = f'<button type="button"{hint}>{text}</button>' if sortable and text else text
        heads.append(f'<th scope="col" class="{kind}" data-kind="{kind}"{order}>{inner}</th>')
    body = "\n".join(_row(row, columns) for row in rows)
    box = f' id="{key}"' if key else ""
    classes = "scroll narrow" if narrow else "scroll"
    return (
        f'<div class="{classes}" role="region" aria-label="{escape(name)}" tabindex="0"{box}>'
        f"<table><thead><tr>{''.join(heads)}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def figure(svg: str, *, title: str, caption: str = "") -> str:
    """A figure with a title above and a caption below."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{below}</figure>\n"


def legend(
    entries: Sequence[Entry], looks: Mapping[Entry, Look], labels: Mapping[Entry, str]
) -> str:
    """What the lines of figures mean; each is a switch that dims its lines."""
    return (
        '<ul class="legend">'
        + "".join(
            f'<li><button type="button" aria-pressed="true" data-look="{looks[entry].name}">'
            f"{_sample(looks[entry])}{escape(labels[entry])}</button></li>"
            for entry in entries
        )
        + "</ul>\n"
    )


def paragraphs(texts: Iterable[str]) -> str:
    """A paragraph of each text."""
    return "".join(f"<p>{escape(text)}</p>\n" for text in texts)


def page(*, title: str, overview: str, tasks: Mapping[str, tuple[str, str]], foot: str) -> str:
    """The whole document, which needs nothing else.

    Args:
        title: of the page.
        overview: its first part.
        tasks: by id, the name of a task and its part.
        foot: the last lines.
    """
    options = "".join(
        f'<option value="{escape(key)}">{escape(name)}</option>' for key, (name, _) in tasks.items()
    )
    parts = "\n".join(
        f'<section class="task" id="{escape(key)}" data-name="{escape(name)}">{html}</section>'
        for key, (name, html) in tasks.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Without an icon of its own a page on a server would be asked for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#overview">To the content</a>\n'
        '<nav class="bar" aria-label="Parts of the report"><div><a href="#overview">Overview</a>'
        '<a class="wide" href="#arms">Arms</a><a href="#tasks">Tasks</a>'
        '<a class="wide" href="#method">Method</a>'
        f'<select class="live" aria-label="Go to a task"><option value="">Go to a task …</option>'
        f'{options}</select><button type="button" class="theme live" '
        'title="Switch between light and dark">Dark</button></div></nav>\n'
        f'<main>\n<div id="overview"><h1>{escape(title)}</h1>\n{overview}</div>\n{parts}\n</main>\n'
        f"<footer>{foot}</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = []
    for i, (cell, column) in enumerate(zip(row.cells, columns, strict=True)):
        kind = "text" if not column.numeric else "number"
        kind += " long" if column.long else ""
        value = "" if cell.value is None or cell.value != cell.value else escape(str(cell.value))
        tag = 'th scope="row"' if i == 0 else "td"
        end = "th" if i == 0 else "td"
        cells.append(f'<{tag} class="{kind}" data-value="{value}">{cell.html}</{end}>')
    classes = f' class="{row.classes}"' if row.classes else ""
    return f"<tr{classes}>{''.join(cells)}</tr>"


def _sample(look: Look) -> str:
    """A short piece of a line with its marker."""
    dash = " ".join(f"{2 * length:g}" for length in look.dash)
    colour = f"var(--{look.name})"
    shapes = {
        "o": '<circle cx="21" cy="8" r="4"/>',
        "s": '<rect x="17.5" y="4.5" width="7" height="7"/>',
        "D": '<path d="M21 3l5 5-5 5-5-5z"/>',
        "^": '<path d="M21 3.5l4.5 8.5h-9z"/>',
        "v": '<path d="M21 12.5l4.5-8.5h-9z"/>',
        "P": '<path d="M19 3h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "x": "",
    }
    return (
        f'<svg viewBox="0 0 42 16" aria-hidden="true" fill="{colour}">'
        f'<path d="M0 8H42" stroke="{colour}" stroke-width="{1.5 * look.width:g}" '
        f'stroke-dasharray="{dash or "none"}"/>{shapes[look.marker]}</svg>'
    )
