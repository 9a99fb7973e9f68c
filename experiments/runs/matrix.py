"""Arms x tasks x seeds: what a comparison has to run, cut into groups that train together."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.experiments.compare_config import TUNING_SEEDS, CompareConfig
from pacesetter.experiments.rivals.arms import AgentArm, Baseline, Configured
from pacesetter.experiments.rivals.baselines import AGENT_ARMS, POLICY, REFERENCE, STRICT
from pacesetter.experiments.rivals.schedules import number
from pacesetter.experiments.rivals.space import Setting
from pacesetter.experiments.runs.agents import (
    ClosedLoop,
    Controller,
    Idle,
    RandomActions,
    Replay,
    mean_replay,
    run_agents,
)
from pacesetter.experiments.runs.batched import RunKey, RunOptions, batches, run_batch
from pacesetter.experiments.runs.plain import run_plain
from pacesetter.experiments.runs.population import population_size, run_population
from pacesetter.experiments.runs.records import REPORTED_SPLITS, RunRecord
from pacesetter.inner_models.task import Task


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run on every task; `baselines` are those among the arms, and the reference."""

    config: CompareConfig
    policy: Policy
    baselines: tuple[Baseline, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of all arms: the reference too, and the policy where it has to be replayed."""
        names = dict.fromkeys((*self.config.arms, REFERENCE))
        if STRICT.name in names:
            names.setdefault(POLICY.name)
        return tuple(names)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.config.num_seeds))

    @property
    def options(self) -> RunOptions:
        """How the runs of the report are trained; only here is the test split read."""
        intervals = self.policy.control.num_intervals
        return RunOptions(
            evaluate=REPORTED_SPLITS, num_intervals=intervals, device=self.config.device
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting that a baseline is run with, and what it took to choose it.

    Attributes:
        setting: of the baseline's space; it may override what the baseline fixes.
        start_lr: was put in place of the chosen learning rate; None: nothing was.
    """

    setting: Setting = field(default_factory=dict)
    budget: int = 1
    tuning_steps: int = 0
    start_lr: float | None = None

    @property
    def run_setting(self) -> dict[str, float | str]:
        own = dict(self.setting)
        return own if self.start_lr is None else {**own, "lr": self.start_lr}

    def applied(self, record: RunRecord) -> RunRecord:
        """The record of a run that was made for this choice."""
        return replace(
            record,
            start_lr=self.start_lr,
            trials=self.budget,
            budget=self.budget,
            inner_steps=self.tuning_steps + record.inner_steps,
        )


@dataclass(frozen=True, kw_only=True)
class RunGroup(ABC):
    """Runs of one task that train together, in one process; `rows` differ, seeds aside."""

    rows: tuple[Any, ...]
    seeds: tuple[int, ...]
    options: RunOptions

    @abstractmethod
    def train(self, task: Task) -> list[RunRecord]:
        """Trains all of them; records row-major, as in `run`."""

    @abstractmethod
    def keys(self, task: Task) -> list[RunKey]:
        """The keys of all of them, row-major."""

    def crashed(self, task: Task, reason: str) -> list[RunRecord]:
        """The records where all of them crashed, or their process died."""
        return [
            RunRecord(
                task=task.name,
                arm=arm,
                seed=seed,
                lr=lr,
                losses=dict.fromkeys(self.options.evaluate, math.nan),
                setting=setting,
                best={"outer_valid": math.nan},
                wall_seconds=0.0,
                failed=reason,
            )
            for arm, setting, seed, lr in self.keys(task)
        ]

    def halves(self) -> list[RunGroup]:
        """Both halves of the group; none where it has a single row."""
        middle = len(self.rows) // 2
        parts = self.rows[:middle], self.rows[middle:]
        return [replace(self, rows=part) for part in parts] if middle else []

    def run(self, task: Task) -> list[RunRecord]:
        """Trains the runs; where that fails, in halves, until the row at fault is alone.

        The same serves where the memory does not hold all of them. Records of row 0 come first.
        """
        try:
            return self.train(task)
        except Exception as error:
            halves = self.halves()
            if not halves:
                lines = str(error).strip().splitlines()
                reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
                return self.crashed(task, reason)
        return [record for half in halves for record in half.run(task)]


@dataclass(frozen=True, kw_only=True)
class BaselineGroup(RunGroup):
    """Settings of any mixture of baselines, each on every seed; `budget` is of a population."""

    rows: tuple[Configured, ...]
    budget: int = 1

    def train(self, task: Task) -> list[RunRecord]:
        n = len(self.seeds)
        alone = [[j] for j, row in enumerate(self.rows) if not row.baseline.sibling]
        parts = [*batches(self.rows), *alone]
        if len(parts) > 1:
            found: dict[int, list[RunRecord]] = {}
            for part in parts:
                records = replace(self, rows=tuple(self.rows[j] for j in part)).run(task)
                found |= {j: records[i * n : (i + 1) * n] for i, j in enumerate(part)}
            return [record for j in range(len(self.rows)) for record in found[j]]
        baseline = self.rows[0].baseline
        if baseline.population:
            members = population_size(self.budget, tuning_seeds=len(TUNING_SEEDS))
            return run_population(
                task, baseline, members=members, seeds=self.seeds, options=self.options
            )
        if baseline.batched:
            return run_batch(task, self.rows, seeds=self.seeds, options=self.options)
        if n == 1:
            return [run_plain(task, self.rows[0], seed=self.seeds[0], options=self.options)]
        return [r for seed in self.seeds for r in replace(self, seeds=(seed,)).run(task)]

    def keys(self, task: Task) -> list[RunKey]:
        hyper = [c.baseline.hyperparameters(c.setting, task) for c in self.rows]
        return [
            (c.baseline.name, dict(c.setting), seed, number(h, "lr", math.nan))
            for c, h in zip(self.rows, hyper, strict=True)
            for seed in self.seeds
        ]


@dataclass(frozen=True, kw_only=True)
class AgentGroup(RunGroup):
    """Ways of using the policy, each on every seed and from every start of the learning rate.

    Rows are arms that can train together, with what decides in them.
    """

    rows: tuple[tuple[AgentArm, Controller], ...]
    starts: tuple[float, ...]
    control: ControlConfig

    @property
    def _pairs(self) -> list[tuple[float, int]]:
        return [(start, seed) for start in self.starts for seed in self.seeds]

    def train(self, task: Task) -> list[RunRecord]:
        arm, _ = self.rows[0]
        runs = run_agents(
            [arm.task(task, start=start, seed=seed) for start, seed in self._pairs],
            [
                replace(c, task=task.name) if isinstance(c, RandomActions) else c
                for _, c in self.rows
            ],
            control=self.control,
            device=self.options.device,
        )
        keys: list[RunKey] = [
            (arm.name, {}, seed, start) for start, seed in self._pairs for arm, _ in self.rows
        ]
        found = runs.records(task, keys, evaluate=self.options.evaluate)
        n = len(self.rows)
        return [replace(r, start_lr=r.lr) for j in range(n) for r in found[j::n]]

    def keys(self, task: Task) -> list[RunKey]:
        return [(arm.name, {}, seed, lr) for arm, _ in self.rows for lr, seed in self._pairs]

    def crashed(self, task: Task, reason: str) -> list[RunRecord]:
        return [replace(record, start_lr=record.lr) for record in super().crashed(task, reason)]


@dataclass(frozen=True)
class Piece:
    """A part of the runs on one task that is kept in one file.

    Attributes:
        wanted: rows of the group, and the choices that each of them stands for; None: records are
            kept as they are.
        order: those of a lower one begin first.
    """

    name: str
    group: RunGroup
    wanted: tuple[tuple[int, Choice], ...] | None = None
    order: int = 1

    def records(self, found: Sequence[RunRecord]) -> list[RunRecord]:
        """What is kept of what `RunGroup.run` has returned."""
        if self.wanted is None:
            return list(found)
        n = len(self.group.seeds)
        return [c.applied(r) for row, c in self.wanted for r in found[row * n : (row + 1) * n]]


def pieces(
    plan: Plan, *, choices: Mapping[str, Sequence[Choice]], replay: Replay | None = None
) -> list[Piece]:
    """All runs on one task, but for the strict replay, which needs all tasks' runs first.

    The agents, all baselines that are siblings, the other ones seed by seed, and populations budget
    by budget. A baseline that is not named in `choices` runs as it is; equal settings run once.
    """
    found = []
    for agents in _programs(plan, replay):
        together = [arm.name for arm in agents if not arm.by_default]
        name = "-".join(["agents", *together])
        found.append(Piece(name, _agents(plan, agents, plan.config.start_lrs)))
    siblings = [b for b in plan.baselines if b.sibling]
    if siblings:
        found.append(_piece(plan, "siblings", siblings, choices, seeds=plan.seeds))
    for baseline in plan.baselines:
        if baseline.population:
            row = Configured(baseline, baseline.space.default)
            for budget in plan.config.budgets:
                group = BaselineGroup(
                    rows=(row,), seeds=plan.seeds, options=plan.options, budget=budget
                )
                wanted = ((0, Choice(budget=budget)),)
                found.append(Piece(f"{slug(baseline.name)}-{budget}", group, wanted, order=0))
        elif not baseline.sibling:
            found += [
                _piece(plan, f"{slug(baseline.name)}-{seed}", [baseline], choices, seeds=(seed,))
                for seed in plan.seeds
            ]
    return found


def in_order(plan: Plan, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records of all pieces on one task, budget by budget within each arm."""
    alone = {b.name: i for i, b in enumerate(plan.baselines) if not b.sibling}
    return sorted(records, key=lambda r: (alone[r.arm], r.budget) if r.arm in alone else (-1, 0))


def strict_pieces(plan: Plan, records: Sequence[RunRecord]) -> list[Piece]:
    """The strict replay: the policy's mean schedule over all compared tasks, from each start.

    Where all runs of the policy crashed there is nothing to replay.
    """
    found = []
    for start in plan.config.start_lrs if STRICT.name in plan.arms else ():
        schedules = [
            np.asarray(r.trajectory)
            for r in records
            if r.arm == POLICY.name and r.start_lr == start and r.trajectory
        ]
        if schedules:
            agents = {STRICT: mean_replay(schedules, plan.policy.control)}
            found.append(Piece(f"{start:g}", _agents(plan, agents, (start,))))
    return found


def slug(name: str) -> str:
    """A name as that of a file.

    >>> slug("digits-mlp/0")
    'digits-mlp_0'
    """
    return re.sub(r"[^\w.-]+", "_", name)


def _programs(plan: Plan, replay: Replay | None) -> list[dict[AgentArm, Controller]]:
    """The agents with what decides in them; those of one program train side by side."""
    controllers: dict[str, Controller | None] = {
        "policy": ClosedLoop(plan.policy),
        "replay": replay,
        "random": RandomActions(plan.config.seed),
        "idle": Idle(),
    }
    programs: dict[object, dict[AgentArm, Controller]] = {}
    for arm in AGENT_ARMS:
        controller = controllers.get(arm.controller)
        if arm.name in plan.arms and controller is not None:
            programs.setdefault(arm.together, {})[arm] = controller
    return list(programs.values())


def _agents(
    plan: Plan, controllers: Mapping[AgentArm, Controller], starts: tuple[float, ...]
) -> AgentGroup:
    return AgentGroup(
        rows=tuple(controllers.items()),
        seeds=plan.seeds,
        options=plan.options,
        starts=starts,
        control=plan.policy.control,
    )


def _piece(
    plan: Plan,
    name: str,
    baselines: Sequence[Baseline],
    choices: Mapping[str, Sequence[Choice]],
    *,
    seeds: tuple[int, ...],
) -> Piece:
    # The budgets of a search often end at one setting: it is run once, and counts for each.
    rows: dict[tuple[str, str], Configured] = {}
    wanted = []
    for baseline in baselines:
        for choice in choices.get(baseline.name, (Choice(setting=baseline.space.default),)):
            key = (baseline.name, json.dumps(choice.run_setting, sort_keys=True))
            rows.setdefault(key, Configured(baseline, choice.run_setting))
            wanted.append((list(rows).index(key), choice))
    group = BaselineGroup(rows=tuple(rows.values()), seeds=seeds, options=plan.options)
    return Piece(name, group, tuple(wanted))
