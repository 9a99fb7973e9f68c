"""What an arm is: a baseline, or a way of using the policy.

The module does not import torch, so that `compare --list` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.rivals.schedules import Feedback, Schedule, constant
from pacesetter.experiments.rivals.space import Setting, Space

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pacesetter.inner_models.task import OptimizerName, Task

    OptimizerFactory = Callable[[Iterable[nn.Parameter], Setting, Task], torch.optim.Optimizer]

BATCHED = ("adamw", "adam", "sgd", "rmsprop")
"""Optimizers whose runs train side by side: `inner_models.task.OPTIMIZERS`."""
START_MOMENTUM = 0.9
"""``betas[0]`` from which the agent starts: AdamW's default, as in every AdamW baseline."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way of training without the agent.

    Attributes:
        name: as in tables and on the command line.
        optimizer: ``"adamw"``, ``"adam"``, ``"sgd"`` or ``"rmsprop"``, whose runs train side by
            side; or a factory of any other, whose runs train one after another. A function at the
            top level of a module can be sent to worker processes.
        schedule: factors of the learning rate by progress. None: the learning rate is left to the
            optimizer.
        feedback: makes a schedule that looks at inner_valid losses; its factor comes on top.
        space: what may be chosen. Empty: nothing is tuned.
        fixed: hyperparameters that all settings share; a setting may override them.
        calibrated: the default of the space is used on every task. It was found once on the
            meta-train families (`benchmarks/calibration.py`).
        population: the runs of one budget train together and learn from each other.
        by_default: whether a comparison runs it where no arms are named.

    Raises:
        ValueError: no learning rate is given, or the optimizer is not known.
    """

    name: str
    label: str
    optimizer: OptimizerName | OptimizerFactory
    schedule: Schedule | None = constant
    feedback: Callable[[Setting], Feedback] | None = None
    space: Space = field(default_factory=Space)
    fixed: Mapping[str, float | str] = field(default_factory=dict)
    source: str
    calibrated: bool = False
    population: bool = False
    by_default: bool = True

    def __post_init__(self) -> None:
        if not callable(self.optimizer) and self.optimizer not in BATCHED:
            raise ValueError(
                f"optimizer of {self.name!r} must be one of {', '.join(BATCHED)} or a factory, "
                f"but got {self.optimizer!r}"
            )
        if "lr" not in {*self.space.dimensions, *self.fixed}:
            raise ValueError(f"{self.name!r} needs 'lr', in its space or among what is fixed")
        if self.population and (callable(self.optimizer) or self.feedback is not None):
            raise ValueError(f"{self.name!r}: a population needs a batched optimizer, no feedback")

    @property
    def batched(self) -> bool:
        return not callable(self.optimizer)

    @property
    def sibling(self) -> bool:
        """Whether its runs train side by side with those of other baselines."""
        return self.batched and not self.population

    @property
    def tuned(self) -> bool:
        """Whether a setting is chosen per task, by running some and taking the best."""
        return bool(self.space.dimensions) and not (self.population or self.calibrated)

    def hyperparameters(self, setting: Setting, task: Task) -> dict[str, float | str]:
        """All hyperparameters of a run: the setting, what is fixed, the task's weight decay."""
        own = {"momentum": 0.9, "weight_decay": task.optimizer.weight_decay}
        return {**own, **self.fixed, **setting}

    def factors(self, horizon: int, hyperparameters: Setting) -> FloatArray:
        """Factors of the learning rate at every step, (horizon,), feedback aside.

        Raises:
            ValueError: the schedule returns something else.
        """
        if self.schedule is None:
            return np.ones(horizon)
        found = np.asarray(self.schedule(np.arange(horizon) / horizon, hyperparameters), float)
        if found.shape != (horizon,):
            raise ValueError(
                f"the schedule of {self.name!r} must return one factor per step, shape "
                f"({horizon},), but got {found.shape}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class AgentArm:
    """One way of using the policy, or a substitute for it, run from every start of the rate.

    Attributes:
        controller: what decides: the policy, its mean schedule over meta-train tasks or over the
            compared tasks, random actions, or nothing.
        valid_every: intervals between validation losses that the agent sees; None: as the task has
            it.
        horizon: share of the task's steps that the run takes.
        multiple: factor on the start of the learning rate, which the agent is not told.
        by_default: whether a comparison runs it where no arms are named.
    """

    name: str
    label: str
    source: str
    controller: Literal["policy", "replay", "strict", "random", "idle"] = "policy"
    valid_every: int | None = None
    horizon: float = 1.0
    multiple: float = 1.0
    by_default: bool = True

    @property
    def together(self) -> tuple[float, float, int | None]:
        """Equal for arms whose runs can train side by side on the same tasks."""
        return self.horizon, self.multiple, self.valid_every

    def task(self, task: Task, *, start: float, seed: int) -> Task:
        """The task as the arm runs it, from a start of the learning rate."""
        changes: dict[str, Any] = {"seed": seed}
        if self.valid_every is not None:
            changes["valid_every"] = self.valid_every
        if self.horizon != 1:
            changes["horizon"] = max(1, round(self.horizon * task.horizon))
        own = task.with_optimizer(name="adamw", lr=self.multiple * start, momentum=START_MOMENTUM)
        return replace(own, **changes)


Arm = AgentArm | Baseline


@dataclass(frozen=True)
class Configured:
    """A baseline with a setting; without a space, that is empty or a learning rate."""

    baseline: Baseline
    setting: Setting
