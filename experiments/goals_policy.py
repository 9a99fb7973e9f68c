"""Runs of the policy that the goals are measured by, each kind as one tensor program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.experiments.goals_baselines import HandRuns, train_settings
from pacesetter.experiments.goals_records import SPLITS, GoalRun
from pacesetter.experiments.runs.agents import ClosedLoop, Controller, run_agents
from pacesetter.experiments.runs.arm_runs import START_MOMENTUM
from pacesetter.experiments.runs.outcomes import FinishedRuns
from pacesetter.inner_models.task import Task

FloatArray = NDArray[np.float64]

POLICY, SEEING = "policy", "policy, seeing validation losses"
SHORT, SEEING_SHORT = "policy, 2/3 of the steps", "policy, seeing, 2/3 of the steps"
TIMED = "tuned, timed beside the policy"
"""Arms."""
RIGHT_START = 1e-3
"""The default of `torch.optim.AdamW`."""
WRONG_STARTS = (1e-5, 1e-4, 1e-2, 1e-1)
"""From 100 times too low to 100 times too high."""
ADAPTIVE_STARTS = (3e-4, 1e-3, 1e-2)
"""From which a constant multiple has to be right."""
VALID_EVERY = 2
"""Intervals between the inner-valid losses that the seeing policy is shown."""


@dataclass(frozen=True)
class Cell:
    """A run that is wanted.

    Attributes:
        arm: its name.
        start_lr: from which the agent starts, as reported.
        seed: of initial weights and batch order.
        valid_every: intervals between inner-valid losses; 0: none are shown.
        factor: on the start, unknown to the agent.
    """

    arm: str
    start_lr: float
    seed: int
    valid_every: int = 0
    factor: float = 1.0


def agent_runs(
    task: Task,
    cells: Sequence[Cell],
    controller: Controller,
    *,
    control: ControlConfig,
    device: torch.device | str = "cpu",
    keep: Callable[[Cell], bool] = lambda cell: False,
) -> list[GoalRun]:
    """Trains a task once per cell under one controller, all as one tensor program.

    Args:
        task: its data and model; seed, start and cadence of validation are replaced.
        cells: the runs.
        controller: what decides.
        control: bounds and step sizes.
        device: where the runs live.
        keep: of which runs the trajectory is kept.
    """
    base = task.with_optimizer(name="adamw", momentum=START_MOMENTUM)
    tasks = [
        replace(
            base.with_optimizer(lr=cell.start_lr * cell.factor),
            seed=cell.seed,
            valid_every=cell.valid_every,
        )
        for cell in cells
    ]
    runs = run_agents(tasks, [controller], control=control, device=device)
    losses = {split: runs.losses(split) for split in SPLITS}
    moves = np.stack(runs.trajectory, axis=1)
    multiples = mean_log_multiples(runs)
    peaks = np.stack(runs.lrs).max(axis=0)
    return [
        GoalRun(
            task=task.name,
            arm=cell.arm,
            start_lr=cell.start_lr,
            seed=cell.seed,
            steps=task.horizon,
            untrained=float(runs.untrained[row]),
            losses={split: float(losses[split][row]) for split in SPLITS},
            wall_seconds=runs.watch.seconds / len(cells),
            mean_multiple=math.exp(multiples[row]) * cell.factor,
            peak_lr=float(peaks[row]),
            trajectory=moves[row].tolist() if keep(cell) else None,
        )
        for row, cell in enumerate(cells)
    ]


def mean_log_multiples(runs: FinishedRuns) -> FloatArray:
    """Mean over the steps of the log of lr over start and plain decay, (num_runs,)."""
    lengths = np.diff([0, *runs.steps])
    offsets = np.stack(runs.trajectory, axis=1)[:, :, 0]
    return np.asarray(offsets @ (lengths / lengths.sum()))


def policy_runs(
    task: Task, policy: Policy, *, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> list[GoalRun]:
    """The policy from every start, and from the right one with validation losses to look at."""
    starts = sorted({RIGHT_START, *WRONG_STARTS, *ADAPTIVE_STARTS})
    cells = [Cell(POLICY, start, seed) for start in starts for seed in seeds]
    cells += [Cell(SEEING, RIGHT_START, seed, VALID_EVERY) for seed in seeds]
    return agent_runs(
        task,
        cells,
        ClosedLoop(policy),
        control=policy.control,
        device=device,
        keep=lambda cell: cell.arm == POLICY and cell.start_lr == RIGHT_START,
    )


def speed_runs(
    task: Task,
    policy: Policy,
    hand: HandRuns,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[GoalRun]:
    """The policy with two thirds of the steps; and the tuned AdamW as long, to time it.

    The three programs have the same number of runs and steps and come one after another.
    """
    short = replace(task, horizon=max(1, round(2 * task.horizon / 3)))
    found = []
    for arm, every in ((SHORT, 0), (SEEING_SHORT, VALID_EVERY)):
        cells = [Cell(arm, RIGHT_START, seed, every) for seed in seeds]
        loop = ClosedLoop(policy)
        found += agent_runs(short, cells, loop, control=policy.control, device=device)
    timed = train_settings(short, [hand.tuned], seeds=seeds, device=device)
    return found + [
        GoalRun(
            task=task.name,
            arm=TIMED,
            start_lr=None,
            seed=seed,
            steps=short.horizon,
            untrained=float(timed.untrained[0, i]),
            losses={split: float(timed.losses[split][0, i]) for split in SPLITS},
            wall_seconds=timed.seconds / len(seeds),
            setting=dict(hand.tuned.baseline.hyperparameters(hand.setting, task)),
        )
        for i, seed in enumerate(seeds)
    ]
