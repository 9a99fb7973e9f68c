"""What an arm is: a way of training that is held against others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from pacesetter.experiments.rivals.schedules import (
    WARM_UP,
    Feedback,
    FloatArray,
    Schedule,
    constant,
)
from pacesetter.experiments.rivals.space import Dimension, Setting, Space
from pacesetter.inner_models.task import OPTIMIZERS, OptimizerName, Task

OptimizerFactory = Callable[[Iterable[nn.Parameter], Setting, Task], torch.optim.Optimizer]
"""``factory(params, hyperparameters, task)``: an optimizer of a package's or one's own."""

LR = Dimension(1e-4, 1e-1, default=1e-3, most=1e2)
"""Learning rate of the Adam family; the default is that of `torch.optim.AdamW`."""
MOMENTUM = Dimension(0.5, 0.98, default=0.9, log=False, most=0.999)
"""beta1, or momentum."""
WEIGHT_DECAY = Dimension(1e-3, 1.0, default=0.01)
"""Decoupled; the default is that of `torch.optim.AdamW`."""
RISE = Dimension(0.01, 0.3, default=WARM_UP, most=0.5)
"""Share of a run in which a warm-up rises."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way of training without the agent.

    Attributes:
        name: as in tables and on the command line.
        label: as in figures.
        optimizer: ``"adamw"``, ``"adam"``, ``"sgd"`` or ``"rmsprop"``, whose runs train side by
            side; or a factory of any other, whose runs train one after another. A function at the
            top level of a module can be sent to worker processes.
        schedule: factors of the learning rate by progress. None: the learning rate is left to the
            optimizer.
        feedback: makes a schedule that looks at inner_valid losses; its factor comes on top.
        space: what may be chosen. Empty: nothing is tuned.
        fixed: hyperparameters that all settings share; a setting may override them.
        source: where it comes from.
        calibrated: the default of the space is used on every task. It was found once on the
            meta-train families (`benchmarks/calibration.py`).
        population: the runs of one budget train together and learn from each other.

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

    def __post_init__(self) -> None:
        if not callable(self.optimizer) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer of {self.name!r} must be one of {', '.join(OPTIMIZERS)} or a factory, "
                f"but got {self.optimizer!r}"
            )
        if "lr" not in {*self.space.dimensions, *self.fixed}:
            raise ValueError(f"{self.name!r} needs 'lr', in its space or among what is fixed")
        if self.population and (callable(self.optimizer) or self.feedback is not None):
            raise ValueError(f"{self.name!r}: a population needs a batched optimizer, no feedback")

    @property
    def batched(self) -> bool:
        """Whether its runs train side by side."""
        return not callable(self.optimizer)

    @property
    def tuned(self) -> bool:
        """Whether a setting is chosen per task, by running some and taking the best."""
        return bool(self.space.dimensions) and not (self.population or self.calibrated)

    def hyperparameters(self, setting: Setting, task: Task) -> dict[str, float | str]:
        """All hyperparameters of a run: the setting, what is fixed, and the task's own.

        Args:
            setting: a point of the space; it may name more, such as another learning rate.
            task: whose weight decay is taken where nothing else says.
        """
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
    """One way of using the policy, run from every start of the learning rate.

    Attributes:
        name: as in tables and on the command line.
        label: as in figures.
        source: what it is and why it is held against the policy.
    """

    name: str
    label: str
    source: str


Arm = AgentArm | Baseline


@dataclass(frozen=True)
class Configured:
    """A baseline with a setting.

    Attributes:
        baseline: the arm.
        setting: a point of its space; for one without a space, empty or its learning rate.
    """

    baseline: Baseline
    setting: Setting
