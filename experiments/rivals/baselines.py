"""The arms of a comparison: each baseline is a row, and so is each way of using the agent.

A baseline is an optimizer, a schedule, what may be tuned, and where it comes from. To add one,
append a row to `BASELINES`, or hand it to `compare`. An optimizer that trains one model at a time
is a function at the top level of a module; one of `OPTIMIZERS` is a name::

    def adamax(params, h, task):
        return torch.optim.Adamax(params, lr=h["lr"], weight_decay=h["weight_decay"])

    MINE = Baseline(
        name="adamax-half-cosine", label="Adamax half cosine", optimizer=adamax,
        schedule=lambda progress, h: np.cos(0.5 * np.pi * progress),
        space=Space({"lr": Dimension(1e-4, 1e-1, default=2e-3)}), source="mine",
    )

No baseline clips gradients; the agent does, which is part of what it has to offer. beta2 and eps
are the task's own in every arm of the Adam family, as is weight decay where no row says otherwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from pacesetter.experiments.rivals.arms import (
    LR,
    MOMENTUM,
    RISE,
    WEIGHT_DECAY,
    AgentArm,
    Arm,
    Baseline,
)
from pacesetter.experiments.rivals.packages import PACKAGE_ARMS
from pacesetter.experiments.rivals.schedules import (
    Plateau,
    cosine,
    cosine_restarts,
    exponential,
    linear,
    one_cycle,
    step_decay,
    warm_up_cosine,
    warm_up_stable_decay,
)
from pacesetter.experiments.rivals.space import Choice, Dimension, Space

__all__ = [
    "ADAMW_LRS",
    "AGENT_ARMS",
    "BASELINES",
    "DO_NOTHING",
    "OPEN_LOOP",
    "POLICY",
    "RANDOM",
    "REFERENCE",
    "STRICT",
    "AgentArm",
    "Arm",
    "Baseline",
    "all_arms",
    "arm_labels",
    "arm_names",
    "check_arms",
]

ADAMW_LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Half decades over the range that AdamW arms search."""
REFERENCE = "adamw-default"
"""The arm against which all others are held."""


def _adamw(name: str, label: str, source: str, **rest: Dimension | Choice) -> Baseline:
    """A tuned AdamW row; its schedule is put in by `replace`."""
    return Baseline(
        name=f"adamw-{name}",
        label=f"tuned AdamW {label}",
        optimizer="adamw",
        space=Space({"lr": LR, **rest}),
        source=source,
    )


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name=REFERENCE,
        label="AdamW 1e-3",
        optimizer="adamw",
        fixed={"lr": 1e-3},
        source="the default of torch.optim.AdamW, untuned",
    ),
    _adamw(
        "constant",
        "constant",
        "Loshchilov & Hutter 2019, arXiv:1711.05101",
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    ),
    replace(
        _adamw(
            "cosine",
            "cosine",
            "Loshchilov & Hutter 2017, arXiv:1608.03983",
            weight_decay=WEIGHT_DECAY,
        ),
        schedule=cosine,
    ),
    replace(
        _adamw(
            "warmup-cosine",
            "warm-up cosine",
            "Goyal et al. 2017, arXiv:1706.02677, with the cosine of arXiv:1608.03983",
            warm_up=RISE,
            weight_decay=WEIGHT_DECAY,
        ),
        schedule=warm_up_cosine,
    ),
    replace(
        _adamw(
            "linear", "linear", "Defazio et al. 2023, arXiv:2310.07831", weight_decay=WEIGHT_DECAY
        ),
        schedule=linear,
    ),
    replace(
        _adamw(
            "wsd",
            "warm-up stable decay",
            "Hu et al. 2024, arXiv:2404.06395; shapes of Haegele et al. 2024, arXiv:2405.18392",
            decay=Dimension(0.1, 0.8, default=0.2, log=False, least=0.05, most=0.9),
            shape=Choice(("sqrt", "linear"), default="sqrt"),
        ),
        schedule=warm_up_stable_decay,
    ),
    replace(
        _adamw(
            "one-cycle",
            "one-cycle",
            "Smith & Topin 2019, arXiv:1708.07120, as torch.optim.lr_scheduler.OneCycleLR",
            peak=Dimension(0.05, 0.5, default=0.3, log=False, least=0.01, most=0.9),
        ),
        schedule=one_cycle,
    ),
    replace(
        _adamw(
            "step",
            "step decay",
            "He et al. 2016, arXiv:1512.03385: two drops, after 1/2 and 3/4 of a run",
            gamma=Dimension(0.03, 0.5, default=0.1, most=1.0),
        ),
        schedule=step_decay,
    ),
    replace(
        _adamw(
            "exponential",
            "exponential",
            "torch.optim.lr_scheduler.ExponentialLR; Li & Arora 2020, arXiv:1910.07454",
            final=Dimension(1e-4, 0.3, default=0.01, most=1.0),
        ),
        schedule=exponential,
    ),
    replace(
        _adamw(
            "restarts",
            "cosine with restarts",
            "Loshchilov & Hutter 2017, arXiv:1608.03983; each cycle twice the one before",
            cycles=Choice(("2", "3", "4"), default="3"),
        ),
        schedule=cosine_restarts,
    ),
    replace(
        _adamw(
            "plateau",
            "reduce on plateau",
            "torch.optim.lr_scheduler.ReduceLROnPlateau on inner-valid losses; 20 checks a run",
            factor=Dimension(0.05, 0.7, default=0.1, most=0.99),
            patience=Choice(("0", "1", "2", "4"), default="2"),
        ),
        feedback=Plateau,
    ),
    Baseline(
        name="sgd-cosine",
        label="tuned SGD momentum cosine",
        optimizer="sgd",
        schedule=cosine,
        space=Space({"lr": Dimension(3e-3, 3.0, default=0.1, most=1e2), "momentum": MOMENTUM}),
        fixed={"weight_decay": 0.0},
        source="Loshchilov & Hutter 2017, arXiv:1608.03983; torch.optim.SGD",
    ),
    Baseline(
        name="rmsprop-cosine",
        label="tuned RMSprop cosine",
        optimizer="rmsprop",
        schedule=cosine,
        space=Space(
            {
                "lr": Dimension(1e-4, 1e-1, default=1e-2, most=1e2),
                "momentum": Dimension(0.0, 0.95, default=0.0, log=False, most=0.999),
            }
        ),
        fixed={"weight_decay": 0.0, "beta2": 0.99},
        source="Tieleman & Hinton 2012, lecture 6.5; torch.optim.RMSprop",
    ),
    *PACKAGE_ARMS,
    Baseline(
        name="population",
        label="population-based training",
        optimizer="adamw",
        space=Space({"lr": LR, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}),
        source="Jaderberg et al. 2017, arXiv:1711.09846; AdamW, as many runs as a search costs",
        population=True,
    ),
    Baseline(
        name="adamw-cosine-calibrated",
        label="calibrated AdamW cosine",
        optimizer="adamw",
        schedule=cosine,
        space=Space({"lr": replace(LR, default=0.0562)}),
        source="one learning rate for all jobs, calibrated once on the meta-train families",
        calibrated=True,
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
RANDOM = AgentArm(
    name="random-policy",
    label="random policy",
    source="the same bounds, ramp, decay and clipping, and actions drawn uniformly",
)
DO_NOTHING = AgentArm(
    name="do-nothing",
    label="do nothing",
    source="the same bounds, ramp, decay and clipping, and an agent that never acts",
)
AGENT_ARMS = (POLICY, OPEN_LOOP, STRICT, RANDOM, DO_NOTHING)


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
