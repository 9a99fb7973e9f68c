"""Runs all arms of a comparison on one task and keeps a record of each run.

This is the one place where a comparison reads the test split: once per run, when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pacesetter.agent.policy import Policy
from pacesetter.experiments.baselines import (
    DO_NOTHING,
    OPEN_LOOP,
    POLICY,
    STRICT,
    Baseline,
)
from pacesetter.experiments.records import REPORTED_SPLITS, RunRecord
from pacesetter.experiments.replay import Replay, mean_replay
from pacesetter.experiments.running import (
    ClosedLoop,
    Controller,
    FinishedRuns,
    Idle,
    Setting,
    by_optimizer,
    run_agents,
    run_schedules,
)
from pacesetter.experiments.tuning import Tuned
from pacesetter.inner_models.task import Task

START_MOMENTUM = 0.9
"""``betas[0]`` from which the agent starts: AdamW's default, as in every AdamW baseline."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run on every task.

    Attributes:
        arms: names of arms.
        baselines: those of them that are baselines, and the reference.
        fixed_lrs: learning rates of baselines that are not tuned, by name.
        policy: the agent.
        start_lrs: learning rates from which it starts.
        seeds: of the report.
        device: where the runs live.
    """

    arms: tuple[str, ...]
    baselines: tuple[Baseline, ...]
    fixed_lrs: Mapping[str, float]
    policy: Policy
    start_lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    device: str


def task_records(
    task: Task, plan: Plan, *, tuned: Mapping[str, Tuned], replay: Replay | None
) -> list[RunRecord]:
    """Runs every arm on one task, but for the strict replay, which needs all tasks' runs first.

    Args:
        task: the task.
        plan: what to run.
        tuned: what tuning found on this task, by name of the baseline.
        replay: the open-loop replay; None: it is not among the arms.
    """
    controllers: dict[str, Controller] = {}
    # The strict replay plays back what the policy did: it needs the policy's runs.
    if POLICY.name in plan.arms or STRICT.name in plan.arms:
        controllers[POLICY.name] = ClosedLoop(plan.policy)
    if replay is not None:
        controllers[OPEN_LOOP.name] = replay
    if DO_NOTHING.name in plan.arms:
        controllers[DO_NOTHING.name] = Idle()
    records = _agent_records(task, plan, controllers, starts=plan.start_lrs) if controllers else []
    return records + _baseline_records(task, plan, tuned)


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
                if r.arm == POLICY.name and r.start_lr == start
            ],
            plan.policy.control,
        )
        for start in plan.start_lrs
    }


def _agent_records(
    task: Task, plan: Plan, controllers: Mapping[str, Controller], *, starts: Sequence[float]
) -> list[RunRecord]:
    pairs = [(start, seed) for start in starts for seed in plan.seeds]
    tasks = [
        task.with_optimizer(name="adamw", lr=start, momentum=START_MOMENTUM).with_seed(seed)
        for start, seed in pairs
    ]
    runs = run_agents(
        tasks, list(controllers.values()), control=plan.policy.control, device=plan.device
    )
    keys = [
        _Key(arm, seed, start_lr=start, lr=start, trials=1, tuning_steps=0)
        for start, seed in pairs
        for arm in controllers
    ]
    return _records(task, runs, keys)


def _baseline_records(task: Task, plan: Plan, tuned: Mapping[str, Tuned]) -> list[RunRecord]:
    records = []
    for group in by_optimizer(plan.baselines):
        settings, spent = [], []
        for b in group:
            found = tuned.get(b.name)
            lr = plan.fixed_lrs[b.name] if found is None else found.lr
            settings.append(Setting(b, lr))
            spent.append((1, 0) if found is None else (found.trials, found.inner_steps))
        runs = run_schedules(
            task,
            settings,
            seeds=plan.seeds,
            num_intervals=plan.policy.control.num_intervals,
            device=plan.device,
        )
        keys = [
            _Key(s.baseline.name, seed, start_lr=None, lr=s.lr, trials=trials, tuning_steps=steps)
            for seed in plan.seeds
            for s, (trials, steps) in zip(settings, spent, strict=True)
        ]
        records += _records(task, runs, keys)
    return records


@dataclass(frozen=True)
class _Key:
    arm: str
    seed: int
    start_lr: float | None
    lr: float
    trials: int
    tuning_steps: int


def _records(task: Task, runs: FinishedRuns, keys: Sequence[_Key]) -> list[RunRecord]:
    losses = {split: runs.losses(split) for split in REPORTED_SPLITS}
    return [
        RunRecord(
            task=task.name,
            arm=key.arm,
            seed=key.seed,
            start_lr=key.start_lr,
            lr=key.lr,
            trials=key.trials,
            inner_steps=key.tuning_steps + task.horizon,
            untrained=float(runs.untrained[row]),
            losses={split: float(values[row]) for split, values in losses.items()},
            steps=list(runs.steps),
            curve=[float(values[row]) for values in runs.curve],
            lrs=[float(values[row]) for values in runs.lrs],
            momenta=[float(values[row]) for values in runs.momenta],
            clip_thresholds=[float(values[row]) for values in runs.clip_thresholds],
            trajectory=[values[row].tolist() for values in runs.trajectory] or None,
        )
        for row, key in enumerate(keys)
    ]
