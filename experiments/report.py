"""The report of a comparison: one HTML file that needs nothing else, no network and no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from pacesetter.agent.run_folder import write_text
from pacesetter.experiments.baselines import POLICY, Arm
from pacesetter.experiments.plots import (
    Quantity,
    band_data,
    colours,
    draw_bands,
    draw_intervals,
    final_data,
    score_data,
    shown_entries,
)
from pacesetter.experiments.records import Entry, RunRecord
from pacesetter.experiments.summary import Summary, capital, verdict
from pacesetter.experiments.tables import difference_cells, entry_cells, extent, footnote

FINAL_SEED = 0
"""Of the bootstrap behind the intervals of single tasks."""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 70rem; padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
.verdict { background: #f4f1ea; border-left: 4px solid #d1495b; padding: .7rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; white-space: nowrap; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid #999; font-weight: 600; } td { border-bottom: 1px solid #eee; }
th.left, td.left { text-align: left; }
.panels { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.panels figure { margin: 0; flex: 1 1 20rem; max-width: 32rem; }
svg { width: 100%; height: auto; }
.legend { font-size: .85rem; margin: .2rem 0 .8rem; }
.legend span { display: inline-block; margin-right: 1rem; }
.legend i { display: inline-block; width: 1.2rem; height: .25rem; vertical-align: middle;
  margin-right: .35rem; }
.note, footer { font-size: .88rem; color: #555; }
code { overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; }
"""

_PANELS: tuple[tuple[Quantity, str], ...] = (
    ("lrs", "learning rate"),
    ("momenta", "momentum"),
    ("clip_thresholds", "clip threshold (gradient norm)"),
)


@dataclass(frozen=True)
class Report:
    """What goes into a report.

    Attributes:
        title: of the page.
        summary: what the records say.
        records: every run.
        arms: rows of the table of arms.
        notes: paragraphs on how it was done.
        environment: versions and machine, by name.
        command: the exact command.
        ours: names of the agent's arms.
    """

    title: str
    summary: Summary
    records: tuple[RunRecord, ...]
    arms: Sequence[Arm]
    notes: Sequence[str]
    environment: Mapping[str, str]
    command: str
    ours: tuple[str, ...] = (POLICY.name,)


def write_report(path: Path, report: Report) -> None:
    """Writes the report, and beside it its first figure as ``scores.svg``."""
    write_text(path, render(report))
    svg = scores_figure(report.summary, report.ours)
    named = svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    write_text(path.with_name("scores.svg"), named + "\n")


def scores_figure(summary: Summary, ours: Sequence[str] = (POLICY.name,)) -> str:
    """Every arm's score with its interval, as SVG for an HTML page."""
    unit = "mean over tasks of log(test loss / reference's)"
    return draw_intervals(
        score_data(summary),
        labels=summary.labels,
        colour=colours(summary, shown_entries(summary, ours)),
        xlabel=unit if summary.relative else "score on test",
        zero=summary.labels[summary.reference],
    )


def render(report: Report) -> str:
    """The report as an HTML document."""
    summary = report.summary
    colour = colours(summary, shown_entries(summary, report.ours))
    scores = scores_figure(summary, report.ours)
    generator = np.random.default_rng(FINAL_SEED)
    sections = [
        f"<h1>{escape(report.title)}</h1>",
        f'<div class="verdict">{_paragraphs(verdict(summary))}</div>',
        f'<p class="note">{extent(summary)}.</p>',
        "<h2>All arms</h2>",
        f'<div class="panels">{_figure("Further left is better", scores)}</div>',
        _table(entry_cells(summary), left=1),
        f'<p class="note">{escape(footnote(summary))}</p>',
        "<h2>The agent against each rival, in pairs</h2>",
        _table(difference_cells(summary), left=2),
        "<h2>Task by task</h2>",
        *(_task(report, task, colour, generator) for task in summary.tasks),
        "<h2>How it was done</h2>",
        f'<div class="note">{_paragraphs(report.notes)}</div>',
        _table([["arm", "what it is"], *([a.label, a.source] for a in report.arms)], left=2),
        "<h2>Environment</h2>",
        _table([["", ""], *([k, v] for k, v in report.environment.items())], left=2),
        f"<footer><p>Made by <code>{escape(report.command)}</code></p></footer>",
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _task(
    report: Report, task: str, colour: Mapping[Entry, str], generator: np.random.Generator
) -> str:
    """One task: loss curves, the schedules that the agent chose, final losses."""
    summary = report.summary
    shown = shown_entries(summary, report.ours)
    agent = [entry for entry in shown if entry.arm in report.ours]
    curves = band_data(report.records, task=task, quantity="curve")
    panels = [
        _figure(
            "Training loss, mean of each interval",
            draw_bands(
                {e: curves[e] for e in shown if e in curves},
                colour=colour,
                ylabel="training loss",
                log=True,
                dashed=[summary.reference],
            ),
        ),
        _figure(
            "Final test loss with 95 % interval",
            draw_intervals(
                final_data(report.records, task=task, generator=generator),
                labels=summary.labels,
                colour=colour,
                xlabel="test loss",
            ),
        ),
    ]
    # The learning rate of the best rival gives a measure for the agent's.
    for quantity, name in _PANELS:
        bands = band_data(report.records, task=task, quantity=quantity)
        entries = shown if quantity == "lrs" else agent
        rivals = [entry for entry in entries if entry not in agent]
        drawn = {e: bands[e] for e in entries if e in bands}
        if drawn:
            svg = draw_bands(
                drawn, colour=colour, ylabel=name, log=quantity != "momenta", dashed=rivals
            )
            panels.append(_figure(f"{capital(name)}, as the agent chose it", svg))
    legend = "".join(
        f'<span><i style="background:{colour[e]}"></i>{escape(summary.labels[e])}</span>'
        for e in shown
    )
    is_open = " open" if task == summary.tasks[0] else ""
    return (
        f"<details{is_open}><summary>{escape(task)}</summary>\n"
        f'<div class="legend">{legend}</div>\n'
        f'<p class="note">Lines are medians over seeds, bands the middle half; dashed: rivals.</p>'
        f'\n<div class="panels">{"".join(panels)}</div></details>'
    )


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>\n" for text in texts)


def _figure(caption: str, svg: str) -> str:
    return f"<figure><h3>{escape(caption)}</h3>{svg}</figure>\n"


def _table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if i < left else ''}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(rows[0], 'th')}</tr></thead>"
    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows[1:])
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
