"""The report of a comparison: one HTML file that needs nothing else, and its figures as files.

`template.html` lays out what is computed here; it escapes every name that a user chose.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from pacesetter.agent.runs.folder import write_bytes, write_text
from pacesetter.experiments.analysis.findings import Failure, Scored, Summary, TaskSummary
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.report.figures import (
    OTHERS_LOOK,
    Band,
    Drawing,
    Panel,
    budget_data,
    draw_intervals,
    draw_panels,
    draw_task,
    finite_ends,
    looks,
    score_data,
    sensitivity_data,
    shown_entries,
)
from pacesetter.experiments.report.text import (
    extent,
    footnote,
    headline,
    rank_footnote,
    some,
    verdict,
)
from pacesetter.experiments.rivals.arms import Arm
from pacesetter.experiments.rivals.baselines import POLICY
from pacesetter.experiments.runs.records import Entry, RunRecord
from pacesetter.inner_models.lookup import require

_WIDTH, _EDGE = 136.0, 6.0
"""Of the drawing of an interval in a table, and of its margins, in pixels."""
_FAR = 3.0
"""A scale reaches this far beyond its middle half at most; values further out get an arrow."""


@dataclass(frozen=True)
class Report:
    """Contents of a report; `ours` are the names of the agent's arms."""

    title: str
    summary: Summary
    records: tuple[RunRecord, ...]
    arms: Sequence[Arm]
    notes: Sequence[str]
    environment: Mapping[str, str]
    command: str
    ours: tuple[str, ...] = (POLICY.name,)


@dataclass(frozen=True)
class Scale:
    """The horizontal scale that the intervals of a column share; a line is drawn at `zero`."""

    low: float
    high: float
    zero: float = 0.0

    @staticmethod
    def around(intervals: Iterable[Interval], *, zero: float = 0.0) -> Scale:
        """A scale on which most of some intervals can be told apart."""
        found = [i for i in intervals if math.isfinite(i.estimate)]
        middles = sorted(i.estimate for i in found) or [zero]
        first, last = middles[len(middles) // 4], middles[-1 - len(middles) // 4]
        reach = _FAR * max(last - first, abs(first - zero), abs(last - zero), 1e-9) / 2
        low = max(min([zero, *(finite_ends(i)[0] for i in found)]), first - reach)
        high = min(max([zero, *(finite_ends(i)[1] for i in found)]), last + reach)
        return Scale(low, max(high, low + 1e-9), zero)

    def places(self, interval: Interval) -> dict[str, float]:
        """Places of an interval on the drawing, pixels; `out`: side on which the estimate is off.

        >>> Scale(-1.0, 1.0).places(Interval(0.0, -1.0, 5.0))
        {'zero': 68.0, 'low': 6.0, 'high': 130.0, 'at': 68.0, 'out': 0}
        """
        low, high = finite_ends(interval)
        values = {"zero": self.zero, "low": low, "high": high, "at": interval.estimate}
        span = self.high - self.low
        shares = {k: min(max((x - self.low) / span, 0.0), 1.0) for k, x in values.items()}
        places = {k: round(_EDGE + (_WIDTH - 2 * _EDGE) * x, 1) for k, x in shares.items()}
        return {**places, "out": (values["at"] > self.high) - (values["at"] < self.low)}


def write_report(path: Path, report: Report) -> None:
    """Writes the report, and its figures as SVG and PNG into ``figures`` beside it."""
    page = _Page(report)
    write_text(path, page.html())
    for name, drawing in page.drawings.items():
        stem = path.parent / "figures" / name
        write_bytes(stem.with_name(f"{name}.svg"), drawing.svg.encode())
        write_bytes(stem.with_name(f"{name}.png"), drawing.png())


def render(report: Report) -> str:
    return _Page(report).html()


def task_slugs(tasks: Sequence[str]) -> dict[str, str]:
    """Distinct names for addresses and files, by task.

    >>> task_slugs(["digits/0", "digits 0"])
    {'digits/0': 'digits-0', 'digits 0': 'digits-0-2'}
    """
    found: dict[str, str] = {}
    for task in tasks:
        plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in task).strip("-")
        slug, number = plain or "task", 1
        while slug in found.values():
            number += 1
            slug = f"{plain or 'task'}-{number}"
        found[task] = slug
    return found


