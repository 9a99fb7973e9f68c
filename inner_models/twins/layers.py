"""Layers and losses that `torch.func.vmap` batches, where torch's own rule is wrong or slow.

The functions take the arguments of torch's, in their order: embeddings, whose batching rule ignores
padding; mse_loss, whose rule does not broadcast targets that siblings share; cross_entropy, which
is slow over few classes on a CPU. The modules avoid decisions by the numbers in tensors.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import _reduction
from torch.nn import functional as F


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.nn.functional.embedding`; gradients are dense.

    Raises:
        NotImplementedError: `max_norm`, which overwrites weights during the forward pass.
    """
    if max_norm is not None:
        raise NotImplementedError(
            f"an embedding with max_norm={max_norm} overwrites its weights as it is used, which "
            "cannot be batched"
        )
    if padding_idx is not None:
        # torch's batching rule counts the rows of all runs together, so it finds the padding of
        # one run only: the gradient is stopped here instead.
        row = padding_idx % len(weight)
        weight = torch.cat([weight[:row], weight[row : row + 1].detach(), weight[row + 1 :]])
    return F.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    _check_sizes(input, target)
    losses = (input - target).square()
    reduction = _name(size_average, reduce, reduction)
    if weight is None:
        return _reduce(losses, reduction)
    losses = losses * weight
    return losses.sum() / weight.sum() if reduction == "mean" else _reduce(losses, reduction)


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


def bernoulli_(*_: Any, **__: Any) -> NoReturn:
    """Refuses `Tensor.bernoulli_` by a NotImplementedError: torch's rule can end the process."""
    raise NotImplementedError("Bernoulli numbers drawn in place cannot be batched")


class _CumulativeNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose ``momentum=None`` does not read the number of batches from the device."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if self.momentum is not None or not self.training or not self.track_running_stats:
            return super().forward(input)
        if mean is None or var is None or batches is None:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            batches.add_(1)
            share = 1 / batches.to(mean.dtype)
            others = [d for d in range(input.dim()) if d != 1]
            for running, now in ((mean, input.mean(others)), (var, input.var(others))):
                running.mul_(1 - share).add_(now * share)
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


class BatchNorm1dTwin(_CumulativeNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`."""


class BatchNorm2dTwin(_CumulativeNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`."""


class BatchNorm3dTwin(_CumulativeNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d`."""


class _Unflattened(nn.RNNBase):
    """A recurrent module that does not rearrange its weights for cuDNN, which is not called."""

    def flatten_parameters(self) -> None:
        pass


class GRUTwin(_Unflattened, nn.GRU):
    """`nn.GRU`."""


class LSTMTwin(_Unflattened, nn.LSTM):
    """`nn.LSTM`."""


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
