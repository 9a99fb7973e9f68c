"""The goals as tables: what is reached, and how each task came out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.goals_baselines import CALIBRATED, DEFAULT, TUNED, HandRuns
from pacesetter.experiments.goals_criteria import Criterion, Unit
from pacesetter.experiments.goals_losses import Losses
from pacesetter.experiments.goals_policy import (
    POLICY,
    RIGHT_START,
    SEEING,
    SHORT,
    WRONG_STARTS,
)
from pacesetter.experiments.goals_records import GoalRun
from pacesetter.experiments.report.tables import align
from pacesetter.inner_models.task import SplitName

Rows = list[list[str]]
NONE = "–"
"""Where there is nothing to tell."""


def in_unit(value: float, unit: Unit) -> str:
    """A number in its unit.

    >>> in_unit(0.0953, "percent"), in_unit(0.0953, "log ratio"), in_unit(0.0, "times")
    ('+10.0 %', '+0.095', '1.00')
    """
    if math.isinf(value):
        return f"{value:+}"
    match unit:
        case "percent":
            return f"{100 * math.expm1(value):+.1f} %"
        case "log ratio":
            return f"{value:+.3f}"
        case "times":
            return f"{math.exp(value):.2f}"
        case "count":
            return f"{value:.0f}"
        case _:
            return f"{value:.2f}"


def value_cell(value: Interval | None, unit: Unit) -> str:
    """A value with its interval, if it has one."""
    if value is None:
        return NONE
    number = in_unit(value.estimate, unit)
    if not math.isfinite(value.low):
        return number
    return f"{number} [{in_unit(value.low, unit)}, {in_unit(value.high, unit)}]"


def goal_cell(c: Criterion) -> str:
    """What is to be reached."""
    if c.goal is None:
        return NONE
    sign = ">=" if c.at_least else "<" if c.certain else "<="
    return f"{sign} {in_unit(c.goal, c.unit)}{', interval too' if c.certain else ''}"


def verdict_cell(reached: bool | None) -> str:
    """Yes, no, or nothing to tell."""
    return NONE if reached is None else "yes" if reached else "no"


def criteria_rows(criteria: Sequence[Criterion]) -> Rows:
    """A head and a row per criterion, judged on test."""
    head = ["goal", "measured", "test", "outer-valid", "to reach", "reached", "remark"]
    return [head] + [
        [
            c.group,
            c.name,
            value_cell(c.values["test"], c.unit),
            value_cell(c.values["outer_valid"], c.unit),
            goal_cell(c),
            verdict_cell(c.reached()),
            c.remark,
        ]
        for c in criteria
    ]


def task_rows(of: Losses, hand: Mapping[str, HandRuns], runs: Sequence[GoalRun]) -> Rows:
    """A head and a row per task: mean losses on one split, scores, and what was set.

    Args:
        of: losses on the split.
        hand: by name of the task, what tuning chose.
        runs: all of them, for the multiples of the policy.
    """
    head = ["task", "steps", "default", "tuned", "tuning gains", "calibrated", "policy", "score"]
    head += ["seeing", "score", "2/3 steps", "multiple", "tuned setting"]
    scores = {arm: of.scores(arm, RIGHT_START) for arm in (POLICY, SEEING)}
    rows = [head]
    for t, task in enumerate(of.tasks):
        own = [r for r in runs if (r.task, r.arm, r.start_lr) == (task, POLICY, RIGHT_START)]

        def loss(arm: str, start: float | None = None, t: int = t) -> str:
            return f"{of.of(arm, start)[t].mean():.4g}"

        def score(arm: str, t: int = t) -> str:
            return f"{scores[arm][t]:.2f}" if of.counts[t] else NONE

        rows.append(
            [
                *(task, f"{own[0].steps}", loss(DEFAULT), loss(TUNED), f"{of.gain[t]:+.1%}"),
                *(loss(CALIBRATED), loss(POLICY, RIGHT_START), score(POLICY)),
                *(loss(SEEING, RIGHT_START), score(SEEING), loss(SHORT, RIGHT_START)),
                f"{np.exp(np.mean([math.log(r.mean_multiple) for r in own])):.3g}",
                setting_cell(hand[task].setting),
            ]
        )
    return rows


def setting_cell(setting: Mapping[str, float | str]) -> str:
    """A setting of AdamW in a few words.

    >>> setting_cell({"lr": 0.0123, "momentum": 0.9, "schedule": "linear"})
    'lr 0.0123, momentum 0.9, linear'
    """
    if not setting:
        return "the default"
    words = [f"{name} {value:.3g}" for name, value in setting.items() if isinstance(value, float)]
    return ", ".join([*words, *(v for v in setting.values() if isinstance(v, str))])


def start_rows(of: Losses) -> Rows:
    """A head and a row per task: the policy's loss from wrong starts over that from 1e-3."""
    head = ["task", *(f"from {start:g}" for start in WRONG_STARTS), "against default"]
    columns = [of.against(POLICY, POLICY, start, RIGHT_START) for start in WRONG_STARTS]
    columns.append(of.against(POLICY, DEFAULT, RIGHT_START))
    return [head] + [
        [task, *(in_unit(column[t], "percent") for column in columns)]
        for t, task in enumerate(of.tasks)
    ]


def as_text(rows: Rows) -> str:
    """Columns flush left, to read in a terminal."""
    return align(rows, left=len(rows[0]))


def as_markdown(rows: Rows) -> str:
    """A table to paste."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    rule = [":--"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])


def report(
    criteria: Sequence[Criterion],
    losses: Mapping[SplitName, Losses],
    hand: Mapping[str, HandRuns],
    runs: Sequence[GoalRun],
    *,
    notes: Sequence[str],
    markdown: bool,
) -> str:
    """All tables with their titles.

    Args:
        criteria: of the goals.
        losses: by split.
        hand: by name of the task, what tuning chose.
        runs: all of them.
        notes: sentences on what was measured.
        markdown: whether to write Markdown; plain text otherwise.
    """
    table = as_markdown if markdown else as_text
    parts = [("The goals", criteria_rows(criteria))]
    for split, of in losses.items():
        parts.append((f"Tasks, mean final loss on {split}", task_rows(of, hand, runs)))
    for split, of in losses.items():
        parts.append((f"Policy's loss over its loss from 1e-3, on {split}", start_rows(of)))
    title = "## {}\n\n{}" if markdown else "{}\n\n{}"
    return "\n\n".join([*(title.format(name, table(rows)) for name, rows in parts), *notes])