def numbers(interval: Interval | None, form: str, factor: float) -> list[str]:
    """An estimate and, where they are known, the ends of its interval, all times a factor.

    >>> numbers(Interval(-0.5, -1.0, 0.0), "{:+.0f} %", 100), numbers(None, "{}", 1)
    (['−50 %', '−100 %', '+0 %'], [])
    """
    if interval is None or not math.isfinite(interval.estimate):
        return []
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    values = (interval.estimate, interval.low, interval.high)[: 3 if known else 1]
    return [form.format(factor * value).replace("-", "−") for value in values]


def setting_text(setting: Mapping[str, float | str]) -> str:
    """A setting in short.

    >>> setting_text({"lr": 0.00123456, "shape": "cosine"})
    'lr 0.00123, shape cosine'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:.3g}'}"
        for name, value in setting.items()
    )


class _Page:
    """The report in the making: shared looks and names, figures, and tables for the template."""

    def __init__(self, report: Report) -> None:
        self.report, self.summary = report, report.summary
        self.labels = self.summary.labels
        self.shown = shown_entries(self.summary, report.ours)
        self.looks = looks(self.summary, self.shown)
        self.slugs = task_slugs(self.summary.tasks)
        self.drawings = self._overview_drawings()
        for task in self.summary.task_summaries:
            drawing = draw_task(
                task, report.records, shown=self.shown, looks=self.looks, labels=self.labels
            )
            if drawing is not None:
                self.drawings[f"task-{self.slugs[task.name]}"] = drawing

    def html(self) -> str:
        jinja2 = require("jinja2", extra="compare")
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.tests["finite"] = lambda x: x is not None and math.isfinite(x)
        template, style, script = (
            files(__package__).joinpath(name).read_text(encoding="utf-8")
            for name in ("template.html", "style.css", "script.js")
        )
        report, summary = self.report, self.summary
        agent = next((e for e in self.shown if e.arm in report.ours), None)
        ours = {t.name: t.entries[agent].score for t in summary.task_summaries if agent is not None}
        ranks = summary.ranks.ranks if summary.ranks else {}
        text: str = environment.from_string(template).render(
            style=style,
            script=script,
            numbers=numbers,
            report=report,
            summary=summary,
            labels=self.labels,
            looks=self.looks,
            images={name: _image(drawing) for name, drawing in self.drawings.items()},
            extent=extent(summary),
            headline=headline(summary),
            verdict=verdict(summary),
            footnote=footnote(summary),
            rank_footnote=rank_footnote(summary),
            facts={
                "tasks": len(summary.tasks),
                "seeds": len(summary.seeds),
                "arms": len({record.arm for record in report.records}),
                "runs": len(report.records),
                "inner steps": sum(e.inner_steps for e in summary.entries),
                "diverged or crashed": sum(r.diverged for r in report.records),
            },
            failures=_failures(summary),
            left_out=", ".join(sorted({f.label for f in summary.failures if f.left_out})),
            arms=sorted(summary.entries, key=_score),
            metrics=sorted({name for e in summary.entries for name in e.metrics}),
            pairs=sorted(summary.differences, key=_score),
            agent=agent,
            scales={
                "arms": Scale.around(summary.of(e).scores["test"] for e in summary.field),
                "pairs": Scale.around(d.scores["test"] for d in summary.differences),
                "ranks": Scale.around(ranks.values(), zero=(len(ranks) + 1) / 2),
                "tasks": Scale.around(ours.values()),
            },
            tasks=[self._task(task, agent) for task in summary.task_summaries],
            sources=[(arm.label, arm.source) for arm in report.arms],
        )
        return text

    def _overview_drawings(self) -> dict[str, Drawing]:
        summary, labels, shown = self.summary, self.labels, self.shown
        unit = "log(test loss / reference's)" if summary.relative else "score on test"
        found = {
            "scores": draw_intervals(
                score_data(summary),
                looks=self.looks,
                labels=labels,
                xlabel=f"mean over tasks of {unit}\n0: {labels[summary.reference]}",
                text="Score on test of every arm, with 95 % intervals",
            )
        }
        draw = partial(draw_panels, looks=self.looks)
        profiles = [(e, summary.profiles[e]) for e in shown]
        if profiles:
            bands = {e: Band(p.thresholds, p.share, p.low, p.high) for e, p in profiles}
            found["profile"] = draw(
                [Panel(bands, "share of runs above")],
                labels=labels,
                xlabel=summary.profile_of,
                text=f"Share of runs with a higher {summary.profile_of}, by arm",
            )
        if budgets := budget_data(summary, shown):
            found["budget"] = draw(
                [Panel(budgets, f"mean over tasks of {unit}")],
                labels=labels,
                xlabel="trials for tuning, per task",
                text="Score on test against the number of trials for tuning, by arm",
                ticks=_places(budgets.values()),
            )
        if starts := {
            e: band
            for e, band in sensitivity_data(summary, shown).items()
            if self.looks[e] is not OTHERS_LOOK
        }:
            names = {s.arm: s.label for s in summary.sensitivity}
            places = _places(starts.values())
            found["sensitivity"] = draw(
                [Panel(starts, f"mean over tasks of {unit}")],
                labels={e: names[e.arm] for e in starts},
                xlabel="initial learning rate, over the reference's",
                text="Score on test against the initial learning rate, by arm",
                ticks=places[:: -(-len(places) // 7)],
            )
        return found

    def _task(self, task: TaskSummary, agent: Entry | None) -> dict[str, Any]:
        slug, field = self.slugs[task.name], self.summary.field
        about = f"{task.horizon:,} inner steps, {len(self.summary.seeds)} seeds."
        if task.tuned is not None and task.tuned_entry is not None and task.gain is not None:
            label = self.labels.get(task.tuned_entry, task.tuned_entry.arm)
            about += (
                f" Reference {task.default:.4g}; best tuned AdamW {task.tuned:.4g}, by {label}; "
                f"tuning gains {100 * task.gain:.1f} %."
            )
            if not task.counts:
                about += " That is too little for the task to count in normalised scores."
        records = [r for r in self.report.records if r.task == task.name]
        order = [e for e in task.entries if e in field]
        return {
            "id": f"task={slug}",
            "name": task.name,
            "image": f"task-{slug}",
            "table": f"runs-{slug}",
            "about": about,
            "found": task,
            "rows": sorted(
                task.entries.items(),
                key=lambda item: item[1].loss.estimate if item[1].loss else math.inf,
            ),
            "scale": Scale.around(task.entries[e].score for e in field),
            "best": order[0],
            "place": None if agent is None else 1 + order.index(agent),
            "settings": {r.entry: setting_text(r.setting or {"lr": r.lr}) for r in records[::-1]},
            "crashed": Counter(r.entry for r in records if r.failed is not None),
        }


def _failures(summary: Summary) -> list[tuple[str, int, str, str]]:
    """Label, runs, tasks and reason of crashes; the same crash on many tasks is one row."""
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in summary.failures:
        alike.setdefault((failure.label, failure.reason), []).append(failure)
    return [
        (label, sum(f.runs for f in found), some([f.task for f in found], most=3), reason)
        for (label, reason), found in alike.items()
    ]


def _score(found: Scored) -> float:
    return found.scores["test"].estimate


def _places(bands: Iterable[Band]) -> list[float]:
    return sorted({float(x) for band in bands for x in band.steps})


def _image(drawing: Drawing) -> dict[str, str]:
    data = base64.b64encode(drawing.svg.encode()).decode()
    return {"src": f"data:image/svg+xml;base64,{data}", "alt": drawing.text}
