"""Runs arms on a task, all those that share an optimizer as siblings in one tensor program.

Every arm gets the same initial weights and batch order for the same seed; what an arm does is
kept interval by interval. Nothing is evaluated here but the untrained loss on outer_valid: whoever
asks for another split, `test` above all, does so on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy import Policy
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig, interval_ends
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.experiments.baselines import Baseline
from pacesetter.inner_models.task import SplitName, Task
from pacesetter.inner_models.trainer import InnerTrainer

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
class Setting:
    """A baseline with a learning rate."""

    baseline: Baseline
    lr: float


@dataclass
class FinishedRuns:
    """Runs at their horizon, with what happened on the way.

    Attributes:
        trainer: holds the trained models; rows are group-major, siblings within.
        untrained: (num_runs,), outer-valid losses before the first step.
        steps: (K,), inner step at which each interval ended.
        curve: K arrays (num_runs,), mean training loss of each interval.
        lrs: K arrays (num_runs,), mean learning rate of each interval.
        momenta: K arrays (num_runs,).
        clip_thresholds: K arrays (num_runs,), at the interval's end; NaN where nothing is clipped.
        trajectory: K arrays (num_runs, 3), log factors of lr, 1 - momentum and clip ratio over
            their starts; empty for baselines.
    """

    trainer: InnerTrainer
    untrained: FloatArray
    steps: tuple[int, ...]
    curve: list[FloatArray] = field(default_factory=list)
    lrs: list[FloatArray] = field(default_factory=list)
    momenta: list[FloatArray] = field(default_factory=list)
    clip_thresholds: list[FloatArray] = field(default_factory=list)
    trajectory: list[FloatArray] = field(default_factory=list)

    def losses(self, split: SplitName) -> FloatArray:
        """Final losses on a split, (num_runs,); not finite where a run diverged."""
        return self.trainer.evaluate(split)


def by_optimizer(baselines: Sequence[Baseline]) -> list[list[Baseline]]:
    """Groups of baselines that can be siblings: those that share optimizer and weight decay."""

    def kind(baseline: Baseline) -> tuple[str, float]:
        decay = baseline.weight_decay
        return baseline.optimizer, -1.0 if decay is None else decay

    return [list(group) for _, group in groupby(sorted(baselines, key=kind), key=kind)]


def run_schedules(
    task: Task,
    settings: Sequence[Setting],
    *,
    seeds: Sequence[int],
    num_intervals: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FinishedRuns:
    """Trains a task once per setting and seed; gradients are never clipped.

    Args:
        task: its data and model; seed and optimizer are replaced.
        settings: baselines of one optimizer (`by_optimizer`) with their learning rates.
        seeds: of initial weights and batch order.
        num_intervals: parts into which curves are cut.
        device: where the runs live.
        dtype: of parameters and data.

    Returns:
        Run ``i * len(settings) + j`` is seed i under setting j.
    """
    base = settings[0].baseline.configure(task)
    trainer = InnerTrainer(
        [base.with_seed(seed) for seed in seeds],
        siblings=len(settings),
        device=device,
        dtype=dtype,
    )
    factors = [s.baseline.schedule(np.arange(task.horizon) / task.horizon) for s in settings]
    rates = np.stack([f * s.lr for f, s in zip(factors, settings, strict=True)], axis=1)
    rates = np.tile(rates, (1, len(seeds)))
    momentum = np.tile([s.baseline.momentum for s in settings], len(seeds))
    steps = interval_ends(task.horizon, num_intervals)
    runs = FinishedRuns(trainer, trainer.evaluate("outer_valid"), steps)
    start = 0
    for end in steps:
        stats = trainer.run(rates[start:end], momentum=momentum, clip_ratio=None)
        runs.curve.append(stats.loss_mean)
        runs.lrs.append(rates[start:end].mean(axis=0))
        runs.momenta.append(momentum)
        runs.clip_thresholds.append(np.full(trainer.num_runs, np.nan))
        start = end
    return runs


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

    features = episode.begin()
    keep(0, codec.ends[0])
    while not episode.done:
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
