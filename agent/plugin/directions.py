"""Momentum and latest update of a user's optimizer, read from its own state.

Nothing is stored for this: Adam's next update direction depends only on its two moments, and the
direction of SGD is its momentum buffer. What is read here equals what the trainer of the
environments reads from its batched optimizers.

Small parameters are read many at a time: the cost of this is that of starting operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from pacesetter.agent.plugin.distributed import Layout, across_shards, layout_of, local_part
from pacesetter.agent.plugin.optimizer_state import Setting

SUPPORTED: tuple[type[Optimizer], ...] = (AdamW, Adam, SGD, RMSprop, NAdam, RAdam)
"""Optimizers whose state is known; subclasses count."""

SHORT = (torch.float16, torch.bfloat16)
"""Types too short to add up in."""
_AT_ONCE = 2**16
"""So many numbers are read at once on a host: few enough to stay in its cache."""
_AT_ONCE_ON_DEVICE = 2**22


def check_supported(optimizer: Any) -> None:
    """Refuses an optimizer whose state is unknown."""
    if not isinstance(optimizer, SUPPORTED):
        names = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise TypeError(
            f"LearnedScheduler works with torch.optim's {names} and subclasses of them, "
            f"but got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )


def is_adaptive(optimizer: Optimizer) -> bool:
    return not isinstance(optimizer, SGD)


class _Part(NamedTuple):
    """What is read of one parameter: tensors that this process holds."""

    grad: Tensor
    momentum: Tensor
    second: Tensor | None
    """Second moment, if the update is divided by it."""
    step: float | Tensor
    """Updates that the parameter has had; a tensor where only the device knows."""


def read_directions(
    optimizer: Optimizer,
    latest: Sequence[Setting],
    *,
    device: torch.device,
    dtype: torch.dtype,
    carried: Tensor | None = None,
) -> Tensor | None:
    """How the gradient, not yet clipped, lies to momentum and to the previous update.

    The previous update, before weight decay, is ``-lr u`` with each group's own lr, as `latest` has
    it. For NAdam and RAdam, u is taken as Adam's, and for Nesterov momentum as its buffer: close,
    and with the same sign. Where the count of updates is kept on a device, that of a group's first
    parameter stands for all of the group. Gradients are divided by `carried`, where there is one.

    Returns:
        None while nothing is known (no update yet, no momentum, a sparse gradient); else (4,):
        <gradient, momentum>, |momentum|^2, <gradient, lr u> and |lr u|^2.
    """
    sums: dict[Layout, list[Tensor]] = {}
    for group, setting in zip(optimizer.param_groups, latest, strict=False):
        alike: dict[Any, list[_Part]] = {}
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.is_sparse:
                return None
            part = _read(optimizer, grad, optimizer.state.get(param, {}))
            if part is not None:
                step = None if isinstance(part.step, Tensor) else part.step
                kind = layout_of(grad), part.grad.device, part.grad.dtype, step
                alike.setdefault(kind, []).append(part)
        for kind, parts in alike.items():
            row = _add_up(parts, group, setting, carried).to(device, dtype)
            sums.setdefault(kind[0], []).append(row)
    if not sums:
        return None
    rows = [across_shards(torch.stack(rows).sum(0), layout) for layout, rows in sums.items()]
    return rows[0] if len(rows) == 1 else torch.stack(rows).sum(0)


def _read(optimizer: Optimizer, grad: Tensor, state: dict[str, Any]) -> _Part | None:
    if isinstance(optimizer, SGD | RMSprop):
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.is_sparse:
            return None
        return _Part(local_part(grad), local_part(buffer), None, 0.0)
    if "exp_avg" not in state:
        return None
    step = state["step"]
    # Host memory can be read for free: a GPU job keeps the count there unless fused or capturable.
    if isinstance(step, Tensor):
        step = local_part(step)
        if step.device.type == "cpu":
            step = float(step)
    if not isinstance(step, Tensor):
        step = max(float(step), 1.0)
    second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    return _Part(local_part(grad), local_part(state["exp_avg"]), local_part(second), step)


def _add_up(
    parts: Sequence[_Part], group: dict[str, Any], setting: Setting, carried: Tensor | None
) -> Tensor:
    """The four sums over parameters of one group, of one device and dtype."""
    rate: float | Tensor = setting.lr
    floor: float | Tensor = 0.0
    if parts[0].second is not None:
        step = parts[0].step
        beta1 = group["betas"][0] if setting.momentum is None else setting.momentum
        correction = (1 - group["betas"][1] ** step) ** 0.5
        rate = rate * (correction / (1 - beta1**step))
        floor = group["eps"] * correction
    dots: list[Tensor] = []
    for grad, momentum, second in _chunks(parts):
        if carried is not None:
            grad = grad / carried.to(grad.device)
        dots += (torch.dot(grad, momentum), torch.dot(momentum, momentum))
        if second is None:
            dots += dots[-2:]
            continue
        update = momentum / second.sqrt().add_(floor)
        dots += (torch.dot(grad, update), torch.dot(update, update))
    grad_momentum, momentum_sq, grad_update, update_sq = torch.stack(dots).view(-1, 4).sum(0)
    sign = -1.0 if group.get("maximize") else 1.0
    sums = grad_momentum * sign, momentum_sq, grad_update * (rate * sign), update_sq * (rate * rate)
    return torch.stack(sums)


def _chunks(parts: Sequence[_Part]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Gradients, momenta and second moments, end to end, in rows of a length that suits."""
    limit = _AT_ONCE if parts[0].grad.device.type == "cpu" else _AT_ONCE_ON_DEVICE
    chunk: list[_Part] = []
    size = 0
    for part in parts:
        if chunk and size + part.grad.numel() > limit:
            yield _joined(chunk)
            chunk, size = [], 0
        if part.grad.numel() <= limit:
            chunk.append(part)
            size += part.grad.numel()
            continue
        grad, momentum, second = _joined([part])
        for i in range(0, len(grad), limit):
            piece = slice(i, i + limit)
            yield grad[piece], momentum[piece], None if second is None else second[piece]
    if chunk:
        yield _joined(chunk)


def _joined(parts: Sequence[_Part]) -> tuple[Tensor, Tensor, Tensor | None]:
    grad = _flat([p.grad for p in parts])
    momentum = _flat([p.momentum for p in parts]).to(grad.dtype)
    seconds = [p.second for p in parts if p.second is not None]
    return grad, momentum, _flat(seconds).to(grad.dtype) if seconds else None


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """As one row of real numbers of at least 32 bits."""
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(t) for t in tensors]
    row = torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].flatten()
    return row.float() if row.dtype in SHORT else row
