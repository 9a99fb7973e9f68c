"""Colours, dashes and markers of arms: told apart without colours too, on light and on dark ground.

The colours are those of Okabe and Ito (2008), made for all kinds of colour vision, darkened where
they would be too pale on white and lightened where they would be too dark on black.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pacesetter.experiments.analysis.findings import Summary
from pacesetter.experiments.runs.records import Entry

INK, MUTED, GRID, REST = "#1d2330", "#5c6675", "#e3e6ea", "#a9b0ba"
"""Text, secondary text, lines of a grid, and arms in the background; on light ground."""
_DARK_GREYS = {INK: "#e8eaee", MUTED: "#a3abb8", GRID: "#31363f", REST: "#6d7683"}


@dataclass(frozen=True)
class Look:
    """How the lines of an arm look.

    Attributes:
        name: short, unique, the class of its lines on a page.
        colour: on light ground.
        dark: the colour on dark ground.
        dash: lengths of strokes and gaps in points; empty: a solid line.
        marker: as matplotlib calls it.
        width: of the line in points.
    """

    name: str
    colour: str
    dark: str
    dash: tuple[float, ...] = ()
    marker: str = "o"
    width: float = 1.4


LOOKS = (
    Look("s0", "#d0500a", "#ff8b4d", width=2.0),
    Look("s1", "#0068a8", "#62b7f2", marker="s"),
    Look("s2", "#008a64", "#3fcb9f", (5, 1.6), "D"),
    Look("s3", "#b0548b", "#ea9fca", (1.4, 1.4), "^"),
    Look("s4", "#a26f00", "#eebb44", (6, 1.6, 1.4, 1.6), "v"),
    Look("s5", "#5b4bb5", "#aba0f5", (3, 1.2), "P"),
)
"""In the order in which they are given away; the first is the agent's."""
REFERENCE_LOOK = Look("s8", "#4a5261", "#c0c7d1", (4, 2), "x")
OTHERS_LOOK = Look("s9", "#98a0ab", "#7c8593", marker="o")

MAX_SHOWN = len(LOOKS)
"""Arms besides the reference whose curves are drawn; more could not be told apart."""


def css_variables() -> dict[str, str]:
    """Names of CSS variables by the colour on light ground that they stand for."""
    looks = (*LOOKS, REFERENCE_LOOK, OTHERS_LOOK)
    names = {INK: "--ink", MUTED: "--muted", GRID: "--grid", REST: "--rest"}
    return {**names, **{look.colour: f"--{look.name}" for look in looks}}


def declarations(*, dark: bool) -> str:
    """The CSS variables with their values on light or on dark ground."""
    on_dark = {**_DARK_GREYS, **{k.colour: k.dark for k in (*LOOKS, REFERENCE_LOOK, OTHERS_LOOK)}}
    return " ".join(
        f"{name}: {on_dark[colour] if dark else colour};"
        for colour, name in css_variables().items()
    )


def shown_entries(summary: Summary, ours: Sequence[str]) -> list[Entry]:
    """Arms whose curves are drawn: the agent's, the reference, and the best other baselines.

    Of each arm one entry is drawn, that of the summary's field.

    Args:
        summary: of a comparison.
        ours: names of the agent's arms.
    """
    rivals = [e for e in summary.field if e.arm not in ours and e != summary.reference]
    rivals = [e for e in rivals if e.start_lr is None]
    rivals.sort(key=lambda e: summary.of(e).scores["test"].estimate)
    agents = [e for e in summary.field if e.arm in ours][:MAX_SHOWN]
    return [*agents, summary.reference, *rivals[: min(4, MAX_SHOWN - len(agents))]]


def looks(summary: Summary, shown: Sequence[Entry]) -> dict[Entry, Look]:
    """A look of its own for every entry that is shown; one for the rest.

    Other budgets and starts of an arm that is shown share its look.
    """
    given = dict(zip((e for e in shown if e != summary.reference), LOOKS, strict=False))
    by_arm = {entry.arm: look for entry, look in given.items()}
    found = {e.entry: by_arm.get(e.entry.arm, OTHERS_LOOK) for e in summary.entries}
    return {**found, **given, summary.reference: REFERENCE_LOOK}
