"""The gradients of one update: their norm, their clipping, and updates that are not to happen.

Works on whatever the parameters of a user's job are: several devices and dtypes, sparse gradients,
shards, parameters that have none. Nothing here waits for the device, but for the one case that
`skip_unless` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.plugin.distributed import across_shards, by_layout, local_part

SHORT = (torch.float16, torch.bfloat16)
"""Types too short to add up in."""
_LENT = "_pacesetter_found_inf"


@dataclass(frozen=True)
class LossScaling:
    """What a `GradScaler` has told a fused optimizer about the update that is due.

    Attributes:
        grad_scale: 0-d, factor that the gradients still carry; None: they carry none.
        found_inf: 0-d, above zero where the update is to be left out; None: nobody has looked.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None


def loss_scaling(optimizer: Optimizer) -> LossScaling:
    """Reads it; an optimizer that is not fused is only called with unscaled, sound gradients."""
    found = optimizer.__dict__
    return LossScaling(grad_scale=found.get("grad_scale"), found_inf=found.get("found_inf"))


def with_gradients(optimizer: Optimizer, *, coalesce: bool = True) -> list[Tensor]:
    """The optimizer's parameters that have a gradient.

    Args:
        optimizer: whose parameters.
        coalesce: whether sparse gradients are replaced by coalesced ones, which can be clipped.
    """
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                if coalesce and grad.is_sparse and not grad.is_coalesced():
                    param.grad = grad.coalesce()
                params.append(param)
    return params


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients as dense tensors to read or scale; of a sparse one, its values."""
    grads = [p.grad for p in params if p.grad is not None]
    return [g.coalesce()._values() if g.is_sparse else g for g in grads]


@torch.no_grad()
def overflowed(optimizer: Optimizer) -> bool:
    """Whether the gradients that an optimizer has are not all finite. Waits for the device.

    So it is where a `GradScaler` has left out an update.
    """
    grads = gradients_of(with_gradients(optimizer, coalesce=False))
    if not grads:
        return False
    norm = total_norm(grads, device=grads[0].device, dtype=torch.float32)
    return not bool(torch.isfinite(norm))


def total_norm(tensors: Iterable[Tensor], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Norm of all tensors laid end to end; of sharded ones, over all their parts.

    Args:
        tensors: at least one, dense, of any devices and dtypes. Gradient tracking has to be off.
        device: of the result.
        dtype: of the result; those of 16 bits are added up in float32 before.

    Returns:
        (1,).
    """
    norms: list[Tensor] = []
    for layout, members in by_layout(tensors).items():
        parts = members if layout is None else [local_part(t) for t in members]
        norm = _norm(parts, device=device, dtype=dtype)
        if layout is not None:
            norm = across_shards(norm.square(), layout).sqrt()
        norms.append(norm)
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm.reshape(1)


def _norm(tensors: Iterable[Tensor], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    norms: list[Tensor] = []
    for (_, kind), members in _by_kind(tensors).items():
        found = torch._foreach_norm(members, 2, torch.float32 if kind in SHORT else None)
        norms.append(torch.stack(found).to(device, dtype))
    joined = norms[0] if len(norms) == 1 else torch.cat(norms)
    norm: Tensor = torch.linalg.vector_norm(joined)
    return norm


def scale_gradients(grads: Sequence[Tensor], scale: Tensor | float) -> None:
    """Multiplies gradients in place.

    Args:
        grads: from `gradients_of`.
        scale: a number, or (1,) on any device.
    """
    for (device, dtype), members in _by_kind(local_part(g) for g in grads).items():
        if isinstance(scale, Tensor):
            torch._foreach_mul_(members, scale[0].to(device, dtype))
        else:
            torch._foreach_mul_(members, scale)


def skip_unless(finite: Tensor, optimizer: Optimizer, params: Sequence[Tensor]) -> bool | None:
    """Lets an update happen only where `finite` is true; a skipped one does not advance a step.

    A fused optimizer is handed the flag, which its kernels read themselves. Any other optimizer
    has to be told by the host, so the host waits for the flag at every update: a job on a GPU had
    better use ``fused=True``.

    Args:
        finite: (1,), boolean, on the device.
        optimizer: about to update.
        params: its parameters that have gradients; a skipped update sets these to None.

    Returns:
        Whether the update happens; None where only the device knows.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        lend_flag(optimizer, ~finite[0])
        return None
    happens = bool(finite.item())
    if not happens:
        drop_gradients(params)
    return happens


def drop_gradients(params: Sequence[Tensor]) -> None:
    """Takes the gradients away: the optimizer passes over parameters that have none."""
    for param in params:
        param.grad = None


def lend_flag(optimizer: Optimizer, broken: Tensor) -> None:
    """Tells the kernels of a fused optimizer whether to leave out the next update.

    Args:
        optimizer: fused in all its groups. If a `GradScaler` has told it the same, both count.
        broken: 0-d, boolean, on the optimizer's device.
    """
    own = getattr(optimizer, "found_inf", None)
    flag = broken.to(torch.float32)
    optimizer.__dict__[_LENT] = own
    optimizer.__dict__["found_inf"] = flag if own is None else torch.maximum(flag, own.to(flag))


def finish_update(optimizer: Optimizer) -> None:
    """Takes back the flag that `lend_flag` lent, if it did."""
    if _LENT not in optimizer.__dict__:
        return
    own = optimizer.__dict__.pop(_LENT)
    if own is None:
        del optimizer.__dict__["found_inf"]
    else:
        optimizer.__dict__["found_inf"] = own


def _by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return kinds
