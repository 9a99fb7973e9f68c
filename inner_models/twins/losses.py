"""Losses that `torch.func.vmap` batches, and that a trace can follow.

The same functions as those of `torch.nn.functional`, whose batching rules are missing (kl_div,
soft_margin_loss), do not know targets that siblings share (mse_loss, smooth_l1_loss, huber_loss),
look at numbers (gaussian_nll_loss, some forms of cross_entropy), or are slow over few classes on a
CPU (cross_entropy). Arguments are those of torch's, in their order.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn import _reduction


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.mse_loss`."""
    _check_sizes(input, target)
    losses = (input - target).square()
    reduction = _name(size_average, reduce, reduction)
    if weight is None:
        return _reduce(losses, reduction)
    losses = losses * weight
    return losses.sum() / weight.sum() if reduction == "mean" else _reduce(losses, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """`torch.nn.functional.smooth_l1_loss`."""
    _check_sizes(input, target)
    error = input - target
    losses = error.abs() if beta == 0 else _huber(error, beta) / beta
    return _reduce(losses, _name(size_average, reduce, reduction))


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.huber_loss`."""
    _check_sizes(input, target)
    losses = _huber(input - target, delta)
    return _reduce(losses if weight is None else losses * weight, reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """`torch.nn.functional.kl_div`."""
    if log_target:
        losses = target.exp() * (target - input)
    else:
        losses = torch.xlogy(target, target) - target * input
    if reduction == "batchmean":
        return losses.sum() / len(input)
    return _reduce(losses, _name(size_average, reduce, reduction))


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.soft_margin_loss`."""
    losses = (-target * input).exp().log1p()
    return _reduce(losses, _name(size_average, reduce, reduction))


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """`torch.nn.functional.gaussian_nll_loss`, without its look for negative variances."""
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    elif var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    # Variances are cut off from below, but their gradients are not.
    var = var + (var.clamp(min=eps) - var).detach()
    losses = 0.5 * (var.log() + (input - target).square() / var)
    return _reduce(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy`: logits (classes,) or (rows, classes, ...)."""
    reduction = _name(size_average, reduce, reduction)
    dim = min(1, input.dim() - 1)
    shifted = input - input.detach().amax(dim, keepdim=True)
    total = shifted.exp().sum(dim).log()
    per_class = None if weight is None else weight.view(-1, *(1,) * (input.dim() - 1 - dim))
    if target.is_floating_point():
        shares = target * (1 - label_smoothing) + label_smoothing / input.shape[dim]
        shares = shares if per_class is None else shares * per_class
        losses = total * shares.sum(dim) - (shares * shifted).sum(dim)
        return losses.sum() / total.numel() if reduction == "mean" else _reduce(losses, reduction)
    ignored = target == ignore_index
    labels = target.masked_fill(ignored, 0)
    weights = torch.ones_like(total) if weight is None else weight[labels]
    weights = weights.masked_fill(ignored, 0)
    losses = (total - shifted.gather(dim, labels.unsqueeze(dim)).squeeze(dim)) * weights
    if label_smoothing:
        if per_class is None:
            even = total * input.shape[dim] - shifted.sum(dim)
        else:
            even = total * weight.sum() - (shifted * per_class).sum(dim)  # type: ignore[union-attr]
        even = even.masked_fill(ignored, 0) * (label_smoothing / input.shape[dim])
        losses = losses * (1 - label_smoothing) + even
    return losses.sum() / weights.sum() if reduction == "mean" else _reduce(losses, reduction)


def _check_sizes(input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        warnings.warn(
            f"the target's size {tuple(target.shape)} differs from that of the input, "
            f"{tuple(input.shape)}; broadcasting is seldom what is meant",
            stacklevel=4,
        )


def _name(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction's name, which two older arguments may give instead."""
    if size_average is None and reduce is None:
        return reduction
    return _reduction.legacy_get_string(size_average, reduce)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction!r} is not a valid value for reduction")
    return losses if reduction == "none" else getattr(losses, reduction)()


def _huber(error: Tensor, delta: float) -> Tensor:
    size = error.abs()
    near = size.clamp(max=delta)
    return near * (size - near / 2)
