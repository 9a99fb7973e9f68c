"""A comparison's work on one task, in pieces: each is written when it is over, and not done twice.

First the searches of the arms that are tuned; then, on the report's seeds, the agents, the
baselines that run side by side, and each of the others by itself. A piece that a stopped process
had begun is done anew; trials of a search are kept one by one (see `studies`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pacesetter.agent.runs.interruption import safe_point
from pacesetter.experiments.runs.arm_runs import Chosen, Plan, task_records
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.baselines import AGENT_ARMS, REFERENCE
from pacesetter.experiments.runs.batched import batches
from pacesetter.experiments.runs.records import RunRecord, read_records, write_records
from pacesetter.experiments.runs.replay import Replay
from pacesetter.experiments.runs.agents import run_configured
from pacesetter.experiments.studies import Proposal, Search, TrialResult
from pacesetter.experiments.tuning import TUNING_SEEDS, RunTrials, budgets, tune
from pacesetter.inner_models.task import Task

SENSITIVE = (REFERENCE, "adamw-cosine")
"""Arms that are run from all starts of the agent too, where it has several: AdamW by hand."""


@dataclass(frozen=True)
class Piece:
    """A part of the work on a task that is kept in one file.

    Attributes:
        name: of the file, and for the progress bar.
        plan: what is run.
    """

    name: str
    plan: Plan

    def path(self, folder: Path) -> Path:
        """The file, in the folder of a task's records."""
        return folder / f"{self.name}.json"


def pieces(plan: Plan) -> list[Piece]:
    """Cuts a plan in pieces: agents, siblings, and each other baseline by itself.

    Args:
        plan: of the whole comparison.
    """
    found = []
    if any(arm.name in plan.arms for arm in AGENT_ARMS):
        found.append(Piece("agents", replace(plan, baselines=())))
    siblings = tuple(b for b in plan.baselines if _sibling(b))
    if siblings:
        found.append(Piece("siblings", replace(plan, arms=(), baselines=siblings)))
    return found + [
        Piece(slug(b.name), replace(plan, arms=(), baselines=(b,)))
        for b in plan.baselines
        if not _sibling(b)
    ]


def _sibling(baseline: Baseline) -> bool:
    return baseline.batched and not baseline.population


def slug(name: str) -> str:
    """A name as that of a file.

    >>> slug("digits-mlp/0")
    'digits-mlp_0'
    """
    return re.sub(r"[^\w.-]+", "_", name)


def search_arms(
    task: Task, plan: Plan, *, trials: int, storage: Path, seed: int
) -> dict[str, Search]:
    """Tunes all arms that are tuned, on one task.

    Args:
        task: the task.
        plan: of the whole comparison.
        trials: of each arm.
        storage: where searches are kept.
        seed: of what they try.

    Returns:
        What was found, by name of the arm.
    """
    spaces = {b.name: b.space for b in plan.baselines if b.tuned}
    run = trial_runner(task, plan)
    return tune(task.name, spaces, run, trials=trials, storage=storage, seed=seed)


def trial_runner(task: Task, plan: Plan) -> RunTrials:
    """What runs trials of the plan's baselines on a task."""
    return partial(run_trials, task, plan)


def run_trials(task: Task, plan: Plan, proposals: Sequence[Proposal]) -> list[TrialResult]:
    """Runs trials of the plan's baselines on a task.

    Args:
        task: the task.
        plan: of the whole comparison.
        proposals: what to run.
    """
    outcomes = run_configured(
        task,
        _configured(plan, proposals),
        seeds=TUNING_SEEDS,
        device=plan.device,
        evaluate=("outer_valid",),
        jobs=plan.jobs,
    )
    n = len(TUNING_SEEDS)
    results = []
    for i in range(len(proposals)):
        runs = outcomes[i * n : (i + 1) * n]
        losses = [r.losses["outer_valid"] for r in runs]
        # One diverged seed is enough: nobody can use a setting that fails every other time.
        loss = sum(losses) / n if all(map(math.isfinite, losses)) else math.inf
        results.append(TrialResult(loss, next((r.failed for r in runs if r.failed), None)))
    return results


def trial_parts(plan: Plan, proposals: Sequence[Proposal]) -> list[list[int]]:
    """Numbers of the trials that belong together: siblings, and each of the others by itself.

    Args:
        plan: of the whole comparison.
        proposals: what is to be run.
    """
    together = batches(_configured(plan, proposals))
    batched = {i for part in together for i in part}
    return [*together, *([i] for i in range(len(proposals)) if i not in batched)]


def _configured(plan: Plan, proposals: Sequence[Proposal]) -> list[Configured]:
    by_name = {b.name: b for b in plan.baselines}
    return [Configured(by_name[p.arm], p.setting) for p in proposals]


def choose(
    task: Task, plan: Plan, searches: Mapping[str, Search], *, trials: int
) -> dict[str, list[Chosen]]:
    """What every baseline is run with on the report's seeds.

    Args:
        task: the task.
        plan: of the whole comparison.
        searches: what tuning found there.
        trials: of each search.

    Returns:
        By name of the arm: the best setting of each budget with what it cost, and, for the arms in
        `SENSITIVE`, the default from each start of the agent where it has several.
    """
    trial_steps = len(TUNING_SEEDS) * task.horizon
    chosen: dict[str, list[Chosen]] = {}
    for name, search in searches.items():
        chosen[name] = [
            Chosen(
                setting=search.best(budget).setting,
                budget=budget,
                # There is nothing to choose from one: the default is taken as it is.
                tuning_steps=budget * trial_steps if budget > 1 else 0,
            )
            for budget in budgets(trials)
        ]
    for baseline in plan.baselines:
        if baseline.name in SENSITIVE and len(plan.start_lrs) > 1:
            default = baseline.space.default
            own = chosen.setdefault(baseline.name, [Chosen(setting=default)])
            # A start at the default's own rate would be the default once more.
            usual = default.get("lr", baseline.fixed.get("lr"))
            own += [Chosen(setting=default, start_lr=lr) for lr in plan.start_lrs if lr != usual]
    return chosen


def piece_records(
    task: Task,
    piece: Piece,
    folder: Path,
    *,
    chosen: Mapping[str, Sequence[Chosen]],
    replay: Replay | None,
) -> list[RunRecord]:
    """The records of a piece: read where it is done, run and written where it is not.

    Args:
        task: the task.
        piece: what to run.
        folder: of the task's records.
        chosen: what baselines are run with.
        replay: the open-loop replay, where it is among the arms.
    """
    path = piece.path(folder)
    if not path.is_file():
        replayed = replay if piece.plan.arms else None
        records = task_records(task, piece.plan, chosen=chosen, replay=replayed)
        write_records(path, records)
    safe_point()
    return read_records(path)


def edge_notes(task: str, searches: Mapping[str, Search]) -> tuple[list[str], list[str]]:
    """What a reader should know of the bounds of the searches on a task.

    Args:
        task: its name.
        searches: by name of the arm.

    Returns:
        A phrase for each search that was widened, and for each whose best is on an edge still.
    """
    widened = [
        f"{arm} on {task} ({', '.join(search.widened)})"
        for arm, search in searches.items()
        if search.widened
    ]
    edges = [
        f"{arm} on {task} ({', '.join(search.on_edge)})"
        for arm, search in searches.items()
        if search.on_edge
    ]
    return widened, edges
