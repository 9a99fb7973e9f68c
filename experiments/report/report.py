"""The report of a comparison: one HTML file that needs nothing else, and its figures as files."""

from __future__ import annotations

from pathlib import Path

from pacesetter.agent.runs.folder import write_text
from pacesetter.experiments.report.content import Drawn, Report, draw
from pacesetter.experiments.report.overview import overview_part
from pacesetter.experiments.report.page import page
from pacesetter.experiments.report.task_sections import task_id, task_part

__all__ = ["Report", "render", "write_report"]


def write_report(path: Path, report: Report) -> None:
    """Writes the report, and its figures as SVG and PNG into ``figures`` beside it."""
    drawn = draw(report)
    write_text(path, _render(report, drawn))
    folder = path.parent / "figures"
    for name, drawing in drawn.overview.items():
        drawing.write(folder / name)
    for task, drawing in drawn.tasks.items():
        drawing.write(folder / f"task-{drawn.slugs[task]}")


def render(report: Report) -> str:
    """The report as an HTML document."""
    return _render(report, draw(report))


def _render(report: Report, drawn: Drawn) -> str:
    summary = report.summary
    tasks = {
        task_id(drawn.slugs[task.name]): (
            task.name,
            task_part(
                task,
                report.records,
                drawn.tasks.get(task.name),
                summary=summary,
                shown=drawn.shown,
                looks=drawn.looks,
                ours=report.ours,
                slugs=drawn.slugs,
            ),
        )
        for task in summary.task_summaries
    }
    foot = (
        "<p>Made by pacesetter. This page needs no network and keeps nothing but its colours.</p>"
    )
    return page(title=report.title, overview=overview_part(report, drawn), tasks=tasks, foot=foot)
