"""Arms whose optimizer is a package's own class, made from a setting; they train one by one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import torch
from torch import nn

from pacesetter.experiments.rivals.arms import LR, MOMENTUM, RISE, WEIGHT_DECAY, Baseline
from pacesetter.experiments.rivals.hypergradient import AdamHD
from pacesetter.experiments.rivals.schedules import WARM_UP, cosine, number
from pacesetter.experiments.rivals.space import Dimension, Setting, Space
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.task import Task

Params = Iterable[nn.Parameter]


def nadam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`torch.optim.NAdam` with decoupled weight decay."""
    return _like_adam(torch.optim.NAdam, params, h, task=task, lr=2e-3)


def radam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`torch.optim.RAdam` with decoupled weight decay."""
    return _like_adam(torch.optim.RAdam, params, h, task=task, lr=1e-3)


def _like_adam(
    kind: type[torch.optim.NAdam | torch.optim.RAdam],
    params: Params,
    h: Setting,
    *,
    task: Task,
    lr: float,
) -> torch.optim.Optimizer:
    """One of torch's own, `lr` being its default."""
    return kind(
        params,
        lr=number(h, "lr", lr),
        betas=(number(h, "momentum", 0.9), task.optimizer.beta2),
        eps=task.optimizer.eps,
        weight_decay=number(h, "weight_decay", 0.0),
        decoupled_weight_decay=True,
    )


def lion(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`lion_pytorch.Lion`."""
    made: torch.optim.Optimizer = require("lion_pytorch", extra="compare").Lion(
        params,
        lr=number(h, "lr", 1e-4),
        betas=(number(h, "momentum", 0.9), 0.99),
        weight_decay=number(h, "weight_decay", 0.0),
    )
    return made


def schedule_free(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`schedulefree.AdamWScheduleFree`, with the warm-up that its authors advise."""
    made: torch.optim.Optimizer = require("schedulefree", extra="compare").AdamWScheduleFree(
        params,
        lr=number(h, "lr", 2.5e-3),
        betas=(number(h, "momentum", 0.9), task.optimizer.beta2),
        eps=task.optimizer.eps,
        weight_decay=number(h, "weight_decay", 0.0),
        warmup_steps=round(number(h, "warm_up", WARM_UP) * task.horizon),
    )
    return made


def prodigy(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`prodigyopt.Prodigy`; its authors advise to leave lr at 1 and to tune ``d_coef``."""
    # It greets whoever makes it.
    with redirect_stdout(StringIO()):
        made: torch.optim.Optimizer = require("prodigyopt", extra="compare").Prodigy(
            params,
            lr=number(h, "lr", 1.0),
            betas=(number(h, "momentum", 0.9), task.optimizer.beta2),
            eps=task.optimizer.eps,
            weight_decay=number(h, "weight_decay", 0.0),
            d_coef=number(h, "d_coef", 1.0),
        )
    return made


def hypergradient(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`AdamHD`."""
    return AdamHD(
        params,
        lr=number(h, "lr", 1e-3),
        hyper_lr=number(h, "hyper_lr", 1e-7),
        betas=(number(h, "momentum", 0.9), task.optimizer.beta2),
        eps=task.optimizer.eps,
        weight_decay=number(h, "weight_decay", 0.0),
    )


PACKAGE_ARMS: tuple[Baseline, ...] = (
    Baseline(
        name="nadam-cosine",
        label="tuned NAdam cosine",
        optimizer=nadam,
        schedule=cosine,
        space=Space({"lr": replace(LR, default=2e-3), "momentum": MOMENTUM}),
        source="Dozat 2016, ICLR workshop; torch.optim.NAdam, decoupled weight decay",
    ),
    Baseline(
        name="radam-cosine",
        label="tuned RAdam cosine",
        optimizer=radam,
        schedule=cosine,
        space=Space({"lr": LR, "momentum": MOMENTUM}),
        source="Liu et al. 2020, arXiv:1908.03265; torch.optim.RAdam, decoupled weight decay",
    ),
    Baseline(
        name="lion-cosine",
        label="tuned Lion cosine",
        optimizer=lion,
        schedule=cosine,
        space=Space(
            {
                "lr": Dimension(1e-5, 1e-2, default=1e-4, most=1e2),
                "weight_decay": Dimension(1e-2, 10.0, default=0.1),
            }
        ),
        source="Chen et al. 2023, arXiv:2302.06675; lion_pytorch.Lion",
    ),
    Baseline(
        name="schedule-free",
        label="tuned Schedule-Free AdamW",
        optimizer=schedule_free,
        schedule=None,
        space=Space(
            {
                "lr": Dimension(2.5e-4, 2.5e-1, default=2.5e-3, most=1e2),
                "momentum": Dimension(0.8, 0.98, default=0.9, log=False, most=0.999),
                "warm_up": RISE,
            }
        ),
        source="Defazio et al. 2024, arXiv:2405.15682; schedulefree.AdamWScheduleFree",
    ),
    Baseline(
        name="prodigy-cosine",
        label="tuned Prodigy cosine",
        optimizer=prodigy,
        schedule=cosine,
        space=Space({"d_coef": Dimension(0.1, 10.0, default=1.0), "weight_decay": WEIGHT_DECAY}),
        fixed={"lr": 1.0},
        source="Mishchenko & Defazio 2024, arXiv:2306.06101; prodigyopt.Prodigy",
    ),
    Baseline(
        name="hypergradient",
        label="tuned hypergradient Adam",
        optimizer=hypergradient,
        schedule=None,
        space=Space({"lr": LR, "hyper_lr": Dimension(1e-9, 1e-3, default=1e-7)}),
        source="Baydin et al. 2018, arXiv:1703.04782, Adam-HD with decoupled weight decay",
    ),
)
