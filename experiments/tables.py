"""Tables in plain text, for the terminal and for `table.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from pacesetter.experiments.summary import EntrySummary, Summary, signed_interval, verdict

WIDTH = 100
"""Columns at which running text is broken."""
FOOTNOTE = (
    "Scores: mean over tasks of log(final loss / {reference}'s), paired by seed; below zero is "
    "better. In brackets: 95 % bootstrap intervals over seeds within tasks; they speak of these "
    "tasks, not of others, and are not corrected for the number of comparisons. Tuned arms chose "
    "their learning rate on outer-valid, so that test is the fairer column. Inner "
    "steps include tuning; what the policy cost to train is not in them."
)


def align(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lays out rows of cells in columns.

    Args:
        rows: of equal length, the first being the head.
        left: how many columns are flush left; the rest are flush right.

    >>> print(align([["arm", "n"], ["a", "10"]]))
    arm   n
    ---  --
    a    10
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])


def ranked(summary: Summary) -> list[EntrySummary]:
    """Arms by their score on test, the best first."""
    return sorted(summary.entries, key=lambda e: e.scores["test"].estimate)


def entry_cells(summary: Summary) -> list[list[str]]:
    """The table of arms: a head and a row per arm and start, the best first."""
    rows = [["arm", "test", "outer-valid", "trials", "inner steps", "diverged"]]
    for e in ranked(summary):
        is_reference = e.entry == summary.reference
        rows.append(
            [
                e.label,
                "0 (reference)" if is_reference else signed_interval(e.scores["test"]),
                "0 (reference)" if is_reference else signed_interval(e.scores["outer_valid"]),
                f"{e.trials:g}",
                f"{e.inner_steps:,}",
                f"{e.diverged}/{e.num_runs}",
            ]
        )
    return rows


def difference_cells(summary: Summary) -> list[list[str]]:
    """The table of paired differences: a head and a row per entry of the agent and rival."""
    head = ["agent", "against", "test", "", "outer-valid", ""]
    return [head] + [
        [
            summary.labels[d.ours],
            summary.labels[d.rival],
            signed_interval(d.scores["test"]),
            d.finding("test"),
            signed_interval(d.scores["outer_valid"]),
            d.finding("outer_valid"),
        ]
        for d in summary.differences
    ]


def footnote(summary: Summary) -> str:
    """What the columns mean."""
    text = FOOTNOTE.format(reference=summary.labels[summary.reference])
    if not summary.relative:
        text += (
            " Where a task's losses are not all positive, a difference over their spread stands "
            "for the log ratio."
        )
    return text


def format_summary(summary: Summary) -> str:
    """Everything that a comparison found, as text for a terminal."""
    head = extent(summary)
    parts = [head, align(entry_cells(summary))]
    if summary.differences:
        parts.append(align(difference_cells(summary), left=2))
        parts.append("\n".join(fill(sentence, WIDTH) for sentence in verdict(summary)))
    return "\n\n".join([*parts, fill(footnote(summary), WIDTH)])


def extent(summary: Summary) -> str:
    """How much was run."""
    tasks, seeds = len(summary.tasks), len(summary.seeds)
    return f"{tasks} task{'s' * (tasks > 1)}, {seeds} seed{'s' * (seeds > 1)} each"
