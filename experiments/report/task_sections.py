"""The report's part on a single task: its curves with the schedules under them, and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from pacesetter.experiments.analysis.findings import Summary
from pacesetter.experiments.analysis.task_findings import TaskSummary
from pacesetter.experiments.report.drawing import Drawing
from pacesetter.experiments.report.figures import Panel, draw_run
from pacesetter.experiments.report.looks import Look
from pacesetter.experiments.report.page import (
    Cell,
    Column,
    Row,
    Scale,
    figure,
    glyph_cell,
    head_cell,
    interval_cell,
    legend,
    number_cell,
    table,
    text_cell,
)
from pacesetter.experiments.report.plots import Quantity, band_data
from pacesetter.experiments.runs.records import Entry, RunRecord

_PANELS: tuple[tuple[Quantity, str, bool, float], ...] = (
    ("curve", "training loss, mean of each interval", True, 1.5),
    ("valid_curve", "outer-valid loss", True, 1.3),
    ("lrs", "learning rate", True, 1.0),
    ("momenta", "momentum", False, 0.8),
    ("clip_thresholds", "clip threshold (gradient norm)", True, 0.8),
)
"""Histories of a record, their names, whether their axis is logarithmic, and relative heights."""


def task_id(slug: str) -> str:
    """The id of a task's part, which its address ends in."""
    return f"task={slug}"


def task_drawing(
    task: TaskSummary,
    records: Sequence[RunRecord],
    *,
    shown: Sequence[Entry],
    looks: Mapping[Entry, Look],
    labels: Mapping[Entry, str],
) -> Drawing | None:
    """Loss curves of a task with the schedules under them; None where no run got anywhere.

    Args:
        task: which.
        records: of all tasks.
        shown: entries to draw.
        looks: by entry.
        labels: by entry.
    """
    panels = []
    for quantity, name, log, height in _PANELS:
        bands = band_data(records, task=task.name, quantity=quantity)
        drawn = {entry: bands[entry] for entry in shown if entry in bands}
        if drawn:
            panels.append(Panel(drawn, name, log, height))
    if not panels:
        return None
    names = ", ".join(panel.name for panel in panels)
    arms = ", ".join(labels[entry] for entry in panels[0].bands)
    text = f"{task.name}, over {task.horizon} inner steps: {names}; of {arms}"
    return draw_run(panels, looks=looks, labels=labels, text=text)


def task_part(
    task: TaskSummary,
    records: Sequence[RunRecord],
    drawing: Drawing | None,
    *,
    summary: Summary,
    shown: Sequence[Entry],
    looks: Mapping[Entry, Look],
    ours: Sequence[str],
    slugs: Mapping[str, str],
) -> str:
    """The part of one task.

    Args:
        task: which.
        records: of all tasks.
        drawing: what `task_drawing` drew.
        summary: of the comparison.
        shown: entries that are drawn.
        looks: by entry.
        ours: names of the agent's arms.
        slugs: by name of the task.
    """
    slug = slugs[task.name]
    here = [record for record in records if record.task == task.name]
    curves = ""
    if drawing is not None:
        curves = figure(
            drawing.element(f"f-{slug}"),
            title="Losses, and the schedules under them",
            caption="Lines are medians over seeds, bands the middle half of them. "
            "The legend's switches dim a line.",
        )
    key = f"runs-{slug}"
    return (
        f'<h2 class="title">{escape(task.name)}</h2>\n'
        f'<p class="note">{escape(_about(task, summary))}</p>\n'
        f"{legend(shown, looks, summary.labels)}"
        f'<div class="run"><div>{curves}</div><div><h3>All arms, by final test loss</h3>\n'
        f"{every_entry(key)}"
        f"{_table(task, here, summary, looks=looks, ours=ours, key=key)}"
        '<p class="note">Against the reference: mean over seeds of log(test loss / the '
        "reference's); left of the dotted line is better. In brackets: 95 % intervals over seeds. "
        "Test losses are means of the runs that did not diverge.</p></div></div>\n"
        f"{_turn(task, summary, slugs)}"
    )


def every_entry(key: str) -> str:
    """The switch between a line per arm and all budgets and starts of a table."""
    return (
        f'<label class="more live"><input type="checkbox" aria-controls="{escape(key)}">'
        "every budget and start</label>\n"
    )


