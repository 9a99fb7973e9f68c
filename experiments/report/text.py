"""Text of a comparison: the verdict, tables for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from textwrap import fill

from pacesetter.experiments.analysis.findings import EntrySummary, Finding, Summary
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.runs.records import Entry

WIDTH = 100
"""Columns at which running text is broken."""
MOST_NAMES = 6
"""Rivals that a sentence names; of more it gives the number."""
FEW = 5
"""With fewer tasks or seeds than this, intervals are too short, and readers are told so."""
MOST_STARTS = 2
"""Starts of the learning rate that are shown one by one; of more, the nearest to the reference."""
_CLAIMS: tuple[tuple[Finding, str], ...] = (
    ("better", "better than"),
    ("no clear difference", "not clearly different from"),
    ("worse", "worse than"),
)
FOOTNOTE = (
    "Scores: mean over tasks of log(final loss / {reference}'s), paired by seed; below zero is "
    "better. In brackets: 95 % bootstrap intervals, tasks and seeds within them resampled. "
    "'Better' and 'worse' are said where p < 5 % after Holm's correction for the number of arms. "
    "Arms with trials chose their setting on outer-valid, so that test is the fairer column. Inner "
    "steps include tuning; what the policy cost to train is not in them."
)
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--"}


def signed_interval(interval: Interval) -> str:
    """An interval in words.

    >>> signed_interval(Interval(-0.1, -0.2, 0.05))
    '-0.100 [-0.200, +0.050]'
    """
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def plain_interval(interval: Interval | None, *, digits: int = 2) -> str:
    """An interval of what is not a difference; a dash where there is none.

    >>> plain_interval(Interval(0.5, 0.25, 1.0)), plain_interval(None)
    ('0.50 [0.25, 1.00]', '–')
    """
    if interval is None:
        return "–"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:.{digits}f}"
    low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
    return f"{interval.estimate:.{digits}f} [{low}, {high}]"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def agents(summary: Summary) -> list[Entry]:
    """The agent's entries that are spoken of: all starts, or of many the one in the field."""
    entries = list(dict.fromkeys(d.ours for d in summary.differences))
    starts = Counter(e.arm for e in entries)
    return [e for e in entries if starts[e.arm] <= MOST_STARTS or e in summary.field]


def verdict(summary: Summary) -> list[str]:
    """What can be said of the agent on the test split: a sentence for each start."""
    unit = "log ratio" if summary.relative else "log ratio, or difference over its spread"
    sentences = []
    for entry in agents(summary):
        score = summary.of(entry).scores["test"]
        what = f"test loss {_percent(score.estimate)} than" if summary.relative else "score against"
        found = _found(summary, entry)
        parts = [f"{word}: {some(found[key])}" for key, word in _CLAIMS if key in found]
        sentences.append(
            f"{capital(summary.labels[entry])}: {what} {summary.labels[summary.reference]}'s "
            f"({unit} {signed_interval(score)}, mean over tasks); {'; '.join(parts)}."
        )
    return sentences


def few(summary: Summary) -> bool:
    """Whether so little was run that what is found are hints; one task may stand for itself."""
    return len(summary.seeds) < FEW or 1 < len(summary.tasks) < FEW


def headline(summary: Summary) -> str:
    """The verdict in one sentence: of the agent, or of the best arm where no agent was run."""
    text = _headline(summary)
    hint = "; with so few tasks or seeds these are hints" if few(summary) else ""
    return f"{text}{hint}."


def _headline(summary: Summary) -> str:
    rivals = [e for e in summary.entries if e.entry != summary.reference]
    base = summary.labels[summary.reference]
    if not rivals:
        return f"Only {base} was run: there is nothing to compare it with"
    spoken = [entry for entry in agents(summary) if entry in summary.field]
    if not spoken:
        best = min(rivals, key=lambda e: e.scores["test"].estimate)
        clear = sum(e.finding() == "better" for e in rivals)
        return (
            f"No agent was run; {_standing(summary, best.entry)}, and {clear} of {len(rivals)} "
            f"arms {'is' if clear == 1 else 'are'} clearly better than {base}"
        )
    found = _found(summary, spoken[0])
    total = sum(len(names) for names in found.values())
    parts = []
    for key, word in _CLAIMS:
        names = found.get(key, [])
        which = f" ({some(names, most=3)})" if key == "worse" and names else ""
        parts.append(f"{word} {len(names)}{which}")
    return (
        f"{capital(_standing(summary, spoken[0]))}; of {total} rivals it is "
        f"{', '.join(parts[:-1])} and {parts[-1]}"
    )


def _standing(summary: Summary, entry: Entry) -> str:
    """An arm's test loss against the reference's, with the interval in the same unit."""
    found, base = summary.of(entry), summary.labels[summary.reference]
    score = found.scores["test"]
    if not summary.relative:
        text = f"{found.label} scores {signed_interval(score)} on test against {base}"
    else:
        ends = f"{_change(score.low)} to {_change(score.high)}"
        if not math.isfinite(score.low):
            ends = "one run: no interval"
        change = _percent(score.estimate)
        text = f"{found.label} has a test loss {change} than {base}'s ({ends})"
    normalised = found.normalised.get("test")
    if normalised is not None:
        text += f", a normalised score of {plain_interval(normalised)}"
    return text


