"""Tables of the report's overview: all arms, the agent against each, ranks, and the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pacesetter.experiments.analysis.findings import EntrySummary, Ranks, Summary
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.report.looks import Look
from pacesetter.experiments.report.page import (
    Cell,
    Column,
    Row,
    Scale,
    finding_cell,
    glyph_cell,
    head_cell,
    interval_cell,
    number_cell,
    table,
    text_cell,
)
from pacesetter.experiments.report.task_sections import row_classes, task_id
from pacesetter.experiments.runs.records import Entry

_SIGNED = "{:+.3f}"
_LOG_RATIO = "mean over tasks of log(loss / the reference's), with 95 % interval; below 0 is better"


def arms_table(
    summary: Summary, *, looks: Mapping[Entry, Look], ours: Sequence[str], key: str
) -> str:
    """All arms with all that was measured of them, the best first; what is not known is left out.

    Args:
        summary: of a comparison.
        looks: by entry.
        ours: names of the agent's arms.
        key: id of the table.
    """
    entries = sorted(summary.entries, key=lambda e: e.scores["test"].estimate)
    scale = Scale.around(e.scores["test"] for e in entries if e.entry in summary.field)
    metrics = sorted({name for e in entries for name in e.metrics})
    columns = [
        Column("arm", numeric=False),
        Column("test score", hint=_LOG_RATIO),
        Column("", hint=_LOG_RATIO),
        Column("normalised", hint="interquartile mean; 0: the reference, 1: the best tuned AdamW"),
        Column("outer-valid score", hint=f"{_LOG_RATIO}; tuning looked at this split"),
        Column("best in run", hint=f"{_LOG_RATIO}; of the best outer-valid loss within each run"),
        Column("area", hint=f"{_LOG_RATIO}; of the mean outer-valid loss over each run"),
        *(Column(name, hint="difference from the reference's, on test") for name in metrics),
        Column("steps to target", hint="share of the steps until as good as the reference's end"),
        Column("time to target", hint="the same in wall-clock, over a whole run of the reference"),
        Column("got there", hint="share of runs that reach the target"),
        Column("worst task", hint="log of the loss over the best arm's, on its worst task"),
        Column("overhead", hint="wall-clock of a run over the reference's"),
        Column("trials", hint="settings tried per task"),
        Column("inner steps", hint="tuning included, over all tasks and seeds"),
        Column("diverged", hint="runs that diverged or crashed"),
    ]
    rows = []
    for e in entries:
        score = e.scores["test"]
        cells = [
            head_cell(e.label, looks[e.entry]),
            glyph_cell(score, scale, look=looks[e.entry]),
            _score_cell(e, score, summary),
            interval_cell(e.normalised.get("test"), form="{:.2f}"),
            _score_cell(e, e.scores["outer_valid"], summary),
            interval_cell(e.best, form=_SIGNED),
            interval_cell(e.area, form=_SIGNED),
            *(_metric_cell(name, e.metrics.get(name)) for name in metrics),
            interval_cell(e.steps_to_target, form="{:.0f} %", factor=100),
            interval_cell(e.seconds_to_target, form="{:.0f} %", factor=100),
            interval_cell(e.reached, form="{:.0f} %", factor=100),
            interval_cell(e.regret, form="{:.2f}"),
            interval_cell(e.overhead, form="{:.2f}×"),
            number_cell(e.trials),
            number_cell(e.inner_steps, "{:,}"),
            _diverged_cell(e),
        ]
        rows.append(Row(cells, row_classes(e.entry, summary, ours)))
    columns, rows = _without_empty(columns, rows)
    return table(columns, rows, name="All arms", sorted_by=1, key=key)


def pairs_table(summary: Summary, *, looks: Mapping[Entry, Look], key: str) -> str:
    """The agent against each rival, those first against which it does best."""
    several = len({d.ours for d in summary.differences}) > 1
    pairs = sorted(summary.differences, key=lambda d: d.scores["test"].estimate)
    scale = Scale.around(d.scores["test"] for d in pairs)
    hint = (
        "mean over tasks of log(the agent's test loss / the rival's); below 0 the agent is better"
    )
    columns = [
        Column("against", numeric=False),
        *([Column("agent", numeric=False)] if several else []),
        Column("difference", hint=hint),
        Column("", hint=hint),
        Column("finding", numeric=False, hint="corrected for the number of rivals (Holm)"),
        Column("p", hint="corrected for the number of rivals (Holm)"),
        Column("chance to be better", hint="of a run against a rival's run of the same task"),
        Column("time", hint="wall-clock of the agent's run over the rival's"),
        Column("on outer-valid", numeric=False),
    ]
    rows = []
    for d in pairs:
        score = d.scores["test"]
        extra = d.ours not in summary.field or d.rival not in summary.field
        cells = [
            head_cell(summary.labels[d.rival], looks[d.rival]),
            *([text_cell(summary.labels[d.ours])] if several else []),
            glyph_cell(score, scale, look=looks[d.ours]),
            interval_cell(score, form=_SIGNED),
            finding_cell(d.finding()),
            number_cell(d.p_values["test"], "{:.2g}"),
            interval_cell(d.improvement, form="{:.0f} %", factor=100),
            interval_cell(d.overhead, form="{:.2f}×"),
            finding_cell(d.finding("outer_valid")),
        ]
        rows.append(Row(cells, "extra" if extra else ""))
    columns, rows = _without_empty(columns, rows)
    place = 2 if several else 1
    return table(columns, rows, name="The agent against each rival", sorted_by=place, key=key)


def ranks_table(ranks: Ranks, summary: Summary, *, looks: Mapping[Entry, Look]) -> str:
    """Mean ranks over tasks, the best first, with the groups that do not differ."""
    middle = (len(ranks.ranks) + 1) / 2
    scale = Scale.around(ranks.ranks.values(), zero=middle)
    columns = [
        Column("arm", numeric=False),
        Column("mean rank", hint="1 is the best; the dotted line is the middle"),
        Column("", hint="mean rank with its 95 % interval"),
        Column("groups", numeric=False, hint="arms that share a letter do not differ (Nemenyi)"),
    ]
    rows = []
    for entry, rank in ranks.ranks.items():
        letters = [chr(ord("a") + i) for i, group in enumerate(ranks.cliques) if entry in group]
        cells = [
            head_cell(summary.labels[entry], looks[entry]),
            glyph_cell(rank, scale, look=looks[entry]),
            interval_cell(rank, form="{:.1f}"),
            text_cell(" ".join(letters)),
        ]
        rows.append(Row(cells, "reference" if entry == summary.reference else ""))
    return table(columns, rows, name="Mean ranks", sorted_by=1, narrow=True)


def tasks_table(
    summary: Summary, *, agent: Entry | None, looks: Mapping[Entry, Look], slugs: Mapping[str, str]
) -> str:
    """The tasks, with links to their parts.

    Args:
        summary: of a comparison.
        agent: whose score is shown; None: there is none.
        looks: by entry.
        slugs: by task.
    """
    scores = {t.name: t.entries[agent].score for t in summary.task_summaries if agent is not None}
    scale = Scale.around(scores.values())
    columns = [
        Column("task", numeric=False),
        Column("steps", hint="inner steps of a run"),
        *([Column("agent's score", hint="log(test loss / the reference's)")] if scores else []),
        *([Column("", hint="with 95 % interval over seeds")] if scores else []),
        *([Column("agent's place", hint="among one entry of each arm")] if scores else []),
        Column("best arm", numeric=False),
        Column("its score", hint="log(test loss / the reference's)"),
        Column("tuning gains", hint="by which the best tuned AdamW is below the reference"),
    ]
    rows = []
    for task in summary.task_summaries:
        field = [entry for entry in task.entries if entry in summary.field]
        best = min(field, key=lambda entry: task.entries[entry].score.estimate)
        cells = [
            head_cell(task.name, link=f"#{task_id(slugs[task.name])}"),
            number_cell(task.horizon, "{:,}"),
        ]
        if agent is not None:
            score = scores[task.name]
            before = sum(task.entries[e].score.estimate < score.estimate for e in field)
            place = Cell(f"{before + 1} of {len(field)}", before + 1)
            cells += [
                glyph_cell(score, scale, look=looks[agent]),
                interval_cell(score, form=_SIGNED),
                place,
            ]
        gain = number_cell(None if task.gain is None else 100 * task.gain, "{:.1f} %")
        cells += [
            text_cell(summary.labels[best]),
            interval_cell(task.entries[best].score, form=_SIGNED),
            gain,
        ]
        rows.append(Row(cells))
    columns, rows = _without_empty(columns, rows)
    return table(columns, rows, name="Tasks")


def _score_cell(e: EntrySummary, score: Interval, summary: Summary) -> Cell:
    return Cell("0", 0.0) if e.entry == summary.reference else interval_cell(score, form=_SIGNED)


def _metric_cell(name: str, difference: Interval | None) -> Cell:
    if name == "accuracy":
        return interval_cell(difference, form="{:+.1f}", factor=100)
    return interval_cell(difference, form="{:+.3g}")


def _diverged_cell(e: EntrySummary) -> Cell:
    if not e.diverged:
        return Cell(f"0/{e.num_runs}", 0)
    crashed = f", {e.failed} crashed" if e.failed else ""
    html = f'<span class="chip failed">{e.diverged}/{e.num_runs}{crashed}</span>'
    return Cell(html, e.diverged)


def _without_empty(columns: list[Column], rows: list[Row]) -> tuple[list[Column], list[Row]]:
    """Leaves out the columns in which nothing is known."""
    kept = [
        i for i in range(len(columns)) if i == 0 or any(r.cells[i].value is not None for r in rows)
    ]
    return [columns[i] for i in kept], [Row([r.cells[i] for i in kept], r.classes) for r in rows]
