"""Runs all arms of a comparison on one task and keeps a record of each run.

This is the one place where a comparison reads the test split: once per run, when it is over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pacesetter.agent.policy.policy import Policy
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.baselines import DO_NOTHING, OPEN_LOOP, POLICY, RANDOM, STRICT
from pacesetter.experiments.runs.outcomes import RunOutcome, crashed, why
from pacesetter.experiments.runs.population import population_size, run_population
from pacesetter.experiments.runs.records import REPORTED_SPLITS, RunRecord
from pacesetter.experiments.runs.replay import Replay, mean_replay
from pacesetter.experiments.runs.agents import (
    ClosedLoop,
    Controller,
    Idle,
    RandomActions,
    halved,
    run_agents,
    run_configured,
)
from pacesetter.experiments.rivals.space import Setting
from pacesetter.experiments.tuning import TUNING_SEEDS
from pacesetter.inner_models.task import Task

START_MOMENTUM = 0.9
"""``betas[0]`` from which the agent starts: AdamW's default, as in every AdamW baseline."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run on every task.

    Attributes:
        arms: names of arms.
        baselines: those of them that are baselines, and the reference.
        policy: the agent.
        start_lrs: learning rates from which it starts.
        seeds: of the report.
        device: where the runs live.
        budgets: of a population; other baselines bring theirs in what was chosen.
        jobs: worker processes for arms that cannot be batched.
    """

    arms: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    policy: Policy
    start_lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    device: str
    budgets: tuple[int, ...] = (1,)
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A setting that a baseline is run with, and what it took to choose it.

    Attributes:
        setting: of the baseline's space; it may override what the baseline fixes.
        budget: trials that the choice was given.
        tuning_steps: inner steps that it cost.
        start_lr: a learning rate that was put in place of the chosen one, to see how much depends
            on it; None: it was not.
    """

    setting: Setting = field(default_factory=dict)
    budget: int = 1
    tuning_steps: int = 0
    start_lr: float | None = None

    @property
    def run_setting(self) -> dict[str, float | str]:
        """What is run."""
        own = dict(self.setting)
        return own if self.start_lr is None else {**own, "lr": self.start_lr}


def task_records(
    task: Task, plan: Plan, *, chosen: Mapping[str, Sequence[Chosen]], replay: Replay | None
) -> list[RunRecord]:
    """Runs every arm on one task, but for the strict replay, which needs all tasks' runs first.

    Args:
        task: the task.
        plan: what to run.
        chosen: what to run baselines with, by name; one that is not named runs as it is. Equal
            settings are run once.
        replay: the open-loop replay; None: it is not among the arms.
    """
    controllers: dict[str, Controller] = {}
    # The strict replay plays back what the policy did: it needs the policy's runs.
    if POLICY.name in plan.arms or STRICT.name in plan.arms:
        controllers[POLICY.name] = ClosedLoop(plan.policy)
    if replay is not None:
        controllers[OPEN_LOOP.name] = replay
    if RANDOM.name in plan.arms:
        controllers[RANDOM.name] = RandomActions()
    if DO_NOTHING.name in plan.arms:
        controllers[DO_NOTHING.name] = Idle()
    records = _agent_records(task, plan, controllers, starts=plan.start_lrs) if controllers else []
    return [*records, *_baseline_records(task, plan, chosen), *_population_records(task, plan)]


def strict_records(task: Task, plan: Plan, replays: Mapping[float, Replay]) -> list[RunRecord]:
    """Runs the strict replay on one task, from every start.

    Args:
        task: the task.
        plan: what to run.
        replays: by start; see `strict_replays`.
    """
    return [
        record
        for start, replay in replays.items()
        for record in _agent_records(task, plan, {STRICT.name: replay}, starts=[start])
    ]


def strict_replays(records: Sequence[RunRecord], plan: Plan) -> dict[float, Replay]:
    """The mean schedule of the policy over the compared tasks, by start.

    Args:
        records: of all tasks.
        plan: what was run.
    """
    return {
        start: mean_replay(
            [
                np.asarray(r.trajectory)
                for r in records
                if r.arm == POLICY.name and r.start_lr == start and r.trajectory is not None
            ],
            plan.policy.control,
        )
        for start in plan.start_lrs
    }


