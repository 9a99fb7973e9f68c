"""Momentum and latest update of a user's optimizer, read from its own state.

Nothing is stored for this: Adam's next update direction depends only on its two moments, and the
direction of SGD is its momentum buffer. What is read here equals what the trainer of the
environments reads from its batched optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from pacesetter.agent.hyperparameters import Setting

SUPPORTED: tuple[type[Optimizer], ...] = (AdamW, Adam, SGD, RMSprop, NAdam, RAdam)
"""Optimizers whose state is known; subclasses count."""

Directions = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def check_supported(optimizer: Any) -> None:
    """Refuses an optimizer whose state is unknown.

    Raises:
        TypeError: with the list of those that are known.
    """
    if not isinstance(optimizer, SUPPORTED):
        names = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise TypeError(
            f"LearnedScheduler works with torch.optim's {names} and subclasses of them, "
            f"but got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether it divides by a second moment."""
    return not isinstance(optimizer, SGD)


def momentum_scales_lr(optimizer: Optimizer) -> bool:
    """Whether its momentum multiplies the size of steps, because its buffer is a plain sum."""
    return isinstance(optimizer, SGD | RMSprop)


def read_directions(
    optimizer: Optimizer, latest: Sequence[Setting], *, device: torch.device, dtype: torch.dtype
) -> Directions | None:
    """How the gradient lies to momentum and to the previous update, just before an update.

    The previous update, before weight decay, is ``-lr u`` with each group's own lr. For NAdam and
    RAdam, u is taken as Adam's, and for Nesterov momentum as its buffer: close, and with the same
    sign.

    Args:
        optimizer: with its gradients, not yet clipped.
        latest: learning rate and momentum of each group's latest update.
        device: of the result.
        dtype: of the result.

    Returns:
        None while nothing is known (no update yet, no momentum, a sparse gradient); else five (1,)
        tensors: <gradient, momentum>, |momentum|^2, <gradient, lr u>, |lr u|^2 and |lr u|.
    """
    rows: list[Tensor] = []
    for group, setting in zip(optimizer.param_groups, latest, strict=False):
        sign = -1.0 if group.get("maximize") else 1.0
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                return None
            found = _read(optimizer, optimizer.state.get(param, {}), group, setting)
            if found is None:
                continue
            momentum, update = (_flat(t) for t in found)
            grad = _flat(param.grad)
            grad_momentum, momentum_sq = torch.dot(grad, momentum), torch.dot(momentum, momentum)
            if update is momentum:
                grad_update, update_sq = grad_momentum, momentum_sq
            else:
                grad_update, update_sq = torch.dot(grad, update), torch.dot(update, update)
            row = torch.stack((grad_momentum, momentum_sq, grad_update, update_sq))
            factors = (sign, 1.0, sign * setting.lr, setting.lr**2)
            rows.append(row.to(device, dtype) * torch.tensor(factors, dtype=dtype, device=device))
    if not rows:
        return None
    sums = torch.stack(rows).sum(0)[:, None]
    return sums[0], sums[1], sums[2], sums[3], sums[3].sqrt()


def _read(
    optimizer: Optimizer, state: dict[str, Any], group: dict[str, Any], setting: Setting
) -> tuple[Tensor, Tensor] | None:
    """Momentum of one parameter, and its latest update per unit of learning rate."""
    if isinstance(optimizer, SGD | RMSprop):
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.is_sparse:
            return None
        return buffer, buffer
    if "exp_avg" not in state:
        return None
    step = state["step"]
    if isinstance(step, Tensor) and step.device.type == "cpu":
        step = float(step)  # host memory: a GPU job keeps it there unless fused or capturable
    if not isinstance(step, Tensor):
        step = max(step, 1)
    first, second = state["exp_avg"], state.get("max_exp_avg_sq", state["exp_avg_sq"])
    beta1 = group["betas"][0] if setting.momentum is None else setting.momentum
    correction2 = (1 - group["betas"][1] ** step) ** 0.5
    denominator = second.sqrt() + group["eps"] * correction2
    return first, (first / denominator) * (correction2 / (1 - beta1**step))


def _flat(tensor: Tensor) -> Tensor:
    """As one row of real numbers of at least 32 bits."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.flatten()
