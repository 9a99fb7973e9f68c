"""Runs under the policy, and under what is held against it in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.experiments.runs.batched import FinishedRuns
from pacesetter.inner_models.task import Task

FloatArray = NDArray[np.float64]


class Controller(Protocol):
    """What decides in an agent's arm."""

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """Actions for the next interval.

        Args:
            features: (n, NUM_FEATURES) after the last one.
            interval: how many intervals are over.
            num_intervals: of the whole run.

        Returns:
            (n, 3) in [-1, 1].
        """


@dataclass(frozen=True)
class ClosedLoop:
    """The policy itself: it looks before it acts."""

    policy: Policy

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """See `Controller.act`."""
        return self.policy.act(features)


class Idle:
    """Never acts."""

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """See `Controller.act`."""
        return np.zeros((len(features), NUM_ACTIONS))


@dataclass(frozen=True)
class RandomActions:
    """Acts without looking, uniformly within the bounds of an action.

    Attributes:
        generator: of the actions.
    """

    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """See `Controller.act`."""
        return self.generator.uniform(-1.0, 1.0, size=(len(features), NUM_ACTIONS))


def run_agents(
    tasks: Sequence[Task],
    controllers: Sequence[Controller],
    *,
    control: ControlConfig,
    device: torch.device | str = "cpu",
) -> FinishedRuns:
    """Trains every task once per controller.

    Args:
        tasks: of one shape, each with a seed and with the optimizer that the user would have set.
        controllers: what decides, one per sibling.
        control: bounds and step sizes.
        device: where the runs live.

    Returns:
        Run ``i * len(controllers) + j`` is task i under controller j.
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
