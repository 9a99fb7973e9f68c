"""Stages of a comparison: the mean schedule, tuning, all pieces of work, the strict replay.

Each reads what is done already and does what is not. A piece is written when it is over, and so is
a trial of a search: a stop, or kill -9, loses what is under way and no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pacesetter.agent.runs.folder import write_json
from pacesetter.experiments.compare_config import TUNING_SEEDS
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import OPEN_LOOP, REFERENCE
from pacesetter.experiments.runs.agents import Replay, meta_train_replay
from pacesetter.experiments.runs.batched import RunOptions
from pacesetter.experiments.runs.execution import Execution, Job
from pacesetter.experiments.runs.matrix import (
    BaselineGroup,
    Choice,
    Piece,
    Plan,
    in_order,
    pieces,
    slug,
    strict_pieces,
)
from pacesetter.experiments.runs.records import RunRecord, read_records, write_records
from pacesetter.experiments.tuning import Proposal, Search, Searches, rounds, tune
from pacesetter.inner_models.task import Task, TaskFamily

SENSITIVE = (REFERENCE, "adamw-cosine")
"""Arms that are run from all starts of the agent too, where it has several: AdamW by hand."""


class Clock:
    """Time spent on a piece of work, over all processes that had a part in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": 0.0}
        self._before = float(known["seconds"])
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._begun

    def write(self) -> None:
        """Keeps it for the next process."""
        write_json(self._path, {"seconds": round(self.seconds, 1)})


@dataclass(frozen=True, kw_only=True)
class Stages:
    """All the work of a comparison; `families` are those of the open-loop replay."""

    plan: Plan
    tasks: Sequence[Task]
    families: Sequence[TaskFamily]
    execution: Execution
    out: Path
    clock: Clock
    bar: Any

    @staticmethod
    def count(plan: Plan, num_tasks: int) -> int:
        """How many steps the bar is told of."""
        starts = len(plan.config.start_lrs)
        each = len(rounds(plan.config.trials)) + len(pieces(plan, choices={})) + starts
        return 1 + num_tasks * each

    def done(self) -> tuple[list[RunRecord], Searches]:
        """Does all of it; returns the records of all runs, and what tuning found."""
        replay = self._replay()
        searches = self._tune()
        work = []
        for task in self.tasks:
            chosen = choose(self.plan, task, searches[task.name])
            work += [(task, piece) for piece in pieces(self.plan, choices=chosen, replay=replay)]
        found = self._pieces("tasks", work)
        records = [r for task in self.tasks for r in in_order(self.plan, found[task.name])]
        strict = strict_pieces(self.plan, records)
        found = self._pieces("strict", [(task, p) for task in self.tasks for p in strict])
        left_out = len(self.plan.config.start_lrs) - len(strict)
        self._over("strict replay", len(self.tasks) * left_out)
        return [*records, *(r for task in self.tasks for r in found[task.name])], searches

    def _over(self, what: str, count: int = 1) -> None:
        self.clock.write()
        self.bar.set_postfix_str(what, refresh=False)
        self.bar.update(count)

    def _replay(self) -> Replay | None:
        path, what = self.out / "replay.json", "the policy's mean schedule"
        found = None
        if OPEN_LOOP.name in self.plan.arms:
            if not path.is_file():
                job = Job(what, _MeanSchedule(self.plan, self.families), None)
                for _, made in self.execution.run([job]):
                    write_json(path, made.mean.tolist())
            mean = np.array(json.loads(path.read_text(encoding="utf-8")))
            found = Replay(mean, self.plan.policy.control)
        self._over(what)
        return found

    def _tune(self) -> Searches:
        config = self.plan.config
        tuned = {b.name: b for b in self.plan.baselines if b.tuned}
        options = RunOptions(device=config.device)
        left = len(rounds(config.trials))
        n = len(TUNING_SEEDS)

        def run(proposals: Sequence[Proposal]) -> Iterator[tuple[Proposal, float, str | None]]:
            nonlocal left
            jobs, parts = [], []
            for task in self.tasks:
                own = [p for p in proposals if p.task == task.name]
                siblings = [p for p in own if tuned[p.arm].sibling]
                alone = [[p] for p in own if not tuned[p.arm].sibling]
                for part in [siblings, *alone] if siblings else alone:
                    rows = tuple(Configured(tuned[p.arm], p.setting) for p in part)
                    group = BaselineGroup(rows=rows, seeds=TUNING_SEEDS, options=options)
                    jobs.append(Job(f"{task.name}, tuning", group, task))
                    parts.append(part)
            for number, records in self.execution.run(jobs):
                self._over(jobs[number].name, 0)
                for i, proposal in enumerate(parts[number]):
                    runs = records[i * n : (i + 1) * n]
                    # One diverged seed is enough: nobody can use what fails every other time.
                    loss = sum(r.losses["outer_valid"] for r in runs) / n
                    yield proposal, loss, next((r.failed for r in runs if r.failed), None)
            left -= 1
            self._over("tuning", len(self.tasks))

        found = tune(
            [task.name for task in self.tasks],
            {name: baseline.space for name, baseline in tuned.items()},
            run,
            trials=config.trials,
            storage=self.out / "studies.db",
            seed=config.seed,
        )
        self._over("tuning", left * len(self.tasks))
        return found

    def _pieces(
        self, folder: str, work: Sequence[tuple[Task, Piece]]
    ) -> dict[str, list[RunRecord]]:
        """Runs the pieces that are not done yet; returns the records of all, by task."""
        paths = [self.out / folder / slug(task.name) / f"{piece.name}.json" for task, piece in work]
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        self._over("what was done before", len(work) - len(missing))
        # Populations come first: nothing else takes as long.
        missing.sort(key=lambda i: work[i][1].order)
        todo = [work[i] for i in missing]
        jobs = [Job(f"{task.name}, {piece.name}", piece.group, task) for task, piece in todo]
        for number, found in self.execution.run(jobs):
            i = missing[number]
            write_records(paths[i], work[i][1].records(found))
            self._over(jobs[number].name)
        records: dict[str, list[RunRecord]] = {task.name: [] for task in self.tasks}
        for (task, _), path in zip(work, paths, strict=True):
            records[task.name] += read_records(path)
        return records


