"""Optimizers of well-kept packages, made from a setting; each is the package's own class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pacesetter.experiments.hypergradient import AdamHD
from pacesetter.experiments.schedules import WARM_UP, number
from pacesetter.experiments.search_space import Setting
from pacesetter.inner_models.extras import require
from pacesetter.inner_models.task import Task

Params = Iterable[nn.Parameter]


def nadam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`torch.optim.NAdam` with decoupled weight decay."""
    return torch.optim.NAdam(
        params,
        lr=number(h, "lr", 2e-3),
        betas=(number(h, "momentum", 0.9), task.optimizer.beta2),
        eps=task.optimizer.eps,
        weight_decay=number(h, "weight_decay", 0.0),
        decoupled_weight_decay=True,
    )


def radam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`torch.optim.RAdam` with decoupled weight decay."""
    return torch.optim.RAdam(
        params,
        lr=number(h, "lr", 1e-3),
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
