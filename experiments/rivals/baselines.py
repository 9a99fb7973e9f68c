"""The arms of a comparison: one row for each baseline, and one for each way of using the policy.

A baseline is an optimizer, a schedule, what may be tuned, and where it comes from. To add one,
append a row to `BASELINES`, or hand it to `compare`. An optimizer that trains one model at a time
is a function at the top level of a module; one of `arms.BATCHED` is a name::

    def adamax(params, h, task):
        return torch.optim.Adamax(params, lr=h["lr"], weight_decay=h["weight_decay"])

    MINE = Baseline(
        name="adamax-half-cosine", label="Adamax half cosine", optimizer=adamax,
        schedule=lambda progress, h: np.cos(0.5 * np.pi * progress),
        space=Space({"lr": Dimension(1e-4, 1e-1, default=2e-3)}), source="mine",
    )

Baselines do not clip gradients, but for `POOLED`; the agent does, which is part of what it offers.
beta2 and eps are the task's own in every arm of the Adam family, as is weight decay where no row
sets it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pacesetter.envs.actions import ControlConfig, FloatArray
from pacesetter.experiments.rivals.arms import AgentArm, Arm, Baseline
from pacesetter.experiments.rivals.schedules import (
    WARM_UP,
    Plateau,
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    exponential,
    linear,
    one_cycle,
    step_decay,
    warm_up_cosine,
    warm_up_stable_decay,
)
from pacesetter.experiments.rivals.space import Choice, Dimension, Setting, Space

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pacesetter.experiments.rivals.arms import OptimizerFactory
    from pacesetter.inner_models.task import OptimizerName, Task

ADAMW_LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Half decades over the range that AdamW arms search."""
REFERENCE = "adamw-default"
"""The arm that all others are compared with."""

LR = Dimension(1e-4, 1e-1, default=1e-3, most=1e2)
"""Learning rate of the Adam family; the default is that of `torch.optim.AdamW`."""
MOMENTUM = Dimension(0.5, 0.98, default=0.9, log=False, most=0.999)
"""beta1, or momentum."""
WEIGHT_DECAY = Dimension(1e-3, 1.0, default=0.01)
"""Decoupled; the default is that of `torch.optim.AdamW`."""
RISE = Dimension(0.01, 0.3, default=WARM_UP, most=0.5)
"""Share of a run in which a warm-up rises."""


@dataclass(frozen=True)
class PackageOptimizer:
    """An optimizer factory of `rivals.packages`, imported at first use."""

    name: str

    def __call__(
        self, params: Iterable[nn.Parameter], h: Setting, task: Task
    ) -> torch.optim.Optimizer:
        module = importlib.import_module("pacesetter.experiments.rivals.packages")
        made: torch.optim.Optimizer = getattr(module, self.name)(params, h, task)
        return made


def _row(
    name: str,
    label: str,
    source: str,
    *,
    optimizer: OptimizerName | OptimizerFactory = "adamw",
    space: Mapping[str, Dimension | Choice],
    **rest: Any,
) -> Baseline:
    return Baseline(
        name=name, label=label, source=source, optimizer=optimizer, space=Space(space), **rest
    )


_POOLED: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "warm-up cosine": warm_up_cosine,
    "linear": linear,
}
_BOUNDS = ControlConfig()


def _pooled(progress: FloatArray, setting: Setting) -> FloatArray:
    return _POOLED[str(setting["schedule"])](progress, setting)


POOLED = _row(
    "adamw-pooled",
    "tuned AdamW of four schedules with clipping",
    "AdamW whose trials choose a schedule and, as the policy does, a clip ratio too",
    schedule=_pooled,
    space={
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "clip": Dimension(*_BOUNDS.clip_ratio_bounds, default=_BOUNDS.clip_ratio_start),
        "schedule": Choice(tuple(_POOLED), default="constant"),
    },
    by_default=False,
)
"""The strongest AdamW that the goals are measured against (docs/goals.md)."""

BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name=REFERENCE,
        label="AdamW 1e-3",
        optimizer="adamw",
        fixed={"lr": 1e-3},
        source="the default of torch.optim.AdamW, untuned",
    ),
    _row(
        "adamw-constant",
        "tuned AdamW constant",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
        space={"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "adamw-cosine",
        "tuned AdamW cosine",
        "Loshchilov & Hutter 2017, arXiv:1608.03983",
        schedule=cosine,
        space={"lr": LR, "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "adamw-warmup-cosine",
        "tuned AdamW warm-up cosine",
        "Goyal et al. 2017, arXiv:1706.02677, with the cosine of arXiv:1608.03983",
        schedule=warm_up_cosine,
        space={"lr": LR, "warm_up": RISE, "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "adamw-linear",
        "tuned AdamW linear",
        "Defazio et al. 2023, arXiv:2310.07831",
        schedule=linear,
        space={"lr": LR, "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "adamw-wsd",
        "tuned AdamW warm-up stable decay",
        "Hu et al. 2024, arXiv:2404.06395; shapes of Haegele et al. 2024, arXiv:2405.18392",
        schedule=warm_up_stable_decay,
        space={
            "lr": LR,
            "decay": Dimension(0.1, 0.8, default=0.2, log=False, least=0.05, most=0.9),
            "shape": Choice(("sqrt", "linear"), default="sqrt"),
        },
    ),
    _row(
        "adamw-one-cycle",
        "tuned AdamW one-cycle",
        "Smith & Topin 2019, arXiv:1708.07120, as torch.optim.lr_scheduler.OneCycleLR",
        schedule=one_cycle,
        space={
            "lr": LR,
            "peak": Dimension(0.05, 0.5, default=0.3, log=False, least=0.01, most=0.9),
        },
    ),
    _row(
        "adamw-step",
        "tuned AdamW step decay",
        "He et al. 2016, arXiv:1512.03385: two drops, after 1/2 and 3/4 of a run",
        schedule=step_decay,
        space={"lr": LR, "gamma": Dimension(0.03, 0.5, default=0.1, most=1.0)},
    ),
    _row(
        "adamw-exponential",
        "tuned AdamW exponential",
        "torch.optim.lr_scheduler.ExponentialLR; Li & Arora 2020, arXiv:1910.07454",
        schedule=exponential,
        space={"lr": LR, "final": Dimension(1e-4, 0.3, default=0.01, most=1.0)},
    ),
    _row(
        "adamw-restarts",
        "tuned AdamW cosine with restarts",
        "Loshchilov & Hutter 2017, arXiv:1608.03983; each cycle twice the one before",
        schedule=cosine_restarts,
        space={"lr": LR, "cycles": Choice(("2", "3", "4"), default="3")},
    ),
    _row(
        "adamw-plateau",
        "tuned AdamW reduce on plateau",
        "torch.optim.lr_scheduler.ReduceLROnPlateau on inner-valid losses; 20 checks a run",
        feedback=Plateau,
        space={
            "lr": LR,
            "factor": Dimension(0.05, 0.7, default=0.1, most=0.99),
            "patience": Choice(("0", "1", "2", "4"), default="2"),
        },
    ),
    _row(
        "sgd-cosine",
        "tuned SGD momentum cosine",
        "Loshchilov & Hutter 2017, arXiv:1608.03983; torch.optim.SGD",
        optimizer="sgd",
        schedule=cosine,
        fixed={"weight_decay": 0.0},
        space={"lr": Dimension(3e-3, 3.0, default=0.1, most=1e2), "momentum": MOMENTUM},
    ),
    _row(
        "rmsprop-cosine",
        "tuned RMSprop cosine",
        "Tieleman & Hinton 2012, lecture 6.5; torch.optim.RMSprop",
        optimizer="rmsprop",
        schedule=cosine,
        fixed={"weight_decay": 0.0, "beta2": 0.99},
        space={
            "lr": Dimension(1e-4, 1e-1, default=1e-2, most=1e2),
            "momentum": Dimension(0.0, 0.95, default=0.0, log=False, most=0.999),
        },
    ),
    _row(
        "nadam-cosine",
        "tuned NAdam cosine",
        "Dozat 2016, ICLR workshop; torch.optim.NAdam, decoupled weight decay",
        optimizer=PackageOptimizer("nadam"),
        schedule=cosine,
        space={"lr": replace(LR, default=2e-3), "momentum": MOMENTUM},
    ),
    _row(
        "radam-cosine",
        "tuned RAdam cosine",
        "Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam, decoupled weight decay",
        optimizer=PackageOptimizer("radam"),
        schedule=cosine,
        space={"lr": LR, "momentum": MOMENTUM},
    ),
    _row(
        "lion-cosine",
        "tuned Lion cosine",
        "Chen et al. 2023, arXiv:2302.06675; lion_pytorch.Lion",
        optimizer=PackageOptimizer("lion"),
        schedule=cosine,
        space={
            "lr": Dimension(1e-5, 1e-2, default=1e-4, most=1e2),
            "weight_decay": Dimension(1e-2, 10.0, default=0.1),
        },
    ),
    _row(
        "schedule-free",
        "tuned Schedule-Free AdamW",
        "Defazio et al. 2024, arXiv:2405.15682; schedulefree.AdamWScheduleFree",
        optimizer=PackageOptimizer("schedule_free"),
        schedule=None,
        space={
            "lr": Dimension(2.5e-4, 2.5e-1, default=2.5e-3, most=1e2),
            "momentum": Dimension(0.8, 0.98, default=0.9, log=False, most=0.999),
            "warm_up": RISE,
        },
    ),
    _row(
        "prodigy-cosine",
        "tuned Prodigy cosine",
        "Mishchenko & Defazio 2024, arXiv:2306.06101; prodigyopt.Prodigy",
        optimizer=PackageOptimizer("prodigy"),
        schedule=cosine,
        fixed={"lr": 1.0},
        space={"d_coef": Dimension(0.1, 10.0, default=1.0), "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "hypergradient",
        "tuned hypergradient Adam",
        "Baydin et al. 2018, arXiv:1703.04782, Adam-HD with decoupled weight decay",
        optimizer=PackageOptimizer("hypergradient"),
        schedule=None,
        space={"lr": LR, "hyper_lr": Dimension(1e-9, 1e-3, default=1e-7)},
    ),
    _row(
        "population",
        "population-based training",
        "Jaderberg et al. 2017, arXiv:1711.09846; AdamW, as many runs as a search costs",
        population=True,
        space={"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
    ),
    _row(
        "adamw-cosine-calibrated",
        "calibrated AdamW cosine",
        "one learning rate for all jobs, calibrated once on the meta-train families",
        schedule=cosine,
        calibrated=True,
        space={"lr": replace(LR, default=0.0562)},
    ),
    POOLED,
)

POLICY = AgentArm(
    name="policy", label="policy", source="the agent, one run per job, from the given start"
)
OPEN_LOOP = AgentArm(
    name="policy-open-loop",
    label="open-loop replay",
    source="the policy's mean schedule over meta-train tasks; sees nothing of the job at hand",
    controller="replay",
)
STRICT = AgentArm(
    name="policy-open-loop-strict",
    label="strict open-loop replay",
    source="the policy's mean schedule over the compared tasks themselves, from the same start",
    controller="strict",
)
RANDOM = AgentArm(
    name="random-policy",
    label="random policy",
    source="the same bounds, ramp, decay and clipping, and actions drawn uniformly",
    controller="random",
)
DO_NOTHING = AgentArm(
    name="do-nothing",
    label="do nothing",
    source="the same bounds, ramp, decay and clipping, and an agent that never acts",
    controller="idle",
)
VALID_EVERY = 2
"""Intervals between the validation losses that a policy is shown which sees them."""
MULTIPLES = (3, 10, 30, 100)
"""Factors on the start: what an agent would amount to that had only learned a constant."""
_OPTIONAL = (
    AgentArm(
        name="policy-seeing",
        label="policy with validation losses",
        source="the agent, shown a validation loss after every second interval",
        valid_every=VALID_EVERY,
        by_default=False,
    ),
    AgentArm(
        name="policy-two-thirds",
        label="policy with 2/3 of the steps",
        source="the agent, given two thirds of the steps",
        horizon=2 / 3,
        by_default=False,
    ),
    AgentArm(
        name="policy-seeing-two-thirds",
        label="policy with validation losses and 2/3 of the steps",
        source="the agent, shown validation losses and given two thirds of the steps",
        valid_every=VALID_EVERY,
        horizon=2 / 3,
        by_default=False,
    ),
    *(
        AgentArm(
            name=f"multiple-{multiple}",
            label=f"{multiple} × the start",
            source=f"do nothing, from {multiple} times the start",
            controller="idle",
            multiple=multiple,
            by_default=False,
        )
        for multiple in MULTIPLES
    ),
)
AGENT_ARMS = (POLICY, OPEN_LOOP, STRICT, RANDOM, DO_NOTHING, *_OPTIONAL)


def all_arms(baselines: Sequence[Baseline] = BASELINES) -> tuple[Arm, ...]:
    """All arms, the policy's first."""
    return (*AGENT_ARMS, *baselines)


def arm_names(baselines: Sequence[Baseline] = BASELINES) -> tuple[str, ...]:
    """Names of all arms, the policy's first."""
    return tuple(arm.name for arm in all_arms(baselines))


def default_arms(baselines: Sequence[Baseline] = BASELINES) -> tuple[str, ...]:
    return tuple(arm.name for arm in all_arms(baselines) if arm.by_default)


def check_arms(names: Sequence[str], baselines: Sequence[Baseline] = BASELINES) -> None:
    """Raises ValueError where a name is unknown, with the nearest.

    >>> check_arms(["adamw-cosin"])
    Traceback (most recent call last):
    ...
    ValueError: unknown arm 'adamw-cosin'; nearest: adamw-cosine, ...
    """
    known = arm_names(baselines)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            which = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
            raise ValueError(f"unknown arm {name!r}; {which}; compare --list tells of all")
