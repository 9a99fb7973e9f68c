"""Inner runs under control of an agent: trainer and decision core joined.

Both environments, the evaluation of policies and the policy's arm in the comparison go through
`ScheduledRuns`. A `SiblingGroup` is the unit in which meta-training is drawn, trained and spread:
it depends on ``(seed, episode, group)`` and on the actions taken in it, on nothing else. So it can
be trained in any process, and once more where it was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike

from pacesetter.envs.actions import ActionCodec, ControlConfig, FloatArray
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.decision import DecisionCore
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.envs.rewards import sibling_scores
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import Task, TaskFamily
from pacesetter.inner_models.watch.guard import is_lost
from pacesetter.inner_models.watch.signals import IntervalStatistics

GroupStep: TypeAlias = tuple[FloatArray, FloatArray, bool, list[dict[str, Any]]]
"""Features (rows, NUM_FEATURES), rewards (rows,), whether the group is over, an info for each row.
"""


class ScheduledRuns:
    """One episode of ``len(tasks) * siblings`` runs of equal shape; rows are task-major."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        siblings: int = 1,
        control: ControlConfig | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.trainer = InnerTrainer(tasks, siblings=siblings, device=device, dtype=dtype)
        self.tasks = self.trainer.tasks
        self.siblings = siblings
        kind = tasks[0].optimizer.name
        self.codec = ActionCodec(
            control or ControlConfig(),
            total_steps=self.trainer.horizon,
            momentum_start=np.repeat([t.optimizer.momentum for t in tasks], siblings),
            # Their momentum buffer is a plain sum.
            momentum_scales_lr=kind in ("sgd", "rmsprop"),
        )
        self.core = DecisionCore(self.codec, adaptive=kind != "sgd")
        self._start_lr = np.repeat([t.optimizer.lr for t in tasks], siblings)
        self._valid_every = np.repeat([t.valid_every for t in tasks], siblings)
        self.interval = 0
        self.stats: IntervalStatistics | None = None

    @property
    def num_runs(self) -> int:
        """Number of runs, one per row of every array."""
        return self.trainer.num_runs

    @property
    def num_decisions(self) -> int:
        """Decisions of an episode: one per inner boundary."""
        return len(self.codec.ends) - 1

    @property
    def lr(self) -> FloatArray:
        """(num_runs,), the learning rate of the next step."""
        lr: FloatArray = self._start_lr * self.codec.lr_factors(self.trainer.step_count, 1)[0]
        return lr

    def begin(self) -> FloatArray:
        """Trains the first interval; returns features of shape (num_runs, NUM_FEATURES)."""
        _ = self.trainer.snapshot  # of the untrained runs
        return self._next_interval()

    def decide(self, actions: ArrayLike) -> FloatArray:
        """Takes a decision, (num_runs, 3), and trains the next interval; returns its features."""
        if self.interval == 0 or self.done:
            raise RuntimeError("decide() needs a run that has begun and is not over: call begin()")
        self.core.decide(actions)
        return self._next_interval()

    @property
    def done(self) -> bool:
        return self.interval == len(self.codec.ends)

    def _next_interval(self) -> FloatArray:
        first, last = self.trainer.step_count, self.codec.ends[self.interval]
        self.stats = self.trainer.run(
            self._start_lr * self.codec.lr_factors(first, last - first),
            momentum=self.codec.momentum,
            clip_ratio=self.codec.clip_ratio,
        )
        self.interval += 1
        # As a user does: before the decision, and so before anything is put back.
        due = (self._valid_every > 0) & (self.interval % np.maximum(self._valid_every, 1) == 0)
        if due.any() and not self.done:
            losses = self.trainer.evaluate("inner_valid")
            self.core.observe_validation(np.where(due, losses, np.nan))
        features, verdict = self.core.encode(self.stats), self.core.judge(self.stats)
        snapshot, device = self.trainer.snapshot, self.trainer.device
        if verdict.alarm.any():
            snapshot.discard_candidate(torch.as_tensor(verdict.alarm, device=device))
        if verdict.roll_back.any():
            snapshot.restore(torch.as_tensor(verdict.roll_back, device=device))
        if verdict.good.any() and not self.done:
            snapshot.keep(torch.as_tensor(verdict.good, device=device))
        return features

    def final_losses(self) -> FloatArray:
        """Outer-valid losses, shape (num_tasks, siblings); NaN where a run diverged."""
        losses = self.trainer.evaluate("outer_valid")
        return np.where(is_lost(losses), np.nan, losses).reshape(-1, self.siblings)


class SiblingGroup:
    """Tasks of one shape with seeds, whose siblings are rewarded against each other."""

    def __init__(self, tasks: Sequence[Task], config: EnvConfig) -> None:
        self._config = config
        self._seen = np.array([name not in config.hidden_features for name in FEATURE_NAMES])
        self.runs = ScheduledRuns(
            tasks,
            siblings=config.siblings,
            control=config.control,
            device=config.device,
            dtype=config.dtype or torch.float32,
        )

    @property
    def tasks(self) -> list[Task]:
        return [task for task in self.runs.tasks for _ in range(self.runs.siblings)]

    def begin(self) -> FloatArray:
        """Trains the first interval; returns features of shape (rows, NUM_FEATURES)."""
        return np.where(self._seen, self.runs.begin(), 0.0)

    def step(self, actions: ArrayLike) -> GroupStep:
        """Takes a decision in every row, (rows, 3) in [-1, 1], and trains the next interval.

        Rewards are zero before the horizon. A group that was over before is idle: its features are
        zero, and its infos say so.
        """
        runs, rows = self.runs, self.runs.num_runs
        was_over: bool = runs.done  # mypy holds a property for constant
        if was_over:
            idle: list[dict[str, Any]] = [{"idle": True} for _ in range(rows)]
            return np.zeros((rows, NUM_FEATURES)), np.zeros(rows), True, idle
        features = np.where(self._seen, runs.decide(actions), 0.0)
        if not runs.done:
            return features, np.zeros(rows), False, [{} for _ in range(rows)]
        losses, config = runs.final_losses(), self._config
        scores = sibling_scores(losses, spread_floor=config.spread_floor, form=config.reward)
        infos: list[dict[str, Any]] = [
            {"outer_valid_loss": float(loss), "task": task.name}
            for loss, task in zip(losses.ravel(), self.tasks, strict=True)
        ]
        return features, scores.ravel(), True, infos


def draw_group(
    families: Sequence[TaskFamily], config: EnvConfig, seed: int, episode: int, group: int
) -> SiblingGroup:
    """Draws a family, and tasks of it; equal arguments give equal groups, in every process.

    Raises:
        ValueError: the family drew a horizon too short for a decision.
    """
    entropy = np.random.SeedSequence((seed, episode, group))
    generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
    if config.family_weights:
        shares = torch.tensor(config.family_weights, dtype=torch.float64)
        pick = int(torch.multinomial(shares, 1, generator=generator))
    else:
        pick = int(torch.randint(len(families), (), generator=generator))
    drawn = SiblingGroup(families[pick].sample_group(config.tasks_per_group, generator), config)
    if not drawn.runs.num_decisions:
        raise ValueError(
            f"family {families[pick].name!r} drew a horizon of {drawn.runs.trainer.horizon} steps, "
            "too short for a decision: raise its horizons to at least 4"
        )
    return drawn