def _found(summary: Summary, entry: Entry) -> dict[Finding, list[str]]:
    """Labels of an agent's rivals by what may be said, the strongest rivals first."""
    rows = [d for d in summary.differences if d.ours == entry]
    rows.sort(key=lambda d: summary.of(d.rival).scores["test"].estimate)
    found: dict[Finding, list[str]] = {}
    for row in rows:
        rival = summary.labels[row.rival]
        if entry.start_lr is not None:
            rival = rival.removesuffix(f" from {entry.start_lr:g}")
        found.setdefault(row.finding(), []).append(rival)
    return found


def some(names: Sequence[str], *, most: int = MOST_NAMES) -> str:
    """The first names, and the number of the rest."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _percent(log_ratio: float) -> str:
    change = _change(log_ratio)
    return f"{change[1:]} {'lower' if change.startswith('-') else 'higher'}"


def _change(log_ratio: float) -> str:
    """In percent; infinite where it is too large for a number."""
    percent = 100 * math.expm1(log_ratio) if log_ratio < 700 else math.inf
    size = abs(percent)
    return f"{'-' if percent < 0 else '+'}{size:.{1 if size < 9.95 else 0}f} %"


def align(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lays out rows of cells in columns, the first row being the head, `left` columns flush left.

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
    """Arms by their score on test, the best first; of many starts, those of the field alone."""
    several = {s.arm for s in summary.sensitivity if len(s.start_lrs) > 2}
    shown = [
        e
        for e in summary.entries
        if e.entry.arm not in several or e.entry.start_lr is None or e.entry in summary.field
    ]
    return sorted(shown, key=lambda e: e.scores["test"].estimate)


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
    """The table of how runs went: a head and a row per arm of the field, the best first."""
    head = ["arm", "best within run", "mean over run", "reached", "steps", "time per run"]
    return [head] + [
        [
            e.label,
            "–" if e.best is None else signed_interval(e.best),
            "–" if e.area is None else signed_interval(e.area),
            plain_interval(e.reached),
            plain_interval(e.steps_to_target),
            plain_interval(e.overhead),
        ]
        for e in ranked(summary)
        if e.entry in summary.field
    ]


def _speed_footnote(summary: Summary) -> str:
    base = summary.labels[summary.reference]
    return (
        f"Outer-valid loss: at its best within a run, and its mean over the run, as log ratio to "
        f"{base}'s. Target: {base}'s final loss; share of runs that reached it, and the share of "
        "their steps that it took, runs that never reached it counting as whole runs. Time per "
        f"run: over {base}'s; runs trained side by side share their time."
    )


def _difference_cells(summary: Summary) -> list[list[str]]:
    head = ["agent", "against", "test", "", "chance to win", "outer-valid", ""]
    return [head] + [
        [
            summary.labels[d.ours],
            summary.labels[d.rival],
            signed_interval(d.scores["test"]),
            d.finding("test"),
            plain_interval(d.improvement),
            signed_interval(d.scores["outer_valid"]),
            d.finding("outer_valid"),
        ]
        for d in summary.differences
        if d.ours in agents(summary)
    ]


def rank_footnote(summary: Summary) -> str:
    """The tests behind the table of ranks; empty where nothing was ranked."""
    if summary.ranks is None:
        return ""
    return (
        f"Ranks by test loss, mean over tasks; each arm at its largest budget. Friedman's test: "
        f"p = {summary.ranks.friedman_p:.2g}; Nemenyi's critical difference at 5 %: "
        f"{summary.ranks.critical_difference:.2f}."
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
    """What crashed or exploded, a line per arm and task; then doubts about tasks."""
    return [
        f"{f.label} failed on {f.task} ({f.runs} run{'s' * (f.runs > 1)}"
        f"{', left out' if f.left_out else ', counted as diverged'}): {f.reason}"
        for f in summary.failures
    ] + list(summary.doubts)


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
        parts += [align(speed_cells(summary)), fill(_speed_footnote(summary), WIDTH)]
    if summary.ranks is not None:
        ranks = [[summary.labels[e], plain_interval(r)] for e, r in summary.ranks.ranks.items()]
        parts += [align([["arm", "mean rank"], *ranks]), fill(rank_footnote(summary), WIDTH)]
    if summary.sensitivity:
        title = "Score on test by start of the learning rate; penalty: mean above the best start's."
        parts += [title + "\n" + align(sensitivity_cells(summary))]
    if summary.differences:
        parts.append(align(_difference_cells(summary), left=2))
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
    escaped = "".join(_TEX.get(c, c) for c in text)
    return re.sub(r"(?<![\w.-])([+-]\d[\d.]*)", r"$\1$", escaped)


def extent(summary: Summary) -> str:
    tasks, seeds = len(summary.tasks), len(summary.seeds)
    return f"{tasks} task{'s' * (tasks > 1)}, {seeds} seed{'s' * (seeds > 1)} each"
