"""Optimizers that train one model at a time: those of packages, and hypergradient descent.

Each function makes one from parameters, a setting and the task; `rivals.baselines` has their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, overload

import torch
from torch import Tensor, nn

from pacesetter.experiments.rivals.schedules import WARM_UP, number
from pacesetter.experiments.rivals.space import Setting
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.task import Task

Params = Iterable[nn.Parameter]


def nadam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    return torch.optim.NAdam(params, **_adam(h, task, lr=2e-3), decoupled_weight_decay=True)


def radam(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`torch.optim.RAdam` with decoupled weight decay."""
    return torch.optim.RAdam(params, **_adam(h, task, lr=1e-3), decoupled_weight_decay=True)


def _adam(h: Setting, task: Task, *, lr: float) -> dict[str, Any]:
    """What all of Adam's kin take; `lr` where the setting names none."""
    return {
        "lr": number(h, "lr", lr),
        "betas": (number(h, "momentum", 0.9), task.optimizer.beta2),
        "eps": task.optimizer.eps,
        "weight_decay": number(h, "weight_decay", 0.0),
    }


def lion(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    options = {**_adam(h, task, lr=1e-4), "betas": (number(h, "momentum", 0.9), 0.99)}
    del options["eps"]
    made: torch.optim.Optimizer = require("lion_pytorch", extra="compare").Lion(params, **options)
    return made


def schedule_free(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`schedulefree.AdamWScheduleFree`, with the warm-up that its authors advise."""
    steps = round(number(h, "warm_up", WARM_UP) * task.horizon)
    kind = require("schedulefree", extra="compare").AdamWScheduleFree
    made: torch.optim.Optimizer = kind(params, **_adam(h, task, lr=2.5e-3), warmup_steps=steps)
    return made


def prodigy(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    """`prodigyopt.Prodigy`; its authors advise to leave lr at 1 and to tune ``d_coef``."""
    kind = require("prodigyopt", extra="compare").Prodigy
    coefficient = number(h, "d_coef", 1.0)
    with redirect_stdout(StringIO()):  # it greets whoever makes it
        made: torch.optim.Optimizer = kind(params, **_adam(h, task, lr=1.0), d_coef=coefficient)
    return made


def hypergradient(params: Params, h: Setting, task: Task) -> torch.optim.Optimizer:
    return AdamHD(params, **_adam(h, task, lr=1e-3), hyper_lr=number(h, "hyper_lr", 1e-7))


class AdamHD(torch.optim.Optimizer):
    """Adam with decoupled weight decay and a learning rate that descends its hypergradient.

    Adam-HD of Baydin, Cornish, Martínez Rubio, Schmidt & Wood, "Online Learning Rate Adaptation
    with Hypergradient Descent", ICLR 2018, arXiv:1703.04782, algorithm 5; beta is `hyper_lr`.
    With u the direction of the last update, params -= lr * u, one step is::

        lr = max(0, lr + hyper_lr * <gradient, u>)
        params -= lr * Adam's direction

    Weight decay takes no part in the hypergradient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        hyper_lr: float = 1e-7,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        own = {"lr": lr, "hyper_lr": hyper_lr, "betas": betas}
        super().__init__(params, {**own, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            # One learning rate for all of a group: the inner product runs over all of it.
            dots = [(self.state[p]["u"] * p.grad).sum() for p in params if self.state[p]]
            if dots:
                change = group["hyper_lr"] * float(torch.stack(dots).sum())
                group["lr"] = max(0.0, group["lr"] + change)
            for param in params:
                self._update(param, group)
        return loss

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[param], group["betas"]
        if not state:
            state["step"] = 0
            for name in ("first", "second", "u"):
                state[name] = torch.zeros_like(param)
        assert param.grad is not None
        state["step"] += 1
        state["first"].lerp_(param.grad, 1 - beta1)
        state["second"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        root = (state["second"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        torch.div(state["first"], root, out=state["u"]).div_(1 - beta1 ** state["step"])
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(state["u"], alpha=-group["lr"])