@dataclass(frozen=True)
class _MeanSchedule:
    """The work of making the open-loop replay."""

    plan: Plan
    families: Sequence[TaskFamily]

    def run(self, task: None) -> Replay:
        config = self.plan.config
        return meta_train_replay(
            self.plan.policy,
            self.families,
            num_tasks=config.replay_tasks,
            generator=torch.Generator().manual_seed(config.seed),
            device=config.device,
        )

    def halves(self) -> list[_MeanSchedule]:
        return []

    def crashed(self, task: None, reason: str) -> Replay:
        raise ChildProcessError(f"the policy's mean schedule cannot be made: {reason}")


def choose(plan: Plan, task: Task, searches: Mapping[str, Search]) -> dict[str, list[Choice]]:
    """Settings of every baseline on the report's seeds, by name of the arm.

    The best setting of each budget with what it cost, and, for the arms in `SENSITIVE`, the default
    from each start of the agent where it has several.
    """
    trial_steps, starts = len(TUNING_SEEDS) * task.horizon, plan.config.start_lrs
    chosen: dict[str, list[Choice]] = {}
    for name, search in searches.items():
        chosen[name] = [
            Choice(
                setting=search.best(budget).setting,
                budget=budget,
                # There is nothing to choose from one: the default is taken as it is.
                tuning_steps=budget * trial_steps if budget > 1 else 0,
            )
            for budget in plan.config.budgets
        ]
    for baseline in plan.baselines:
        if baseline.name in SENSITIVE and len(starts) > 1:
            default = baseline.space.default
            own = chosen.setdefault(baseline.name, [Choice(setting=default)])
            # A start at the default's own rate would be the default once more.
            usual = default.get("lr", baseline.fixed.get("lr"))
            own += [Choice(setting=default, start_lr=lr) for lr in starts if lr != usual]
    return chosen
