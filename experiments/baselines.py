"""The arms of a comparison: each baseline is a row, and so is each way of using the agent.

A baseline is an optimizer, a schedule and the learning rates it may choose from. To add one, write
a schedule as a function of progress and append a row to `BASELINES`, or hand it to `compare`::

    def half_cosine(progress: FloatArray) -> FloatArray:
        return np.cos(0.5 * np.pi * progress)

    MINE = Baseline(
        name="adamw-half-cosine", label="tuned AdamW half cosine", optimizer="adamw",
        schedule=half_cosine, lrs=ADAMW_LRS, source="mine",
    )

No baseline clips gradients; the agent does, which is part of what it has to offer. Weight decay,
beta2 and eps of AdamW are the task's own in every arm.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.inner_models.task import Task

FloatArray = NDArray[np.float64]

Schedule = Callable[[FloatArray], FloatArray]
"""From progress, the share of steps already taken, (n,) in [0, 1), to factors of the lr, (n,)."""

ADAMW_LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Half decades from which AdamW arms choose; widened where the best lies on an edge."""
SGD_LRS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Half decades from which SGD arms choose; widened where the best lies on an edge."""
WARM_UP = 0.05
"""Share of the steps in which a warm-up rises."""
WARM_UP_START = 0.01
"""Where it begins, over the peak."""
REFERENCE = "adamw-default"
"""The arm against which all others are held."""


def constant(progress: FloatArray) -> FloatArray:
    """The learning rate stays as it is."""
    return np.ones_like(progress)


def cosine(progress: FloatArray) -> FloatArray:
    """Cosine to zero, as `torch.optim.lr_scheduler.CosineAnnealingLR` with ``T_max`` all steps.

    >>> cosine(np.array([0.0, 0.5])).round(6).tolist()
    [1.0, 0.5]
    """
    return np.asarray(0.5 * (1 + np.cos(np.pi * progress)))


def warm_up_cosine(progress: FloatArray) -> FloatArray:
    """Linear rise over the first `WARM_UP` of the steps, then a cosine to zero over the rest.

    >>> warm_up_cosine(np.array([0.0, WARM_UP])).tolist()
    [0.01, 1.0]
    """
    rise = WARM_UP_START + (1 - WARM_UP_START) * progress / WARM_UP
    fall = cosine((progress - WARM_UP) / (1 - WARM_UP))
    return np.where(progress < WARM_UP, rise, fall)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One hand-written schedule.

    Attributes:
        name: as in tables and on the command line.
        label: as in figures.
        optimizer: ``"adamw"`` or ``"sgd"``.
        schedule: factors of the learning rate by progress.
        lrs: learning rates to choose from, ascending. One: it is used as it is, nothing is tuned.
            Empty: the rate that `calibration` found once for this name.
        source: where the schedule comes from.
        momentum: ``betas[0]`` of AdamW, ``momentum`` of SGD.
        weight_decay: None: the task's own.
    """

    name: str
    label: str
    optimizer: Literal["adamw", "sgd"]
    schedule: Schedule
    lrs: tuple[float, ...]
    source: str
    momentum: float = 0.9
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if list(self.lrs) != sorted(set(self.lrs)) or any(lr <= 0 for lr in self.lrs):
            raise ValueError(
                f"lrs of {self.name!r} must be positive and ascending, but got {self.lrs}"
            )

    @property
    def tuned(self) -> bool:
        """Whether a learning rate is chosen per task."""
        return len(self.lrs) > 1

    @property
    def calibrated(self) -> bool:
        """Whether the learning rate is the one that `calibration` found."""
        return not self.lrs

    def configure(self, task: Task) -> Task:
        """The task with this baseline's optimizer; learning rates are given step by step."""
        decay = task.optimizer.weight_decay if self.weight_decay is None else self.weight_decay
        return task.with_optimizer(name=self.optimizer, momentum=self.momentum, weight_decay=decay)


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


BASELINES = (
    Baseline(
        name=REFERENCE,
        label="AdamW 1e-3",
        optimizer="adamw",
        schedule=constant,
        lrs=(1e-3,),
        source="the default of torch.optim.AdamW, untuned",
    ),
    Baseline(
        name="adamw-constant",
        label="tuned AdamW constant",
        optimizer="adamw",
        schedule=constant,
        lrs=ADAMW_LRS,
        source="Loshchilov & Hutter 2019, arXiv:1711.05101",
    ),
    Baseline(
        name="adamw-cosine",
        label="tuned AdamW cosine",
        optimizer="adamw",
        schedule=cosine,
        lrs=ADAMW_LRS,
        source="Loshchilov & Hutter 2017, arXiv:1608.03983",
    ),
    Baseline(
        name="adamw-warmup-cosine",
        label="tuned AdamW warm-up cosine",
        optimizer="adamw",
        schedule=warm_up_cosine,
        lrs=ADAMW_LRS,
        source="Goyal et al. 2017, arXiv:1706.02677, with the cosine of arXiv:1608.03983",
    ),
    Baseline(
        name="sgd-cosine",
        label="tuned SGD momentum cosine",
        optimizer="sgd",
        schedule=cosine,
        lrs=SGD_LRS,
        weight_decay=0.0,
        source="Loshchilov & Hutter 2017, arXiv:1608.03983; torch.optim.SGD, momentum 0.9",
    ),
    Baseline(
        name="adamw-cosine-calibrated",
        label="calibrated AdamW cosine",
        optimizer="adamw",
        schedule=cosine,
        lrs=(),
        source="one learning rate for all jobs, calibrated once on the meta-train families",
    ),
)

POLICY = AgentArm(
    name="policy", label="policy", source="the agent, one run per job, from the given start"
)
OPEN_LOOP = AgentArm(
    name="policy-open-loop",
    label="open-loop replay",
    source="the policy's mean schedule over meta-train tasks; sees nothing of the job at hand",
)
STRICT = AgentArm(
    name="policy-open-loop-strict",
    label="strict open-loop replay",
    source="the policy's mean schedule over the compared tasks themselves, from the same start",
)
DO_NOTHING = AgentArm(
    name="do-nothing",
    label="do nothing",
    source="the same bounds, ramp, decay and clipping, and an agent that never acts",
)
AGENT_ARMS = (POLICY, OPEN_LOOP, STRICT, DO_NOTHING)

Arm = AgentArm | Baseline


def all_arms(baselines: Sequence[Baseline] = BASELINES) -> tuple[Arm, ...]:
    """All arms, the policy's first."""
    return (*AGENT_ARMS, *baselines)


def arm_names(baselines: Sequence[Baseline] = BASELINES) -> tuple[str, ...]:
    """Names of all arms, the policy's first."""
    return tuple(arm.name for arm in all_arms(baselines))


def arm_labels(baselines: Sequence[Baseline] = BASELINES) -> dict[str, str]:
    """Labels of all arms by name."""
    return {arm.name: arm.label for arm in all_arms(baselines)}


def check_arms(names: Sequence[str], baselines: Sequence[Baseline] = BASELINES) -> None:
    """Checks names of arms.

    Raises:
        ValueError: a name is unknown; the message gives the nearest.

    >>> check_arms(["adamw-cosin"])
    Traceback (most recent call last):
    ...
    ValueError: unknown arm 'adamw-cosin'; nearest: adamw-cosine, ...
    """
    known = arm_names(baselines)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
            raise ValueError(f"unknown arm {name!r}; nearest: {', '.join(near)}")
