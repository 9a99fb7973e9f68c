"""Runs arms on a task, all those that share an optimizer as siblings in one tensor program.

Every arm gets the same initial weights and batch order for the same seed; what an arm does is
kept interval by interval. Only the splits that are asked for are evaluated at the horizon; on the
way, outer_valid for the curve, and inner_valid where an arm's method looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.runs.batched import batches, run_batch
from pacesetter.experiments.runs.outcomes import FinishedRuns, RunOutcome, crashed, why
from pacesetter.experiments.rivals.schedules import number
from pacesetter.experiments.runs.workers import run_jobs
from pacesetter.inner_models.task import SplitName, Task

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


def run_configured(
    task: Task,
    configured: Sequence[Configured],
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    evaluate: Sequence[SplitName] = ("outer_valid",),
    num_intervals: int = 1,
    jobs: int = 1,
) -> list[RunOutcome]:
    """Trains a task once per setting and seed, of any mixture of baselines.

    A run that crashes or diverges touches no other.

    Args:
        task: its data and model; seed and optimizer are replaced.
        configured: baselines with settings; no populations (see `run_population`).
        seeds: of initial weights and batch order.
        device: where the runs live.
        evaluate: splits on which the final loss and metric are wanted; each is read once.
        num_intervals: parts into which curves are cut.
        jobs: worker processes for arms that cannot be batched; 1: all in this process.

    Returns:
        Setting-major: outcome ``j * len(seeds) + i`` is seed i under setting j.

    Raises:
        ValueError: a population is among the baselines.
    """
    populations = [c.baseline.name for c in configured if c.baseline.population]
    if populations:
        raise ValueError(f"{populations[0]!r} is a population: use run_population for it")
    n = len(seeds)
    plain = [j for j, c in enumerate(configured) if not c.baseline.batched]
    pending = run_jobs(
        task,
        [(configured[j], seed) for j in plain for seed in seeds],
        workers=jobs,
        num_intervals=num_intervals,
        evaluate=evaluate,
        device=device,
    )
    found: dict[int, list[RunOutcome]] = {}

    def batch(rows: Sequence[int]) -> list[RunOutcome]:
        return run_batch(
            task,
            [configured[j] for j in rows],
            seeds=seeds,
            num_intervals=num_intervals,
            evaluate=evaluate,
            device=device,
        )

    def failure(j: int, error: Exception) -> list[RunOutcome]:
        c = configured[j]
        lr = number(c.baseline.hyperparameters(c.setting, task), "lr", float("nan"))
        return [
            crashed(
                c.baseline.name,
                dict(c.setting),
                seed=seed,
                lr=lr,
                reason=why(error),
                evaluate=evaluate,
            )
            for seed in seeds
        ]

    try:
        for rows in batches(configured):
            outcomes = halved(rows, batch, failure)
            for position, j in enumerate(rows):
                found[j] = outcomes[position * n : (position + 1) * n]
        outcomes = pending.outcomes()
    except BaseException:
        pending.cancel()
        raise
    for position, j in enumerate(plain):
        found[j] = outcomes[position * n : (position + 1) * n]
    return [outcome for j in range(len(configured)) for outcome in found[j]]


def halved(
    rows: Sequence[int],
    batch: Callable[[Sequence[int]], list[RunOutcome]],
    failure: Callable[[int, Exception], list[RunOutcome]],
) -> list[RunOutcome]:
    """Runs siblings together; where that raises, in halves, until the one at fault is alone.

    The same answers to memory that does not hold all of them.
    """
    try:
        return batch(rows)
    except Exception as error:
        if len(rows) == 1:
            return failure(rows[0], error)
    middle = len(rows) // 2
    parts = rows[:middle], rows[middle:]
    return [outcome for part in parts for outcome in halved(part, batch, failure)]


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
