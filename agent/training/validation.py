"""How good a policy is: its losses on fixed validation tasks, from several starts.

The score is the mean log ratio of final outer-valid loss to that of AdamW at a constant 1e-3 with
the same initial weights and batches: below zero is better. The learning rate's start is one of
several that a user might have set, and the policy does not see which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pacesetter.agent.runs.interruption import safe_point
from pacesetter.agent.training.config import TrainConfig
from pacesetter.envs.actions import ControlConfig, FloatArray
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.registry import fixed_task
from pacesetter.inner_models.task import Task

Act = Callable[[FloatArray], FloatArray]
"""Features (num_runs, NUM_FEATURES) to actions (num_runs, 3)."""

FIRST_SEED = 500
"""Seeds count from here: reports, which count from 0, use others than the choice of the policy."""
REFERENCE_LR = 1e-3
LOST = 10.0
"""A diverged run counts as this log ratio, which no run that trained comes near."""
TINY = float(np.finfo(np.float64).tiny)
"""A loss of zero has no logarithm; this one has, and is `-LOST` against any reference."""


def run_policy(
    act: Act,
    tasks: Sequence[Task],
    *,
    control: ControlConfig,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """Final outer-valid loss of one run per task, all of one shape: (num_tasks,); NaN: diverged."""
    runs = ScheduledRuns(tasks, control=control, device=device)
    features = runs.begin()
    while not runs.done:
        features = runs.decide(act(features))
    return runs.final_losses()[:, 0]


def run_constant(
    tasks: Sequence[Task], lr: float, *, device: torch.device | str = "cpu"
) -> FloatArray:
    """Final outer-valid loss at a constant learning rate, unclipped: shape (num_tasks,)."""
    trainer = InnerTrainer(tasks, device=device)
    momentum = np.array([task.optimizer.momentum for task in tasks])
    trainer.run(np.full((trainer.horizon, len(tasks)), lr), momentum=momentum)
    return trainer.evaluate("outer_valid")


class ValidationSuite:
    """Fixed tasks, starts and seeds, with the reference losses computed once.

    Raises:
        ValueError: the reference diverges on a task, or its loss is not positive there.
    """

    def __init__(self, config: TrainConfig, *, device: torch.device | str = "cpu") -> None:
        self._config, self._device = config, device
        families, count = config.validation_families, config.validation_tasks
        self.tasks = [fixed_task(family, i) for family in families for i in range(count)]
        self._reference = np.stack([self._log_reference(task) for task in self.tasks])

    def _log_reference(self, task: Task) -> FloatArray:
        safe_point()  # nothing has been learned yet
        losses = run_constant(self._seeded(task), REFERENCE_LR, device=self._device)
        if not ((losses > 0) & np.isfinite(losses)).all():
            raise ValueError(
                f"validation task {task.name!r} cannot be used: AdamW at {REFERENCE_LR:g}, against "
                f"which policies are measured there, ended with losses of {losses.tolist()}, and "
                "the log of a loss is compared. Shift the loss, shorten the task, or validate on "
                "other families"
            )
        return np.log(losses)

    def _seeded(self, task: Task) -> list[Task]:
        return [task.with_seed(FIRST_SEED + i) for i in range(self._config.validation_seeds)]

    def score(self, act: Act) -> FloatArray:
        """Log losses over the reference's: (num_tasks, num_starts, num_seeds)."""
        config, rows = self._config, []
        for task, reference in zip(self.tasks, self._reference, strict=True):
            seeded = self._seeded(task)
            group = [t.with_optimizer(lr=lr) for lr in config.validation_starts for t in seeded]
            losses = run_policy(act, group, control=config.env.control, device=self._device)
            logs = np.log(np.maximum(losses, TINY)).reshape(-1, len(seeded))
            rows.append(np.clip(np.nan_to_num(logs - reference, nan=LOST), -LOST, LOST))
        return np.stack(rows)
