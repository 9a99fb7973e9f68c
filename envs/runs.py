"""Inner runs under control of an agent: trainer and decision core joined.

Both environments, the evaluation of policies and the policy's arm in the comparison go through
`ScheduledRuns`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from pacesetter.envs.actions import ActionCodec, ControlConfig
from pacesetter.envs.decision import DecisionCore
from pacesetter.envs.features import FloatArray
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import Task
from pacesetter.inner_models.watch.guard import is_lost
from pacesetter.inner_models.watch.signals import IntervalStatistics


class ScheduledRuns:
    """One episode of ``len(tasks) * siblings`` runs of equal shape.

    Args:
        tasks: tasks of one shape, each with a seed.
        siblings: runs per task; rows are task-major.
        control: bounds and step sizes.
        device: where the inner runs live.
        dtype: of parameters and data.
    """

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
        """Takes one decision for every run and trains the next interval.

        Args:
            actions: (num_runs, 3) in [-1, 1].

        Returns:
            (num_runs, NUM_FEATURES), the features after the interval.
        """
        if self.interval == 0 or self.done:
            raise RuntimeError("decide() needs a run that has begun and is not over: call begin()")
        self.core.decide(actions)
        return self._next_interval()

    @property
    def done(self) -> bool:
        """Whether the horizon is reached."""
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
