"""The ways in which the policy, or a substitute for it, runs on tasks.

The open-loop replay plays back the policy's mean schedule, taken in logs over progress.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
import torch

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig, FloatArray
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.experiments.runs.batched import FinishedRuns
from pacesetter.inner_models.task import Task, TaskFamily

TASKS_PER_GROUP = 4
"""Tasks of one shape that are drawn together."""
MAX_MISSES = 200
"""Groups of other optimizers in a row before giving up."""


class Controller(Protocol):
    """What decides in an agent's arm."""

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """Actions for the next interval, (n, 3) in [-1, 1], from features (n, NUM_FEATURES).

        `interval` says how many intervals are over.
        """


@dataclass(frozen=True)
class ClosedLoop:
    """The policy itself: it looks before it acts."""

    policy: Policy

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        return self.policy.act(features)


class Idle:
    """Never acts."""

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        return np.zeros((len(features), NUM_ACTIONS))


@dataclass(frozen=True)
class RandomActions:
    """Acts without looking, uniformly within the bounds, anew for every seed and task."""

    seed: int
    task: str = ""

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        # Made anew for each interval, so that a run that is repeated gets the same actions.
        entropy = [self.seed, *self.task.encode(), interval]
        generator = np.random.default_rng(entropy)
        return generator.uniform(-1.0, 1.0, size=(len(features), NUM_ACTIONS))


@dataclass(frozen=True)
class Replay:
    """An open-loop controller; its mean, (K, 3), is as `RunRecord.trajectory`, from zero on."""

    mean: FloatArray
    control: ControlConfig

    def state(self, progress: float) -> FloatArray:
        """(3,), the mean where a share of the intervals is over."""
        grid = np.arange(len(self.mean)) / len(self.mean)
        return np.array([np.interp(progress, grid, column) for column in self.mean.T])

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        # A mean of changes within bounds is within bounds, so the actions can follow it exactly,
        # but for what the guard cuts off a run that breaks: it does so for every controller.
        now, before = (self.state(k / num_intervals) for k in (interval, interval - 1))
        sizes = (self.control.lr_step, self.control.momentum_step, self.control.clip_step)
        return np.tile((now - before) / np.array(sizes), (len(features), 1))


def mean_replay(trajectories: Sequence[FloatArray], control: ControlConfig) -> Replay:
    """The replay of the mean of trajectories, (K_i, 3) each, as in `RunRecord.trajectory`.

    Short runs may have fewer intervals than others. ValueError where there are none.
    """
    if not trajectories:
        raise ValueError("need at least one trajectory to replay the mean of")
    longest = max(len(t) for t in trajectories)
    grid = np.arange(longest) / longest
    aligned = [Replay(np.asarray(t), control) for t in trajectories]
    return Replay(np.mean([[r.state(p) for p in grid] for r in aligned], axis=0), control)


def meta_train_replay(
    policy: Policy,
    families: Sequence[TaskFamily],
    *,
    num_tasks: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Replay:
    """The replay that knows the meta-train families and nothing of the task at hand.

    Tasks are drawn as in `adamw_groups`, the noise of their start included.
    """
    trajectories: list[FloatArray] = []
    for tasks in adamw_groups(families, num_tasks=num_tasks, generator=generator):
        runs = run_agents(tasks, [ClosedLoop(policy)], control=policy.control, device=device)
        trajectories += list(np.stack(runs.trajectory, axis=1))
    return mean_replay(trajectories, policy.control)


def adamw_groups(
    families: Sequence[TaskFamily], *, num_tasks: int, generator: torch.Generator
) -> Iterator[list[Task]]:
    """Yields groups of `TASKS_PER_GROUP` tasks of one shape, from each family in turn.

    Tasks of other optimizers than AdamW are skipped; `num_tasks` is rounded up to whole groups.
    ValueError where there is no family, or one has hardly any AdamW task.
    """
    if not families or num_tasks < 1:
        raise ValueError(
            f"need a family and at least one task, but got {len(families)} and {num_tasks}"
        )
    turn = cycle(families)
    for _ in range(-(-num_tasks // TASKS_PER_GROUP)):
        family = next(turn)
        for _ in range(MAX_MISSES):
            tasks = family.sample_group(TASKS_PER_GROUP, generator)
            if tasks[0].optimizer.name == "adamw":
                yield tasks
                break
        else:
            raise ValueError(f"family {family.name!r} has hardly any task with AdamW")


def run_agents(
    tasks: Sequence[Task],
    controllers: Sequence[Controller],
    *,
    control: ControlConfig,
    device: torch.device | str = "cpu",
) -> FinishedRuns:
    """Trains every task once per controller; run ``i * len(controllers) + j`` is task i under j.

    Tasks are of one shape, each with a seed and with the optimizer that the user would have set.
    """
    siblings = len(controllers)
    episode = ScheduledRuns(tasks, siblings=siblings, control=control, device=device)
    codec, trainer = episode.codec, episode.trainer
    runs = FinishedRuns(trainer, trainer.evaluate("outer_valid"), codec.ends)
    start_lr = np.repeat([task.optimizer.lr for task in tasks], siblings)
    origin = _state(episode)

    def keep(start: int, end: int) -> None:
        assert episode.stats is not None
        runs.curve.append(episode.stats.loss_mean)
        runs.lrs.append(start_lr * codec.lr_factors(start, end - start).mean(axis=0))
        runs.momenta.append(codec.momentum)
        runs.clip_thresholds.append(codec.clip_ratio * episode.stats.norm_running)
        runs.trajectory.append(_state(episode) - origin)
        runs.look()

    with runs.watch:
        features = episode.begin()
    keep(0, codec.ends[0])
    while not episode.done:
        with runs.watch:
            grid = features.reshape(len(tasks), siblings, -1)
            actions = [
                c.act(grid[:, j], interval=episode.interval, num_intervals=len(codec.ends))
                for j, c in enumerate(controllers)
            ]
            features = episode.decide(np.stack(actions, axis=1).reshape(-1, NUM_ACTIONS))
        keep(*codec.ends[episode.interval - 2 : episode.interval])
    return runs


def _state(episode: ScheduledRuns) -> FloatArray:
    codec = episode.codec
    parts = (codec.lr_offset, codec.log_one_minus_momentum, codec.log_clip_ratio)
    return np.stack(parts, axis=1)
