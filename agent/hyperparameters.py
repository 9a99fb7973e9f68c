"""Learning rate and momentum in the param groups of a user's optimizer.

Every group is moved from its own start: its learning rate by a common factor, its momentum by a
common change of log(1 - momentum). Groups are looked up anew at every access, because
`load_state_dict` of an optimizer replaces them.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Setting:
    """Hyperparameters of one param group.

    Attributes:
        lr: learning rate.
        momentum: ``betas[0]`` or ``momentum``; None where there is none to control.
    """

    lr: float
    momentum: float | None


class GroupHyperparameters:
    """Starts of all param groups, and what was written into them.

    Args:
        optimizer: whose groups.
        one_minus_momentum_bounds: range of 1 - momentum; widened to hold each group's start.
        momentum_scales_lr: whether lr is multiplied by (1 - momentum) over its start.

    Attributes:
        latest: learning rate and momentum in force at the latest update, group by group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        one_minus_momentum_bounds: tuple[float, float],
        momentum_scales_lr: bool,
    ) -> None:
        self._optimizer = optimizer
        self._bounds = tuple(math.log(b) for b in one_minus_momentum_bounds)
        self._scales_lr = momentum_scales_lr
        self._starts: list[Setting] = []
        self._written: list[Setting] = []
        self.latest: list[Setting] = []
        self._adopt()

    @property
    def momentum_start(self) -> float:
        """Momentum at the start of the first group that has any; 0 if none has."""
        return next((s.momentum for s in self._starts if s.momentum is not None), 0.0)

    @property
    def current(self) -> list[Setting]:
        """What was last written, group by group."""
        return list(self._written)

    def write(self, lr_factor: float, momentum_change: float) -> list[int]:
        """Sets all groups; a group that has joined since starts from its own values.

        Args:
            lr_factor: learning rate over its start, scaling by momentum included.
            momentum_change: of log(1 - momentum) since the start, in the first group that has any.
                Where another group's bounds allow less, it gets less.

        Returns:
            Numbers of the groups that somebody else had written to since the last call.
        """
        groups = self._optimizer.param_groups
        pairs = zip(groups, self._written, strict=False)
        # Looked at before anything is written: groups may share one tensor for their lr.
        foreign = [i for i, (group, setting) in enumerate(pairs) if not _agrees(group, setting)]
        self._adopt()
        written = []
        for group, start in zip(groups, self._starts, strict=True):
            own = self._bounded(start, momentum_change)
            lr = start.lr * lr_factor
            if self._scales_lr and own != momentum_change:
                lr *= math.exp(own - momentum_change)
            momentum = start.momentum
            if momentum is not None and own:
                momentum = -math.expm1(math.log1p(-momentum) + own)
            written.append(_set(group, Setting(lr, momentum)))
        self._written = written
        return foreign

    def mark_update(self) -> None:
        """Remembers what is in force now as the hyperparameters of the latest update."""
        self.latest = self.current

    def _adopt(self) -> None:
        """Reads the starts of groups that are new."""
        groups = self._optimizer.param_groups
        for i in range(len(self._starts), len(groups)):
            start, lr = _read(groups[i]), groups[i]["lr"]
            if isinstance(lr, Tensor):
                # torch gives one default tensor to all groups: by now it holds what we wrote.
                for group, earlier in zip(groups[:i], self._starts, strict=True):
                    if group["lr"] is lr:
                        start = Setting(earlier.lr, start.momentum)
            self._starts.append(start)

    def _bounded(self, start: Setting, change: float) -> float:
        if start.momentum is None:
            return 0.0
        origin = math.log1p(-start.momentum)
        low, high = min(origin, self._bounds[0]), max(origin, self._bounds[1])
        if low <= origin + change <= high:
            return change
        return (low if change < 0 else high) - origin

    def state_dict(self) -> dict[str, Any]:
        """Starts and latest values as plain lists."""
        return {
            "starts": [[s.lr, s.momentum] for s in self._starts],
            "latest": [[s.lr, s.momentum] for s in self.latest],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the next `write` sets the groups.

        Raises:
            ValueError: the optimizer has fewer groups than there were.
        """
        starts = [Setting(*row) for row in state["starts"]]
        have = len(self._optimizer.param_groups)
        if have < len(starts):
            raise ValueError(
                f"the state is that of an optimizer with {len(starts)} param groups, "
                f"but this one has {have}"
            )
        self._starts = starts
        self._written = []
        self.latest = [Setting(*row) for row in state["latest"]]


def other_schedulers(optimizer: Optimizer) -> list[str]:
    """Names of torch's own schedulers that are alive and hold this optimizer. Slow."""
    return sorted(
        type(found).__name__
        for found in gc.get_objects()
        if issubclass(type(found), LRScheduler) and getattr(found, "optimizer", None) is optimizer
    )


def _read(group: dict[str, Any]) -> Setting:
    """What a group holds; may wait for the device, so only for groups that are new."""
    momentum = float(_momentum_in(group))
    return Setting(float(group["lr"]), momentum if 0 < momentum < 1 else None)


def _agrees(group: dict[str, Any], written: Setting) -> bool:
    """Whether a group still holds what was written, as far as that can be told for free."""
    if not _differs(group["lr"], written.lr):
        return written.momentum is None or not _differs(_momentum_in(group), written.momentum)
    return False


def _differs(value: Any, written: float) -> bool:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return False
    return float(value) != written


def _set(group: dict[str, Any], setting: Setting) -> Setting:
    """Writes into a group; tensors are filled in place. Returns what it then holds."""
    group["lr"], lr = _filled(group["lr"], setting.lr)
    momentum = setting.momentum
    if momentum is not None:
        value, momentum = _filled(_momentum_in(group), momentum)
        if "betas" in group:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value
    return Setting(lr, momentum)


def _filled(old: Any, value: float) -> tuple[Any, float]:
    if not isinstance(old, Tensor):
        return value, value
    with torch.no_grad():
        old.fill_(value)
    # A float32 tensor holds a rounded value; on a device it is not worth waiting for.
    return old, float(old) if old.device.type == "cpu" else value


def _momentum_in(group: dict[str, Any]) -> Any:
    return group["betas"][0] if "betas" in group else group["momentum"]