def _agent_records(
    task: Task, plan: Plan, controllers: Mapping[str, Controller], *, starts: Sequence[float]
) -> list[RunRecord]:
    names = list(controllers)
    pairs = [(start, seed) for start in starts for seed in plan.seeds]
    tasks = [
        task.with_optimizer(name="adamw", lr=start, momentum=START_MOMENTUM).with_seed(seed)
        for start, seed in pairs
    ]

    def run(rows: Sequence[int]) -> list[RunOutcome]:
        """Outcomes, controller-major."""
        own = [controllers[names[j]] for j in rows]
        runs = run_agents(tasks, own, control=plan.policy.control, device=plan.device)
        keys: list[tuple[str, dict[str, float | str], int, float]] = [
            (names[j], {}, seed, start) for start, seed in pairs for j in rows
        ]
        found = runs.outcomes(task, keys, evaluate=REPORTED_SPLITS)
        return [found[i * len(rows) + j] for j in range(len(rows)) for i in range(len(pairs))]

    def failure(j: int, error: Exception) -> list[RunOutcome]:
        return [
            crashed(names[j], {}, seed=seed, lr=start, reason=why(error), evaluate=REPORTED_SPLITS)
            for start, seed in pairs
        ]

    return [
        _record(task, outcome, Chosen(start_lr=outcome.lr))
        for outcome in halved(range(len(names)), run, failure)
    ]


def _baseline_records(
    task: Task, plan: Plan, chosen: Mapping[str, Sequence[Chosen]]
) -> list[RunRecord]:
    wanted = [
        (baseline, choice)
        for baseline in plan.baselines
        if not baseline.population
        for choice in chosen.get(baseline.name, (Chosen(setting=baseline.space.default),))
    ]
    # The budgets of a search often end at one setting: it is run once, and counts for each.
    unique: dict[tuple[str, str], Configured] = {}
    for baseline, choice in wanted:
        unique.setdefault(_key(baseline, choice), Configured(baseline, choice.run_setting))
    outcomes = run_configured(
        task,
        list(unique.values()),
        seeds=plan.seeds,
        device=plan.device,
        evaluate=REPORTED_SPLITS,
        num_intervals=plan.policy.control.num_intervals,
        jobs=plan.jobs,
    )
    position = {key: i * len(plan.seeds) for i, key in enumerate(unique)}
    return [
        _record(task, outcomes[position[_key(baseline, choice)] + i], choice)
        for baseline, choice in wanted
        for i in range(len(plan.seeds))
    ]


def _key(baseline: Baseline, choice: Chosen) -> tuple[str, str]:
    return baseline.name, json.dumps(choice.run_setting, sort_keys=True)


def _population_records(task: Task, plan: Plan) -> list[RunRecord]:
    records = []
    for baseline in plan.baselines:
        for budget in plan.budgets if baseline.population else ():
            try:
                outcomes = run_population(
                    task,
                    baseline,
                    members=population_size(budget, tuning_seeds=len(TUNING_SEEDS)),
                    seeds=plan.seeds,
                    num_intervals=plan.policy.control.num_intervals,
                    evaluate=REPORTED_SPLITS,
                    device=plan.device,
                )
            except Exception as error:
                default = baseline.space.default
                outcomes = [
                    crashed(
                        baseline.name,
                        default,
                        seed=seed,
                        lr=float(default.get("lr", math.nan)),
                        reason=why(error),
                        evaluate=REPORTED_SPLITS,
                    )
                    for seed in plan.seeds
                ]
            records += [_record(task, outcome, Chosen(budget=budget)) for outcome in outcomes]
    return records


def _record(task: Task, outcome: RunOutcome, choice: Chosen) -> RunRecord:
    """The record of a run."""
    return RunRecord(
        task=task.name,
        arm=outcome.arm,
        seed=outcome.seed,
        start_lr=choice.start_lr,
        lr=outcome.lr,
        trials=choice.budget,
        inner_steps=choice.tuning_steps + outcome.inner_steps,
        untrained=outcome.untrained,
        losses=outcome.losses,
        steps=outcome.steps,
        curve=outcome.curve,
        lrs=outcome.lrs,
        momenta=outcome.momenta,
        clip_thresholds=outcome.clip_thresholds,
        trajectory=outcome.trajectory,
        budget=choice.budget,
        setting=outcome.setting,
        best={"outer_valid": outcome.best},
        metric_name=outcome.metric_name,
        metric=outcome.metric,
        valid_steps=outcome.valid_steps,
        valid_curve=outcome.valid_curve,
        wall_seconds=outcome.wall_seconds,
        failed=outcome.failed,
    )
