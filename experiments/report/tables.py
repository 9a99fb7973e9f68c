"""Tables: plain text for the terminal, Markdown to paste, LaTeX for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill

from pacesetter.experiments.analysis.findings import Difference, EntrySummary, Summary
from pacesetter.experiments.analysis.wording import (
    agents,
    few,
    headline,
    plain_interval,
    signed_interval,
    verdict,
)

WIDTH = 100
"""Columns at which running text is broken."""
FOOTNOTE = (
    "Scores: mean over tasks of log(final loss / {reference}'s), paired by seed; below zero is "
    "better. In brackets: 95 % bootstrap intervals, tasks and seeds within them resampled. "
    "'Better' and 'worse' are said where p < 5 % after Holm's correction for the number of arms. "
    "Arms with trials chose their setting on outer-valid, so that test is the fairer column. Inner "
    "steps include tuning; what the policy cost to train is not in them."
)
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--"}


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
    """Arms by their score on test, the best first; of many starts, those of the field alone.

    What other starts do, the table of starts says.
    """
    several = {s.arm for s in summary.sensitivity if len(s.start_lrs) > 2}
    shown = [e for e in summary.entries if e.entry.arm not in several or _main(summary, e)]
    return sorted(shown, key=lambda e: e.scores["test"].estimate)


def _main(summary: Summary, e: EntrySummary) -> bool:
    return e.entry.start_lr is None or e.entry in summary.field


def entry_cells(summary: Summary) -> list[list[str]]:
    """The table of arms: a head and a row per arm, start and budget, the best first."""
    normalised = any(e.normalised for e in summary.entries)
    head = ["arm", "test", "outer-valid", "normalised", "trials", "inner steps", "diverged"]
    rows = [head]
    for e in ranked(summary):
        is_reference = e.entry == summary.reference
        rows.append(
            [
                e.label,
                "0 (reference)" if is_reference else signed_interval(e.scores["test"]),
                "0 (reference)" if is_reference else signed_interval(e.scores["outer_valid"]),
                plain_interval(e.normalised.get("test")),
                f"{e.trials:g}",
                f"{e.inner_steps:,}",
                f"{e.diverged}/{e.num_runs}",
            ]
        )
    return rows if normalised else [row[:3] + row[4:] for row in rows]


def speed_cells(summary: Summary) -> list[list[str]]:
    """The table of how runs went: a head and a row per arm of the field, the best first.

    A dash where nothing is recorded.
    """
    head = ["arm", "best within run", "mean over run", "reached", "steps", "time", "time per run"]
    return [[*head, "worst regret", "on"]] + [
        [
            e.label,
            "–" if e.best is None else signed_interval(e.best),
            "–" if e.area is None else signed_interval(e.area),
            plain_interval(e.reached),
            plain_interval(e.steps_to_target),
            plain_interval(e.seconds_to_target),
            plain_interval(e.overhead),
            signed_interval(e.regret),
            e.worst_task,
        ]
        for e in ranked(summary)
        if e.entry in summary.field
    ]


def speed_footnote(summary: Summary) -> str:
    """What the columns of `speed_cells` mean."""
    base = summary.labels[summary.reference]
    return (
        f"Outer-valid loss: at its best within a run, and its mean over the run, as log ratio to "
        f"{base}'s. Target: {base}'s final loss; share of runs that reached it, and the "
        f"share of their steps and of {base}'s time that it took, runs that never reached it "
        "counting as whole runs (in time: as the task's longest). Time per run: over "
        f"{base}'s; runs trained side by side share their time. Worst regret: on the task where "
        "test loss lies furthest above the best arm's; interval over seeds."
    )


def difference_cells(summary: Summary) -> list[list[str]]:
    """The table of paired differences: a head and a row per entry of the agent and rival."""
    head = ["agent", "against", "test", "", "chance to win", "outer-valid", ""]
    return [head] + [_difference_row(summary, d) for d in shown_differences(summary)]


def shown_differences(summary: Summary) -> list[Difference]:
    """Differences of the agents that are spoken of."""
    return [d for d in summary.differences if d.ours in agents(summary)]


def _difference_row(summary: Summary, d: Difference) -> list[str]:
    return [
        summary.labels[d.ours],
        summary.labels[d.rival],
        signed_interval(d.scores["test"]),
        d.finding("test"),
        plain_interval(d.improvement),
        signed_interval(d.scores["outer_valid"]),
        d.finding("outer_valid"),
    ]


def rank_cells(summary: Summary) -> list[list[str]]:
    """The table of mean ranks, the best first: a head only where nothing was ranked."""
    rows = [["arm", "mean rank", "not told apart"]]
    if summary.ranks is None:
        return rows
    for entry, rank in summary.ranks.ranks.items():
        groups = [chr(ord("a") + i % 26) for i, g in enumerate(summary.ranks.cliques) if entry in g]
        rows.append([summary.labels[entry], plain_interval(rank), "".join(groups)])
    return rows


def rank_footnote(summary: Summary) -> str:
    """What ranks mean; empty where nothing was ranked."""
    if summary.ranks is None:
        return ""
    return (
        f"Ranks by test loss, mean over tasks; each arm at its largest budget. Friedman's test: "
        f"p = {summary.ranks.friedman_p:.2g}; Nemenyi's critical difference at 5 %: "
        f"{summary.ranks.critical_difference:.2f}. Arms that share a letter are not told apart."
    )


def sensitivity_cells(summary: Summary) -> list[list[str]]:
    """The table of starts: a row per arm that was run from several, a column per start."""
    starts = sorted({lr for s in summary.sensitivity for lr in s.start_lrs})
    rows = [["arm", *(f"{lr:g}" for lr in starts), "penalty"]]
    for s in summary.sensitivity:
        by_start = dict(zip(s.start_lrs, s.scores, strict=True))
        cells = [signed_interval(by_start[lr]) if lr in by_start else "–" for lr in starts]
        rows.append([s.label, *cells, plain_interval(s.penalty)])
    return rows


def failure_lines(summary: Summary) -> list[str]:
    """What crashed, a line per arm and task."""
    return [
        f"{f.label} failed on {f.task} ({f.runs} run{'s' * (f.runs > 1)}"
        f"{', left out' if f.left_out else ', counted as diverged'}): {f.reason}"
        for f in summary.failures
    ]


def footnote(summary: Summary) -> str:
    """What the columns mean."""
    text = FOOTNOTE.format(reference=summary.labels[summary.reference])
    if not summary.relative:
        text += (
            " Where a task's losses are not all positive, a difference over their spread stands "
            "for the log ratio."
        )
    if any(e.normalised for e in summary.entries):
        out = [t.name for t in summary.task_summaries if not t.counts]
        text += (
            " Normalised: interquartile mean over runs of (default - loss) / (default - tuned) on "
            f"test, tuned being the best AdamW arm at {summary.tuned_budget} trials"
        )
        text += f"; without {', '.join(out)}, where tuning gains under 2 %." if out else "."
    if few(summary):
        text += f" With so few as {extent(summary)}, intervals are too short: take them as hints."
    return text


def format_summary(summary: Summary) -> str:
    """Everything that a comparison found, as text for a terminal."""
    parts = [extent(summary), align(entry_cells(summary)), fill(footnote(summary), WIDTH)]
    if any(e.reached for e in summary.entries):
        parts += [align(speed_cells(summary)), fill(speed_footnote(summary), WIDTH)]
    if summary.ranks is not None:
        parts += [align(rank_cells(summary)), fill(rank_footnote(summary), WIDTH)]
    if summary.sensitivity:
        title = "Score on test by start of the learning rate; penalty: mean above the best start's."
        parts += [title + "\n" + align(sensitivity_cells(summary))]
    if summary.differences:
        parts.append(align(difference_cells(summary), left=2))
        parts.append("\n".join(fill(sentence, WIDTH) for sentence in verdict(summary)))
    parts.append(fill(headline(summary), WIDTH))
    return "\n\n".join([*parts, *failure_lines(summary)])


def format_markdown(summary: Summary) -> str:
    """The verdict, the table of arms and what it means, to paste into a page or an issue."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in entry_cells(summary)]
    rule = [":--", *["--:"] * (len(rows[0]) - 1)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
    return "\n\n".join([headline(summary), table, footnote(summary), *failure_lines(summary)])


def format_latex(summary: Summary) -> str:
    """The table of arms in LaTeX, in the style of the package booktabs."""
    rows = [[_tex(cell) for cell in row] for row in entry_cells(summary)]
    body = "\n".join(f"{' & '.join(row)} \\\\" for row in rows[1:])
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n"
        f"\\caption{{{_tex(footnote(summary))}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n\\toprule\n"
        f"{' & '.join(rows[0])} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
        "\\end{table}"
    )


def _tex(text: str) -> str:
    """Text for LaTeX; numbers with a sign are set as mathematics."""
    escaped = "".join(_TEX.get(c, c) for c in text)
    return re.sub(r"(?<![\w.-])([+-]\d[\d.]*)", r"$\1$", escaped)


def extent(summary: Summary) -> str:
    """How much was run."""
    tasks, seeds = len(summary.tasks), len(summary.seeds)
    return f"{tasks} task{'s' * (tasks > 1)}, {seeds} seed{'s' * (seeds > 1)} each"
