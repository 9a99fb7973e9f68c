"""The raw statistics of training, gathered on the device and fetched once per decision.

The trainer feeds N runs at once and the plug-in feeds one; both get the same numbers. Every step
costs a handful of operations on tensors of shape (num_runs,); nothing here waits for the device
until `TrainingSignals.fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]

COUNTED_AT_MOST = 5.0
"""A gradient norm enters the running mean at most this many times the mean."""
_ABSURD = {torch.float64: 1e150, torch.float32: 1e15}
"""Beyond this a number counts as infinite: its square, summed over an interval, would be."""
NORM_RATE = 0.02
"""Slowest rate of the running mean of gradient norms, per inner step."""

_SUMS = (
    "steps",
    "broken",
    "losses",
    "loss",
    "loss_sq",
    "norms",
    "norm",
    "norm_sq",
    "clipped",
    "window",
    "param_norm",
    "directions",
    "cos_momentum",
    "cos_update",
    "update_norm",
)
_ROW = {name: row for row, name in enumerate(_SUMS)}
_TRACKER = ("loss_shift", "norm_mean", "norm_count", "finite")


def window_length(interval: int) -> int:
    """Number of steps at an interval's end in which directions are compared.

    >>> [window_length(n) for n in (1, 5, 12, 1000)]
    [1, 1, 2, 4]
    """
    return max(1, min(4, interval // 5))


@dataclass(frozen=True)
class IntervalStatistics:
    """Statistics of one interval; every field has shape (num_runs,), float64.

    Attributes:
        loss_mean: mean training loss over steps where it was finite; NaN if it never was.
        loss_std: its standard deviation within the interval.
        norm_mean: mean gradient norm before clipping; NaN if it was never finite.
        norm_std: its standard deviation within the interval.
        clipped_share: share of steps whose gradient was clipped.
        nonfinite_share: share of steps with a loss or gradient norm that was not finite.
        cos_momentum: mean cosine of gradient and momentum at the interval's end; NaN if unknown.
        cos_update: mean cosine of gradient and previous update (minus its direction), the
            hypergradient: positive means that the last step was too short (Baydin et al. 2018).
        update_norm: mean norm of an update, before weight decay; NaN if unknown.
        param_norm: mean norm of all parameters.
        norm_running: running mean of gradient norms at the interval's end, which the clip
            threshold is a multiple of; 0 while there is none.
    """

    loss_mean: FloatArray
    loss_std: FloatArray
    norm_mean: FloatArray
    norm_std: FloatArray
    clipped_share: FloatArray
    nonfinite_share: FloatArray
    cos_momentum: FloatArray
    cos_update: FloatArray
    update_norm: FloatArray
    param_norm: FloatArray
    norm_running: FloatArray


class TrainingSignals:
    """Accumulators for `num_runs` runs on one device.

    Args:
        num_runs: how many runs are watched.
        device: where losses and gradients live.
        dtype: of the accumulators; float64 where the device has it.
    """

    def __init__(
        self, num_runs: int, *, device: torch.device | str, dtype: torch.dtype = torch.float64
    ) -> None:
        self._sums = torch.zeros(len(_SUMS), num_runs, device=device, dtype=dtype)
        self._absurd = _ABSURD[dtype]
        # Losses are accumulated relative to the run's first one: E[x^2] - E[x]^2 would otherwise
        # lose the spread of a loss that has a large constant part.
        self._loss_shift = torch.full((num_runs,), torch.nan, device=device, dtype=dtype)
        self._norm_mean = torch.zeros(num_runs, device=device, dtype=dtype)
        self._norm_count = torch.zeros(num_runs, device=device, dtype=dtype)
        self._finite = torch.ones(num_runs, device=device, dtype=torch.bool)

    def record_gradient(self, norm: Tensor, clip_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes in one step's gradient norms and says how to clip.

        The threshold is `clip_ratio` times the running mean of earlier norms; the first step of a
        run is not clipped.

        Args:
            norm: (num_runs,), norm of the whole gradient before clipping.
            clip_ratio: (num_runs,).

        Returns:
            Three tensors of shape (num_runs,): the factor for the gradients (1 where nothing is
            clipped), the threshold (infinite where there is none), and whether the norm is finite.
        """
        norm = norm.to(self._sums.dtype)
        finite = norm < self._absurd
        first = self._norm_count == 0
        threshold = torch.where(first, torch.inf, self._norm_mean * clip_ratio)
        clipped = (norm > threshold) & finite
        scale = torch.where(clipped, threshold / norm, 1.0)
        safe = torch.where(finite, norm, 0.0)
        counted = torch.where(first, safe, torch.minimum(safe, COUNTED_AT_MOST * self._norm_mean))
        # A gradient of zero says nothing about scale: counted, it would make the next threshold
        # zero, and so every later gradient.
        known = finite & (safe > 0)
        rate = torch.clamp(1 / (self._norm_count + 1), min=NORM_RATE) * known
        self._norm_mean += rate * (counted - self._norm_mean)
        self._norm_count += known
        rows = torch.stack((finite.to(safe.dtype), safe, safe * safe, clipped.to(safe.dtype)))
        self._sums[_ROW["norms"] : _ROW["clipped"] + 1] += rows
        self._finite.copy_(finite)
        return scale, threshold, finite

    def record_loss(self, loss: Tensor) -> None:
        """Takes in one step's losses, shape (num_runs,), and closes the step."""
        loss = loss.to(self._sums.dtype)
        finite = loss.abs() < self._absurd
        unset = torch.isnan(self._loss_shift) & finite
        self._loss_shift.copy_(torch.where(unset, loss, self._loss_shift))
        shifted = torch.where(finite, loss - self._loss_shift, 0.0)
        broken = ~(finite & self._finite)
        self._sums[: _ROW["loss_sq"] + 1] += torch.stack(
            (
                torch.ones_like(shifted),
                broken.to(shifted.dtype),
                finite.to(shifted.dtype),
                shifted,
                shifted * shifted,
            )
        )
        self._finite.fill_(value=True)

    def record_window(
        self,
        *,
        param_sq: Tensor,
        grad_sq: Tensor,
        directions: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None,
    ) -> None:
        """Takes in one step of the window at an interval's end.

        Args:
            param_sq: (num_runs,), squared norm of the parameters.
            grad_sq: (num_runs,), squared norm of the gradient.
            directions: None while the optimizer has no state; else five (num_runs,) tensors:
                <gradient, momentum>, |momentum|^2, <gradient, u>, |u|^2 and |lr u|, where ``-lr u``
                is the previous update before weight decay.
        """
        kind = self._sums.dtype
        ones = torch.ones_like(self._norm_mean)
        self._sums[_ROW["window"]] += ones
        self._sums[_ROW["param_norm"]] += torch.nan_to_num(param_sq.to(kind).sqrt())
        if directions is None:
            return
        grad_momentum, momentum_sq, grad_update, update_sq, update_norm = (
            d.to(kind) for d in directions
        )
        grad_sq = grad_sq.to(kind)
        cosines = torch.stack(
            (
                grad_momentum / (grad_sq * momentum_sq).sqrt(),
                grad_update / (grad_sq * update_sq).sqrt(),
            )
        )
        # A zero or broken gradient has no direction: the step does not count.
        known = torch.isfinite(cosines).all(0) & torch.isfinite(update_norm)
        rows = torch.cat((ones[None], cosines.clamp(-1, 1), update_norm[None]))
        self._sums[_ROW["directions"] :] += torch.where(known, rows, 0.0)

    def fetch(self) -> IntervalStatistics:
        """Copies the interval's statistics to the host, in one transfer, and starts a new one."""
        rows = (self._sums, self._loss_shift[None], self._norm_mean[None])
        table = torch.cat(rows).to("cpu", torch.float64).numpy()
        self._sums.zero_()
        sums = dict(zip(_SUMS, table, strict=False))
        steps = np.maximum(sums["steps"], 1)
        loss_mean, loss_std = _moments(sums["losses"], sums["loss"], sums["loss_sq"])
        norm_mean, norm_std = _moments(sums["norms"], sums["norm"], sums["norm_sq"])
        return IntervalStatistics(
            loss_mean=loss_mean + table[-2],
            loss_std=loss_std,
            norm_mean=norm_mean,
            norm_std=norm_std,
            clipped_share=sums["clipped"] / steps,
            nonfinite_share=sums["broken"] / steps,
            cos_momentum=_mean(sums["directions"], sums["cos_momentum"]),
            cos_update=_mean(sums["directions"], sums["cos_update"]),
            update_norm=_mean(sums["directions"], sums["update_norm"]),
            param_norm=_mean(sums["window"], sums["param_norm"]),
            norm_running=table[-1],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on in the middle of an interval."""
        state = {name: getattr(self, f"_{name}").clone() for name in _TRACKER}
        return {**state, "sums": self._sums.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned; shapes must agree."""
        for name in (*_TRACKER, "sums"):
            getattr(self, f"_{name}").copy_(state[name])


def _mean(count: FloatArray, total: FloatArray) -> FloatArray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _moments(
    count: FloatArray, total: FloatArray, total_sq: FloatArray
) -> tuple[FloatArray, FloatArray]:
    mean = _mean(count, total)
    mean_sq = _mean(count, total_sq)
    variance = mean_sq - mean * mean
    # Below this, the difference of two rounded numbers is noise: call the values constant.
    variance = np.where(variance > 1e-13 * mean_sq, variance, 0.0)
    return mean, np.where(np.isnan(mean), np.nan, np.sqrt(variance))
