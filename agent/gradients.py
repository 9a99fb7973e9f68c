"""The gradients of one update: their norm, their clipping, and updates that are not to happen.

Works on whatever the parameters of a user's job are: several devices and dtypes, sparse gradients,
parameters that have none. Nothing here waits for the device, but for the one case that
`skip_unless` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

_SHORT = (torch.float16, torch.bfloat16)
_LENT = "_pacesetter_found_inf"


def with_gradients(optimizer: Optimizer) -> list[Tensor]:
    """The optimizer's parameters that have a gradient; sparse gradients are coalesced."""
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None:
                if param.grad.is_sparse and not param.grad.is_coalesced():
                    param.grad = param.grad.coalesce()
                params.append(param)
    return params


def total_norm(tensors: Iterable[Tensor], *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Norm of all tensors laid end to end.

    Args:
        tensors: at least one, dense, of any devices and dtypes.
        device: of the result.
        dtype: of the result; those of 16 bits are added up in float32 before.

    Returns:
        (1,).
    """
    norms: list[Tensor] = []
    for kind, members in _by_kind(tensors).items():
        if kind[1] in _SHORT:
            norms += [torch.linalg.vector_norm(t, dtype=torch.float32) for t in members]
        else:
            norms += torch._foreach_norm(members)
    stacked = torch.stack([n.to(device, dtype) for n in norms])
    norm: Tensor = torch.linalg.vector_norm(stacked)
    return norm.reshape(1)


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients as dense tensors to read or scale; of a sparse one, its values."""
    grads = [p.grad for p in params if p.grad is not None]
    return [g._values() if g.is_sparse else g for g in grads]


def scale_gradients(grads: Sequence[Tensor], scale: Tensor) -> None:
    """Multiplies gradients in place.

    Args:
        grads: from `gradients_of`.
        scale: (1,), on any device; where it can be read for free and is 1, nothing is done.
    """
    if scale.device.type == "cpu" and float(scale.numpy()[0]) == 1.0:
        return
    for (device, dtype), members in _by_kind(grads).items():
        torch._foreach_mul_(members, scale[0].to(device, dtype))


def skip_unless(finite: Tensor, optimizer: Optimizer, params: Sequence[Tensor]) -> bool | None:
    """Lets an update happen only where `finite` is true; a skipped one does not advance a step.

    A flag in host memory is simply read. A fused optimizer is handed the flag, which its kernels
    read themselves. Any other optimizer has to be told by the host, so the host waits for the flag
    at every update: a job on a GPU had better use ``fused=True``.

    Args:
        finite: (1,), boolean.
        optimizer: about to update.
        params: its parameters that have gradients; a skipped update sets these to None.

    Returns:
        Whether the update happens; None where only the device knows.
    """
    if finite.device.type == "cpu":
        happens = bool(finite.numpy()[0])
    elif all(group.get("fused") for group in optimizer.param_groups):
        lend_flag(optimizer, ~finite[0])
        return None
    else:
        happens = bool(finite.item())
    if not happens:
        for param in params:
            param.grad = None
    return happens


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