def row_classes(entry: Entry, summary: Summary, ours: Sequence[str]) -> str:
    """Classes of an entry's row."""
    found = ["ours"] if entry.arm in ours else []
    found += ["reference"] if entry == summary.reference else []
    return " ".join([*found, *(["extra"] if entry not in summary.field else [])])


def setting_text(setting: Mapping[str, float | str]) -> str:
    """A setting in short.

    >>> setting_text({"lr": 0.00123456, "shape": "cosine"})
    'lr 0.00123, shape cosine'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.3g}'}"
        for name, value in setting.items()
    )


def _table(
    task: TaskSummary,
    records: Sequence[RunRecord],
    summary: Summary,
    *,
    looks: Mapping[Entry, Look],
    ours: Sequence[str],
    key: str,
) -> str:
    settings = {r.entry: r.setting or {"lr": r.lr} for r in reversed(records)}
    crashed = {r.entry: 0 for r in records}
    for record in records:
        crashed[record.entry] += record.failed is not None
    # Interval ends of a single seed are infinite, which the scale leaves out.
    field = [found.score for entry, found in task.entries.items() if entry in summary.field]
    scale = Scale.around(field)
    metric = task.metric_name
    columns = [
        Column("arm", numeric=False),
        Column("test loss", hint="mean over seeds, with its 95 % interval"),
        Column("against the reference", hint="log ratio of test losses; left is better"),
        *([Column(metric, hint="on test, mean over seeds")] if metric else []),
        *([Column("normalised", hint="0: the reference, 1: the best tuned AdamW")] * task.counts),
        Column("diverged"),
        Column("setting", numeric=False, long=True),
    ]
    share = metric == "accuracy"
    rows = []
    for entry, found in task.entries.items():
        bad = "crashed" if crashed.get(entry) else "diverged"
        chip = f'<span class="chip failed">{found.diverged}/{found.num_runs} {bad}</span>'
        cells = [
            head_cell(summary.labels[entry], looks[entry]),
            interval_cell(found.loss, form="{:.4g}"),
            glyph_cell(found.score, scale, look=looks[entry]),
            *(
                [
                    interval_cell(
                        found.metric,
                        form="{:.1f} %" if share else "{:.4g}",
                        factor=100 if share else 1,
                    )
                ]
                if metric
                else []
            ),
            *([interval_cell(found.normalised, form="{:.2f}")] * task.counts),
            Cell(chip, found.diverged) if found.diverged else number_cell(0),
            text_cell(setting_text(settings.get(entry, {}))),
        ]
        rows.append(Row(cells, row_classes(entry, summary, ours)))
    rows.sort(key=lambda row: _last(row.cells[1].value))
    return table(columns, rows, name=f"All arms on {task.name}", sorted_by=1, key=key)


def _last(value: float | str | None) -> float:
    return value if isinstance(value, float) and math.isfinite(value) else math.inf


def _about(task: TaskSummary, summary: Summary) -> str:
    text = f"{task.horizon:,} inner steps, {len(summary.seeds)} seeds."
    if task.tuned is not None and task.tuned_entry is not None and task.gain is not None:
        label = summary.labels.get(task.tuned_entry, task.tuned_entry.arm)
        text += (
            f" Reference {task.default:.4g}; best tuned AdamW {task.tuned:.4g}, by {label}; "
            f"tuning gains {100 * task.gain:.1f} %."
        )
        if not task.counts:
            text += " That is too little for the task to count in normalised scores."
    return text


def _turn(task: TaskSummary, summary: Summary, slugs: Mapping[str, str]) -> str:
    """Links to the tasks before and after."""
    place = summary.tasks.index(task.name)
    links = ['<a href="#tasks">All tasks</a>']
    if place > 0:
        before = summary.tasks[place - 1]
        links.insert(0, f'<a href="#{task_id(slugs[before])}">← {escape(before)}</a>')
    if place + 1 < len(summary.tasks):
        after = summary.tasks[place + 1]
        links.append(f'<a href="#{task_id(slugs[after])}">{escape(after)} →</a>')
    return f'<nav class="turn live" aria-label="Other tasks">{"".join(links)}</nav>'
