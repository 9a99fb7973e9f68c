"""What a report is made of: what it is about, and its figures, drawn once for page and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pacesetter.experiments.analysis.findings import Summary
from pacesetter.experiments.report.drawing import Drawing
from pacesetter.experiments.report.figures import draw_intervals, draw_lines
from pacesetter.experiments.report.looks import LOOKS, OTHERS_LOOK, Look, looks, shown_entries
from pacesetter.experiments.report.page import legend
from pacesetter.experiments.report.plots import (
    budget_data,
    profile_data,
    score_data,
    sensitivity_data,
    task_slugs,
)
from pacesetter.experiments.report.task_sections import task_drawing
from pacesetter.experiments.rivals.arms import Arm
from pacesetter.experiments.rivals.baselines import POLICY
from pacesetter.experiments.runs.records import Entry, RunRecord


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


@dataclass(frozen=True)
class Drawn:
    """What all parts of the report share: which entries are drawn, how, and the figures."""

    shown: list[Entry]
    looks: dict[Entry, Look]
    slugs: dict[str, str]
    overview: dict[str, Drawing] = field(default_factory=dict)
    tasks: dict[str, Drawing] = field(default_factory=dict)
    legends: dict[str, str] = field(default_factory=dict)


def draw(report: Report) -> Drawn:
    """Draws every figure of a report that its records have the numbers for."""
    summary, labels = report.summary, report.summary.labels
    shown = shown_entries(summary, report.ours)
    drawn = Drawn(shown, looks(summary, shown), task_slugs(summary.tasks))
    unit = "log(test loss / reference's)" if summary.relative else "score on test"
    drawn.overview["scores"] = draw_intervals(
        score_data(summary),
        looks=drawn.looks,
        labels=labels,
        xlabel=f"mean over tasks of {unit}\n0: {labels[summary.reference]}",
        text="Score on test of every arm, with 95 % intervals",
    )
    profiles = {e: band for e, band in profile_data(summary).items() if e in shown}
    if profiles:
        drawn.overview["profile"] = draw_lines(
            profiles,
            looks=drawn.looks,
            labels=labels,
            axes_names=(summary.profile_of, "share of runs above"),
            text=f"Share of runs with a higher {summary.profile_of}, by arm",
        )
    budgets = budget_data(summary, shown)
    if budgets:
        drawn.overview["budget"] = draw_lines(
            budgets,
            looks=drawn.looks,
            labels=labels,
            axes_names=("trials for tuning, per task", f"mean over tasks of {unit}"),
            text="Score on test against the number of trials that tuning was given, by arm",
            log=True,
            points=sorted({float(x) for band in budgets.values() for x in band.steps}),
            zero=True,
        )
    starts = sensitivity_data(summary, shown)
    if starts:
        # Arms that are drawn nowhere else take what looks are left.
        taken = [drawn.looks[e] for e in shown]
        free = (look for look in LOOKS if look not in taken)
        own = {e: drawn.looks[e] if e in shown else next(free, OTHERS_LOOK) for e in starts}
        starts = {e: band for e, band in starts.items() if own[e] is not OTHERS_LOOK}
        names = {e: _of_any_start(e, summary) for e in starts}
        drawn.legends["sensitivity"] = legend(list(starts), own, names)
        drawn.overview["sensitivity"] = draw_lines(
            starts,
            looks=own,
            labels=names,
            axes_names=("starting learning rate, over the reference's", f"mean of {unit}"),
            text="Score on test against the learning rate at the start, by arm",
            log=True,
            points=_ticks(sorted({float(x) for band in starts.values() for x in band.steps})),
            zero=True,
        )
    for task in summary.task_summaries:
        drawing = task_drawing(task, report.records, shown=shown, looks=drawn.looks, labels=labels)
        if drawing is not None:
            drawn.tasks[task.name] = drawing
    return drawn


def _of_any_start(entry: Entry, summary: Summary) -> str:
    found = [s.label for s in summary.sensitivity if s.arm == entry.arm]
    return found[0] if found else summary.labels[entry]


def _ticks(places: list[float]) -> list[float]:
    """At most seven of some places, evenly taken."""
    return places[:: -(-len(places) // 7)]
