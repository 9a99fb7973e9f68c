"""The open-loop replay: the policy's mean schedule, played back with eyes closed.

A policy that does no better than its own mean schedule has learned a schedule and no adaptivity;
hence this rival. The mean is taken in logs, relative to each run's start, over progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.experiments.runs.agents import ClosedLoop, run_agents
from pacesetter.experiments.sampling import adamw_groups
from pacesetter.inner_models.task import TaskFamily

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """An open-loop controller.

    Attributes:
        mean: (K, 3), mean log factors of lr, 1 - momentum and clip ratio over their starts, by
            interval; the first row is zero.
        control: bounds and step sizes of the policy that is replayed.
    """

    mean: FloatArray
    control: ControlConfig

    def state(self, progress: float) -> FloatArray:
        """(3,), the mean where a share of the intervals is over."""
        grid = np.arange(len(self.mean)) / len(self.mean)
        return np.array([np.interp(progress, grid, column) for column in self.mean.T])

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        """See `Controller.act`; nothing of the features is used but their number."""
        # A mean of changes within bounds is within bounds, so the actions can follow it exactly,
        # but for what the guard cuts off a run that breaks: it does so for every controller.
        now, before = (self.state(k / num_intervals) for k in (interval, interval - 1))
        sizes = (self.control.lr_step, self.control.momentum_step, self.control.clip_step)
        return np.tile((now - before) / np.array(sizes), (len(features), 1))


def mean_replay(trajectories: Sequence[FloatArray], control: ControlConfig) -> Replay:
    """The replay of the mean of some trajectories.

    Args:
        trajectories: (K_i, 3) each, as in `RunRecord.trajectory`; short runs may have fewer
            intervals than others.
        control: of the policy that made them.

    Raises:
        ValueError: there are none.
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

    Tasks are drawn as the policy met them, the noise of their start included; those of another
    optimizer than AdamW, on which it is compared, are passed over.

    Args:
        policy: whose schedule to replay.
        families: to draw tasks from, in turn.
        num_tasks: how many, rounded up to whole groups.
        generator: of the tasks.
        device: where the runs live.
    """
    trajectories: list[FloatArray] = []
    for tasks in adamw_groups(families, num_tasks=num_tasks, generator=generator):
        runs = run_agents(tasks, [ClosedLoop(policy)], control=policy.control, device=device)
        trajectories += list(np.stack(runs.trajectory, axis=1))
    return mean_replay(trajectories, policy.control)
