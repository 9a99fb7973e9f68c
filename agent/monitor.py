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

from pacesetter.agent.directions import read_directions
from pacesetter.agent.gradients import (
    gradients_of,
    scale_gradients,
    skip_unless,
    total_norm,
    with_gradients,
)
from pacesetter.agent.hyperparameters import Setting
from pacesetter.inner_models.signals import IntervalStatistics, TrainingSignals


class UpdateMonitor:
    """Watches and clips the updates of one optimizer.

    Args:
        clip_ratio: clip threshold over the running mean of gradient norms, at the start.
    """

    def __init__(self, clip_ratio: float) -> None:
        self._device = torch.device("cpu")
        self._dtype = torch.float64
        self._signals = TrainingSignals(1, device=self._device, dtype=self._dtype)
        self._ratio = torch.tensor([clip_ratio], dtype=self._dtype)
        self._threshold = torch.tensor([math.inf], dtype=self._dtype)
        self._skipped = 0
        self._skipped_on_device = torch.zeros(1, dtype=torch.int64)

    @property
    def threshold(self) -> float:
        """Clip threshold of the latest update. Waits for the device."""
        return float(self._threshold)

    @property
    def skipped(self) -> int:
        """Updates skipped so far. Waits for the device."""
        return self._skipped + int(self._skipped_on_device)

    def set_clip_ratio(self, clip_ratio: float) -> None:
        """The ratio from the next update on."""
        self._ratio.fill_(clip_ratio)

    @torch.no_grad()
    def on_gradients(
        self, optimizer: Optimizer, *, in_window: bool, latest: Sequence[Setting]
    ) -> bool:
        """Takes the statistics of one update, clips its gradients, or has it skipped.

        Args:
            optimizer: about to update.
            in_window: whether directions are compared at this step.
            latest: hyperparameters of the previous update, group by group; empty if there was none.

        Returns:
            Whether there are any gradients.
        """
        params = with_gradients(optimizer)
        if not params:
            return False
        grads = gradients_of(params)
        if grads[0].device != self._device:
            self._move_to(grads[0].device)
        norm = total_norm(grads, device=self._device, dtype=self._dtype)
        scale, self._threshold, finite = self._signals.record_gradient(norm, self._ratio)
        if in_window:
            self._record_window(optimizer, norm=norm, latest=latest)
        happens = skip_unless(finite, optimizer, params)
        if happens is None:
            self._skipped_on_device += ~finite
        elif not happens:
            self._skipped += 1
        if happens is not False:
            scale_gradients(grads, scale)
        return True

    def _record_window(
        self, optimizer: Optimizer, *, norm: Tensor, latest: Sequence[Setting]
    ) -> None:
        trained = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        size = total_norm(trained, device=self._device, dtype=self._dtype)
        directions = read_directions(optimizer, latest, device=self._device, dtype=self._dtype)
        self._signals.record_window(
            param_sq=size.square(), grad_sq=norm.square(), directions=directions
        )

    def record_loss(self, loss: Tensor) -> None:
        """Takes in the loss of the update just done, shape (1,), and closes the step."""
        self._signals.record_loss(loss.to(self._device, self._dtype))

    def fetch(self) -> IntervalStatistics:
        """The interval's statistics, in one copy from the device; starts a new interval."""
        return self._signals.fetch()

    def _move_to(self, device: torch.device) -> None:
        old, self._device = self._signals.state_dict(), device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._signals = TrainingSignals(1, device=device, dtype=self._dtype)
        self._signals.load_state_dict(old)
        self._ratio = self._ratio.to(device, self._dtype)
        self._threshold = self._threshold.to(device, self._dtype)
        self._skipped_on_device = self._skipped_on_device.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on in the middle of an interval."""
        return {
            "signals": self._signals.state_dict(),
            "ratio": self._ratio.clone(),
            "threshold": self._threshold.clone(),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, onto the device in use."""
        self._signals.load_state_dict(state["signals"])
        self._ratio.copy_(state["ratio"])
        self._threshold = state["threshold"].to(self._threshold, copy=True)
        self._skipped = state["skipped"]
        self._skipped_on_device.zero_()
