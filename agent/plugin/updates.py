"""The part of the plug-in that lives where the gradients are: statistics, clipping, skipping.

The order of operations within an update is that of the environments' trainer, step for step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.plugin.directions import read_directions
from pacesetter.agent.plugin.gradients import (
    drop_gradients,
    gradients_of,
    loss_scaling,
    scale_gradients,
    skip_unless,
    total_norm,
    with_gradients,
)
from pacesetter.agent.plugin.optimizer_state import Setting
from pacesetter.inner_models.watch.host_signals import HostSignals
from pacesetter.inner_models.watch.signals import (
    NO_GRADIENT,
    IntervalStatistics,
    Reduce,
    TrainingSignals,
)

_HOST = torch.device("cpu")


class UpdateMonitor:
    """Watches and clips the updates of one optimizer.

    Args:
        clip_ratio: clip threshold over the running mean of gradient norms, at the start; infinite:
            nothing is clipped.
        dry_run: whether gradients are only looked at: nothing is clipped or skipped.
    """

    def __init__(self, clip_ratio: float, *, dry_run: bool = False) -> None:
        self._device, self._dtype = _HOST, torch.float64
        self._dry_run = dry_run
        self._signals: HostSignals | TrainingSignals = HostSignals()
        self._clip_ratio = clip_ratio
        self._ratio = torch.tensor([clip_ratio], dtype=self._dtype)
        self._threshold: float | Tensor = math.inf
        self._skipped = 0
        self._skipped_on_device = torch.zeros(1, dtype=torch.int64)
        self._updated = False

    @property
    def threshold(self) -> float:
        """Clip threshold of the latest update. Waits for the device."""
        return float(self._threshold)

    @property
    def skipped(self) -> int:
        """Updates skipped so far, by us or by a `GradScaler`. Waits for the device."""
        return self._skipped + int(self._skipped_on_device)

    def set_clip_ratio(self, clip_ratio: float) -> None:
        """The ratio from the next update on."""
        self._clip_ratio = clip_ratio
        self._ratio.fill_(clip_ratio)

    @torch.no_grad()
    def on_gradients(
        self, optimizer: Optimizer, *, in_window: bool, latest: Sequence[Setting]
    ) -> bool:
        """Takes the statistics of one update, clips its gradients, or has it skipped.

        Under a `GradScaler` all numbers are those of the unscaled gradients. An update that the
        scaler leaves out is counted as skipped, and as nothing else: it says nothing of the run.

        Args:
            optimizer: about to update.
            in_window: whether directions are compared at this step.
            latest: hyperparameters of the previous update, group by group; empty if there was none.

        Returns:
            Whether there are any gradients.
        """
        self._updated = True
        params = with_gradients(optimizer, coalesce=not self._dry_run)
        if not params:
            return False
        grads = gradients_of(params)
        if grads[0].device != self._device:
            self._move_to(grads[0].device)
        if isinstance(self._signals, HostSignals):
            self._update_on_host(
                self._signals, optimizer, params, grads, in_window=in_window, latest=latest
            )
        else:
            self._update_on_device(
                self._signals, optimizer, params, grads, in_window=in_window, latest=latest
            )
        return True

    def _update_on_host(
        self,
        signals: HostSignals,
        optimizer: Optimizer,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        in_window: bool,
        latest: Sequence[Setting],
    ) -> None:
        told = loss_scaling(optimizer)
        left_out = told.found_inf is not None and float(told.found_inf) > 0
        carried = 1.0 if told.grad_scale is None else float(told.grad_scale)
        norm = NO_GRADIENT
        if not left_out:
            norm = float(total_norm(grads, device=_HOST, dtype=self._dtype)) / carried
        scale, self._threshold, finite = signals.record_gradient(norm, self._clip_ratio)
        if in_window:
            found = self._directions(optimizer, latest, carried)
            directions = None
            if found is not None:
                numbers = found.tolist()
                directions = (*numbers, math.sqrt(max(numbers[3], 0.0)))
            size = float(self._param_norm(optimizer))
            signals.record_window(param_sq=size * size, grad_sq=norm * norm, directions=directions)
        if left_out or (not finite and not self._dry_run):
            self._skipped += 1
        if self._dry_run:
            return
        if not finite:
            drop_gradients(params)
        elif scale != 1.0:
            scale_gradients(grads, scale)

    def _update_on_device(
        self,
        signals: TrainingSignals,
        optimizer: Optimizer,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        in_window: bool,
        latest: Sequence[Setting],
    ) -> None:
        told = loss_scaling(optimizer)
        carried: float | Tensor = 1.0
        norm = total_norm(grads, device=self._device, dtype=self._dtype)
        if told.grad_scale is not None:
            carried = told.grad_scale.to(self._device, self._dtype)
            norm = norm / carried
        if told.found_inf is not None:
            left_out = told.found_inf.to(self._device).reshape(1) > 0
            norm = torch.where(left_out, NO_GRADIENT, norm)
            self._skipped_on_device += left_out
        scale, self._threshold, finite = signals.record_gradient(norm, self._ratio)
        if in_window:
            found = self._directions(optimizer, latest, carried)
            directions = None
            if found is not None:
                a, b, c, d = found[:, None]
                directions = a, b, c, d, d.sqrt()
            size = self._param_norm(optimizer)
            signals.record_window(
                param_sq=size.square(), grad_sq=norm.square(), directions=directions
            )
        if self._dry_run:
            return
        happens = skip_unless(finite, optimizer, params)
        if happens is None:
            self._skipped_on_device += ~finite
        elif not happens:
            self._skipped += 1
        if happens is not False:
            scale_gradients(grads, scale)

    def _directions(
        self, optimizer: Optimizer, latest: Sequence[Setting], carried: float | Tensor
    ) -> Tensor | None:
        """See `read_directions`; of gradients that carry no factor."""
        found = read_directions(optimizer, latest, device=self._device, dtype=self._dtype)
        if found is not None and not (isinstance(carried, float) and carried == 1.0):
            found[::2] /= carried
        return found

    def _param_norm(self, optimizer: Optimizer) -> Tensor:
        trained = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        return total_norm(trained, device=self._device, dtype=self._dtype)

    def record_loss(self, loss: Tensor) -> None:
        """Takes in the loss of the update just done, shape (1,), and closes the step.

        A step without an update is one that a `GradScaler` has left out: it counts as skipped.
        """
        if not self._updated:
            self._skipped += 1
        self._updated = False
        if isinstance(self._signals, HostSignals):
            self._signals.record_loss(float(loss))
        else:
            self._signals.record_loss(loss.to(self._device, self._dtype, non_blocking=True))

    def fetch(self, reduce: Reduce | None = None) -> IntervalStatistics:
        """The interval's statistics, in one copy from the device; starts a new interval.

        Args:
            reduce: the mean over the processes of a job; see `plugin.distributed.Group`.
        """
        return self._signals.fetch(reduce)

    def _move_to(self, device: torch.device) -> None:
        old, self._device = self._signals.state_dict(), device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        if device.type == "cpu":
            self._signals = HostSignals()
        else:
            self._signals = TrainingSignals(1, device=device, dtype=self._dtype)
        self._signals.load_state_dict(old)
        self._ratio = self._ratio.to(device, self._dtype)
        self._skipped_on_device = self._skipped_on_device.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on in the middle of an interval. Waits for the device."""
        return {
            "signals": self._signals.state_dict(),
            "ratio": self._clip_ratio,
            "threshold": self.threshold,
            "skipped": self.skipped,
            "updated": self._updated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, onto the device in use."""
        self._signals.load_state_dict(state["signals"])
        self.set_clip_ratio(state["ratio"])
        self._threshold = state["threshold"]
        self._skipped = state["skipped"]
        self._skipped_on_device.zero_()
        self._updated = state["updated"]
