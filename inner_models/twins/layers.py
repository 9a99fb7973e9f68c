"""Layers that `torch.func.vmap` batches, where torch's own rule is missing, wrong or slow.

The same functions as torch's, with their arguments in their order; and modules that say in Python
what torch's say by looking at numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
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
    _refuse_max_norm(max_norm)
    # torch's batching rule counts the rows of all runs together, and so misses the padding of all
    # runs but one: its gradient has to be stopped by hand.
    weight = _without_gradient(weight, padding_idx)
    return F.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`torch.nn.functional.embedding_bag`; gradients are dense.

    Bags of different sizes, which `offsets` tells apart, are left to torch.

    Raises:
        NotImplementedError: `max_norm`, which overwrites weights during the forward pass.
    """
    _refuse_max_norm(max_norm)
    if input.dim() == 1:
        return F.embedding_bag(
            input,
            weight,
            offsets,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    if offsets is not None or (per_sample_weights is not None and mode != "sum"):
        raise ValueError(
            "embedding_bag takes no offsets with two-dimensional input, and per_sample_weights "
            f"only with mode='sum', but got mode={mode!r}"
        )
    rows = F.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq)
    seen = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        seen = input != padding_idx % len(weight)
    if mode == "max":
        largest = rows.masked_fill(~seen[..., None], -math.inf).max(1).values
        return largest.masked_fill(~seen.any(1, keepdim=True), 0.0)
    counted = seen.to(rows.dtype)
    if per_sample_weights is not None:
        counted = counted * per_sample_weights
    total = (rows * counted[..., None]).sum(1)
    return total if mode == "sum" else total / counted.sum(1, keepdim=True).clamp(min=1)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.bilinear`: (..., m), (..., n), weight (outputs, m, n)."""
    outputs, left, right = weight.shape
    halves = input1 @ weight.permute(1, 0, 2).reshape(left, outputs * right)
    out: Tensor = (halves.unflatten(-1, (outputs, right)) * input2.unsqueeze(-2)).sum(-1)
    return out if bias is None else out + bias


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`, which `weight_norm` of `torch.nn.utils` calls."""
    # Without a dimension, which torch calls -1, it is the norm of the whole.
    others = [d for d in range(v.dim()) if d != dim]
    direction: Tensor = v / torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return direction * g


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """`torch.nn.functional.normalize`, also into a tensor, as `spectral_norm` calls it."""
    result = F.normalize(input, p, dim, eps)
    return result if out is None else out.copy_(result)


class _CumulativeNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose ``momentum=None`` needs no look at the number of batches."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.BatchNorm1d`."""
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
    """A recurrent module that leaves its weights where they lie: cuDNN will not see them."""

    def flatten_parameters(self) -> None:
        """Does nothing."""


class GRUTwin(_Unflattened, nn.GRU):
    """`nn.GRU`."""


class LSTMTwin(_Unflattened, nn.LSTM):
    """`nn.LSTM`."""


class RNNTwin(_Unflattened, nn.RNN):
    """`nn.RNN`."""


def _refuse_max_norm(max_norm: Any) -> None:
    if max_norm is not None:
        raise NotImplementedError(
            f"an embedding with max_norm={max_norm} overwrites its weights as it is used, which "
            "cannot be batched"
        )


def _without_gradient(weight: Tensor, row: int | None) -> Tensor:
    """The weights, with one row cut off from its gradient."""
    if row is None:
        return weight
    row %= len(weight)
    return torch.cat([weight[:row], weight[row : row + 1].detach(), weight[row + 1 :]])
