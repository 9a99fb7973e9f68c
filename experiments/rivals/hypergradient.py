"""Hypergradient descent: Adam whose learning rate follows its own gradient.

Adam-HD of Baydin, Cornish, Martínez Rubio, Schmidt & Wood, "Online Learning Rate Adaptation with
Hypergradient Descent", ICLR 2018, arXiv:1703.04782, algorithm 5; no package has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class AdamHD(torch.optim.Optimizer):
    """Adam with decoupled weight decay and a learning rate that descends its hypergradient.

    With u the direction of the last update, params -= lr * u, one step is::

        lr = max(0, lr + hyper_lr * <gradient, u>)
        params -= lr * Adam's direction

    Args:
        params: to train.
        lr: learning rate at the start.
        hyper_lr: beta of the paper, the step size of the learning rate itself.
        betas: of Adam.
        eps: of Adam.
        weight_decay: decoupled, as in AdamW; it takes no part in the hypergradient.
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
        super().__init__(
            params,
            {
                "lr": lr,
                "hyper_lr": hyper_lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
            },
        )

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
