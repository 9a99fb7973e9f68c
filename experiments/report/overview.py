"""The report's overview: the verdict, figures, tables over all tasks, and how it was done."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pacesetter.experiments.analysis.findings import Summary
from pacesetter.experiments.analysis.task_findings import Failure
from pacesetter.experiments.analysis.wording import headline, verdict
from pacesetter.experiments.report.content import Drawn, Report
from pacesetter.experiments.report.overview_tables import (
    arms_table,
    pairs_table,
    ranks_table,
    tasks_table,
)
from pacesetter.experiments.report.page import (
    Column,
    Row,
    figure,
    head_cell,
    legend,
    number_cell,
    paragraphs,
    table,
    text_cell,
)
from pacesetter.experiments.report.tables import extent, footnote
from pacesetter.experiments.report.task_sections import every_entry

_CAPTIONS = {
    "profile": (
        "Performance profile",
        "Share of runs that score higher than the value below; higher lines are better. Bands are "
        "point-wise 95 % intervals over tasks and seeds.",
    ),
    "budget": (
        "What tuning buys",
        "Score by trials per task, with 95 % intervals; lower is better, 0 is the reference. What "
        "needs no tuning is drawn level.",
    ),
    "sensitivity": (
        "What the start matters",
        "Score by the learning rate that a run starts from, with 95 % intervals; lower and flatter "
        "is better.",
    ),
}


def overview_part(report: Report, drawn: Drawn) -> str:
    """The overview, as HTML.

    Args:
        report: what it is about.
        drawn: its figures.
    """
    summary = report.summary
    agents = [e for e in drawn.shown if e.arm in report.ours]
    panels = ""
    for name, (title, caption) in _CAPTIONS.items():
        if name in drawn.overview:
            svg = drawn.overview[name].element(f"f-{name}")
            whole = figure(svg, title=title, caption=caption)
            panels += f"<div>{whole}{drawn.legends.get(name, '')}</div>\n"
    switch = len(summary.field) < len(summary.entries)
    sections = [
        f'<p class="note">{escape(extent(summary))}</p>',
        _verdict(summary),
        _facts(report),
        _failures(summary),
        '<h2 id="figures">At a glance</h2>',
        legend(drawn.shown, drawn.looks, summary.labels),
        f'<div class="panels">{panels}</div>',
        '<h2 id="arms">All arms</h2>',
        every_entry("all-arms") if switch else "",
        arms_table(summary, looks=drawn.looks, ours=report.ours, key="all-arms"),
        f'<p class="note">{escape(footnote(summary))}</p>',
    ]
    if summary.differences:
        sections += [
            '<h2 id="pairs">The agent against each rival</h2>',
            every_entry("all-pairs") if switch else "",
            pairs_table(summary, looks=drawn.looks, key="all-pairs"),
        ]
    if summary.ranks is not None:
        ranks = summary.ranks
        sections += [
            '<h2 id="ranks">Ranks over tasks</h2>',
            ranks_table(ranks, summary, looks=drawn.looks),
            f'<p class="note">Friedman\'s test that all arms do equally well: p = '
            f"{ranks.friedman_p:.2g}. Arms whose mean ranks are less than "
            f"{ranks.critical_difference:.2f} apart share a letter (Nemenyi, 5 %).</p>",
        ]
    sections += [
        '<h2 id="tasks">Task by task</h2>',
        tasks_table(
            summary,
            agent=agents[0] if agents else None,
            looks=drawn.looks,
            slugs=drawn.slugs,
        ),
        _method(report),
    ]
    return "\n".join(section for section in sections if section)


def _verdict(summary: Summary) -> str:
    """The verdict in a sentence, and on demand what may be said of each rival."""
    sentences = verdict(summary)
    more = f"<details><summary>In full</summary>{paragraphs(sentences)}</details>"
    return (
        f'<div class="verdict">{paragraphs([headline(summary)])}{more if sentences else ""}</div>'
    )


def _facts(report: Report) -> str:
    """Sizes of the comparison."""
    summary = report.summary
    diverged = sum(record.diverged for record in report.records)
    facts = {
        "tasks": f"{len(summary.tasks)}",
        "seeds": f"{len(summary.seeds)}",
        "arms": f"{len({record.arm for record in report.records})}",
        "runs": f"{len(report.records):,}",
        "inner steps": f"{sum(e.inner_steps for e in summary.entries):,}",
        "diverged or crashed": f"{diverged:,}",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def _failures(summary: Summary) -> str:
    """What crashed, before anything else is read."""
    if not summary.failures:
        return ""
    # The same crash on many tasks is one line.
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in summary.failures:
        alike.setdefault((failure.label, failure.reason), []).append(failure)
    columns = [
        Column("arm", numeric=False),
        Column("runs"),
        Column("tasks", numeric=False, long=True),
        Column("reason", numeric=False, long=True),
    ]
    rows = [
        Row(
            [
                head_cell(label),
                number_cell(sum(f.runs for f in found)),
                text_cell(_some([f.task for f in found])),
                text_cell(reason),
            ]
        )
        for (label, reason), found in alike.items()
    ]
    gone = sorted({f.label for f in summary.failures if f.left_out})
    note = f"Failed everywhere and so in no other table: {', '.join(gone)}. " if gone else ""
    note += "Elsewhere runs that crashed count as diverged."
    return (
        f'<section class="failures" id="failures"><h2>Failed runs</h2>'
        f"{table(columns, rows, name='Failed runs')}"
        f'<p class="note">{escape(note)}</p></section>'
    )


def _some(names: Sequence[str], *, most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _method(report: Report) -> str:
    columns = [Column("arm", numeric=False), Column("what it is", numeric=False, long=True)]
    arms = [Row([head_cell(arm.label), text_cell(arm.source)]) for arm in report.arms]
    columns_of_environment = [Column("", numeric=False), Column("", numeric=False, long=True)]
    environment = [Row([head_cell(k), text_cell(v)]) for k, v in report.environment.items()]
    return (
        f'<h2 id="method">How it was done</h2>\n{paragraphs(report.notes)}'
        f"<h2>What the arms are</h2>\n{table(columns, arms, name='What the arms are')}"
        "<h2>Environment</h2>\n"
        f"{table(columns_of_environment, environment, name='Environment', sortable=False)}"
        "<h2>To do it again</h2>\n"
        f"<pre><code>{escape(report.command)}</code></pre>\n"
        '<p class="note">The runs themselves are in <code>results.csv</code> beside this page, its '
        "figures in <code>figures</code>.</p>"
    )
