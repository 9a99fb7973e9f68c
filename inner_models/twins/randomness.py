"""Random numbers that nested `torch.func.vmap` can draw: one draw per task, shared by siblings.

torch's rule for drawing in place forgets all levels of vmap but one, and refuses (or, for Bernoulli
numbers, ends the process). Drawing a new tensor works, so these draw one and copy it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform_(self: Tensor, *bounds: float, generator: Any = None, **named: float) -> Tensor:
    """`Tensor.uniform_`."""
    _refuse(generator)
    low, high = (*bounds, *(0.0, 1.0)[len(bounds) :])
    low, high = named.get("from", low), named.get("to", high)
    return self.copy_(torch.rand_like(self) * (high - low) + low)


def normal_(self: Tensor, mean: float = 0, std: float = 1, *, generator: Any = None) -> Tensor:
    """`Tensor.normal_`."""
    _refuse(generator)
    return self.copy_(torch.randn_like(self) * std + mean)


def exponential_(self: Tensor, lambd: float = 1, *, generator: Any = None) -> Tensor:
    """`Tensor.exponential_`."""
    _refuse(generator)
    return self.copy_(_exponential(self) / lambd)


def bernoulli_(self: Tensor, p: float | Tensor = 0.5, *, generator: Any = None) -> Tensor:
    """`Tensor.bernoulli_`."""
    _refuse(generator)
    numbers = torch.rand_like(self, dtype=torch.get_default_dtype())
    return self.copy_(numbers.lt(p))


def normal(mean: Any, std: Any = 1.0, *args: Any, **named: Any) -> Tensor:
    """`torch.normal`."""
    if args or named or not (isinstance(mean, Tensor) or isinstance(std, Tensor)):
        numbers: Tensor = torch.normal(mean, std, *args, **named)
        return numbers
    scale: Tensor = mean * 0 + std
    drawn: Tensor = mean + scale * torch.randn_like(scale)
    return drawn


def empty(*size: Any, **options: Any) -> Tensor:
    """`torch.empty`, with numbers of its own for each task, which can be overwritten by others."""
    room = torch.empty(*size, **options)
    return torch.rand_like(room) if room.is_floating_point() else room


def assume_true(_: Tensor) -> bool:
    """`torch._is_all_true`, by which distributions check their arguments: a look at numbers."""
    return True


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """`torch.nn.functional.gumbel_softmax`."""
    soft = ((logits - _exponential(logits).log()) / tau).softmax(dim)
    if not hard:
        return soft
    chosen = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return chosen - soft.detach() + soft


def rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """`torch.nn.functional.rrelu`; never in place."""
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    return torch.where(
        input >= 0, input, input * (torch.rand_like(input) * (upper - lower) + lower)
    )


def _refuse(generator: Any) -> None:
    if generator is not None:
        raise NotImplementedError(
            "numbers drawn in place from a generator of one's own cannot be batched: runs would "
            "draw them in another order"
        )


def _exponential(like: Tensor) -> Tensor:
    """Exponential random numbers, none of them zero."""
    tiny = torch.finfo(like.dtype).tiny
    return (-torch.log1p(-torch.rand_like(like))).clamp_min(tiny)
