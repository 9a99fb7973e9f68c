"""Learning rate and momentum in the param groups of a user's optimizer.

Every group is moved from its own start: its learning rate by a common factor, its momentum by a
common change of log(1 - momentum). Groups are looked up anew at every access, because
`load_state_dict` of an optimizer replaces them; the list of its parameters then tells which is
which.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer, RMSprop


class Setting(NamedTuple):
    """Hyperparameters of one param group."""

    lr: float
    momentum: float | None
    """``betas[0]`` or ``momentum``; None where there is none to control."""


class GroupHyperparameters:
    """Starts of all param groups, what was last `written`, and what was in force at the `latest`.

    Bounds of 1 - momentum are widened to hold each group's start. `lr_bounds`, if any, are never
    left by a group whose start is not zero; one that starts outside of them is a ValueError.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        one_minus_momentum_bounds: tuple[float, float],
        control: Collection[str] = ("lr", "momentum"),
        lr_bounds: tuple[float, float] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self.lr_bounds = lr_bounds
        self._sets_lr, self._sets_momentum = "lr" in control, "momentum" in control
        self._bounds = tuple(math.log(b) for b in one_minus_momentum_bounds)
        self._scales_lr = momentum_scales_lr(optimizer)
        self._groups: list[dict[str, Any]] = []
        self._starts: list[Setting] = []
        self._betas: list[Any] = []
        self.written: list[Setting] = []
        self._asked = (math.nan, math.nan)
        self.latest: list[Setting] = []
        self._adopt()

    @property
    def momentum_start(self) -> float:
        return next((s.momentum for s in self._starts if s.momentum is not None), 0.0)

    @property
    def lead(self) -> int:
        """Number of the first group that starts at a learning rate above zero; 0 if none does."""
        return next((i for i, s in enumerate(self._starts) if s.lr), 0)

    @property
    def lr_start(self) -> float:
        return self._starts[self.lead].lr

    def held(self) -> list[Setting]:
        """What the groups hold, as far as that can be told without waiting for a device."""
        self._adopt()
        known = self.written or self._starts
        pairs = zip(self._optimizer.param_groups, known, strict=False)
        return [_held(group, setting) for group, setting in pairs]

    def write(self, lr_factor: float, momentum_change: float) -> list[int]:
        """Sets all groups; the learning rate of one that has joined since is in force now.

        `lr_factor` is over the start, scaling by momentum included; `momentum_change` is that of
        log(1 - momentum), less where a group's bounds allow less. Returns the numbers of the groups
        that somebody else had written to since the last call.
        """
        groups = self._optimizer.param_groups
        self._adopt(lr_factor, momentum_change)
        # Looked at before anything is written: groups may share one tensor for their lr.
        pairs = enumerate(zip(groups, self.written, strict=False))
        foreign = [i for i, (group, written) in pairs if self._is_foreign(group, written)]
        asked = (lr_factor, momentum_change)
        if foreign or asked != self._asked or len(groups) != len(self.written):
            wanted = self.proposed(lr_factor, momentum_change)
            self.written = [self._set(g, w) for g, w in zip(groups, wanted, strict=True)]
            self._asked = asked
        return foreign

    def proposed(self, lr_factor: float, momentum_change: float) -> list[Setting]:
        """What `write` would set, group by group; what is not controlled is as it is."""
        groups = self._optimizer.param_groups
        self._adopt(lr_factor, momentum_change)
        settings = []
        for group, start in zip(groups, self._starts, strict=True):
            own = self._bounded(start, momentum_change)
            lr = start.lr * self._own_factor(own, lr_factor, momentum_change)
            if self.lr_bounds is not None and start.lr:
                lr = min(max(lr, self.lr_bounds[0]), self.lr_bounds[1])
            momentum = start.momentum
            if momentum is not None and own:
                momentum = -math.expm1(math.log1p(-momentum) + own)
            held_lr, held_momentum = _held(group, start)
            lr = lr if self._sets_lr else held_lr
            settings.append(Setting(lr, momentum if self._sets_momentum else held_momentum))
        return settings

    def mark_update(self) -> None:
        self.latest = self.held()

    def restore_starts(self) -> None:
        self._adopt()
        rows = zip(self._optimizer.param_groups, self._starts, self._betas, strict=True)
        for group, start, betas in rows:
            self._set(group, start)
            if betas is not None and not isinstance(betas[0], Tensor) and start.momentum:
                group["betas"] = (start.momentum, *betas[1:])

    def _own_factor(self, own: float, lr_factor: float, momentum_change: float) -> float:
        """Learning rate of a group over its start; `own` is the change of its momentum."""
        if self._scales_lr and own != momentum_change:
            return lr_factor * math.exp(own - momentum_change)
        return lr_factor

    def _adopt(self, lr_factor: float = 1.0, momentum_change: float = 0.0) -> None:
        """Finds out which groups there are, and what those that are new start from."""
        groups, known = self._optimizer.param_groups, self._groups
        if len(groups) == len(known) and all(map(operator.is_, groups, known)):
            return
        lists = {id(group["params"]): i for i, group in enumerate(known)}
        places = [lists.get(id(group["params"])) for group in groups]
        starts: list[Setting] = []
        for i, (group, place) in enumerate(zip(groups, places, strict=True)):
            if place is not None:
                starts.append(self._starts[place])
                continue
            start = _read(group)
            self._check_bounds(start.lr, i)
            own = self._bounded(start, momentum_change)
            lr = start.lr / (self._own_factor(own, lr_factor, momentum_change))
            if isinstance(group["lr"], Tensor):
                # torch gives one default tensor to all groups: by now it holds what we wrote.
                pairs = zip(groups, starts, strict=False)
                lr = next((s.lr for g, s in pairs if g["lr"] is group["lr"]), lr)
            starts.append(Setting(lr if self._sets_lr else start.lr, start.momentum))
        if places[: len(known)] != list(range(len(known))):
            self.written, self.latest = [], []
        self._betas = [
            group.get("betas") if place is None else self._betas[place]
            for group, place in zip(groups, places, strict=True)
        ]
        self._groups, self._starts = list(groups), starts

    def _check_bounds(self, lr: float, group: int) -> None:
        if self.lr_bounds is None or not lr or not self._sets_lr:
            return
        low, high = self.lr_bounds
        if not low <= lr <= high:
            raise ValueError(
                f"param group {group} starts at a learning rate of {lr:g}, outside "
                f"lr_bounds=({low:g}, {high:g}): widen the bounds, or start within them"
            )

    def _is_foreign(self, group: dict[str, Any], written: Setting) -> bool:
        if self._sets_lr and _differs(group["lr"], written.lr):
            return True
        if not self._sets_momentum or written.momentum is None:
            return False
        return _differs(_momentum_in(group), written.momentum)

    def _set(self, group: dict[str, Any], setting: Setting) -> Setting:
        """Writes into a group; tensors are filled in place. Returns what it then holds."""
        lr, momentum = setting.lr, setting.momentum
        if self._sets_lr:
            group["lr"], lr = _filled(group["lr"], lr)
        if self._sets_momentum and momentum is not None:
            if "betas" in group and isinstance(group["lr"], Tensor):
                # As lr is, lest a compiled step be compiled anew whenever a float changes.
                dtype = self._beta_dtype(group)
                group["betas"] = tuple(_as_tensor(beta, dtype) for beta in group["betas"])
            value, momentum = _filled(_momentum_in(group), momentum)
            if "betas" in group:
                group["betas"] = (value, *group["betas"][1:])
            else:
                group["momentum"] = value
        return Setting(lr, momentum)

    def _beta_dtype(self, group: dict[str, Any]) -> torch.dtype:
        # These two, in older versions of torch, want the dtype of the parameters.
        wants_same = isinstance(self._optimizer, torch.optim.NAdam | torch.optim.RAdam)
        single = all(p.dtype == torch.float32 for p in group["params"][:1])
        return torch.float32 if wants_same and single else torch.float64

    def _bounded(self, start: Setting, change: float) -> float:
        if start.momentum is None:
            return 0.0
        origin = math.log1p(-start.momentum)
        low, high = min(origin, self._bounds[0]), max(origin, self._bounds[1])
        if low <= origin + change <= high:
            return change
        return (low if change < 0 else high) - origin

    def state_dict(self) -> dict[str, Any]:
        return {"starts": list(map(list, self._starts)), "latest": list(map(list, self.latest))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the next `write` sets the groups."""
        starts = [Setting(*row) for row in state["starts"]]
        have = len(self._optimizer.param_groups)
        if have < len(starts):
            raise ValueError(
                f"the state is that of an optimizer with {len(starts)} param groups, "
                f"but this one has {have}"
            )
        self._adopt()
        self._starts, self._groups = starts, self._groups[: len(starts)]
        self.written = []
        self.latest = [Setting(*row) for row in state["latest"]]


def momentum_scales_lr(optimizer: Optimizer) -> bool:
    """Whether steps grow with momentum, its buffer being a sum: lr is scaled by (1 - momentum)."""
    return isinstance(optimizer, SGD | RMSprop)


def _read(group: dict[str, Any]) -> Setting:
    """What a group holds; may wait for the device, so only for groups that are new."""
    momentum = float(_momentum_in(group))
    return Setting(float(group["lr"]), momentum if 0 < momentum < 1 else None)


def _held(group: dict[str, Any], known: Setting) -> Setting:
    """What a group holds; where that lies on a device, what is known of it."""
    lr = group["lr"]
    lr = known.lr if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)
    if known.momentum is None:
        return Setting(lr, None)
    momentum = _momentum_in(group)
    on_device = isinstance(momentum, Tensor) and momentum.device.type != "cpu"
    return Setting(lr, known.momentum if on_device else float(momentum))


def _differs(value: Any, written: float) -> bool:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return False
    return float(value) != written


def _as_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


def _filled(old: Any, value: float) -> tuple[Any, float]:
    if not isinstance(old, Tensor):
        return value, value
    with torch.no_grad():
        old.fill_(value)
    # A float32 tensor holds a rounded value; on a device it is not worth waiting for.
    return old, float(old) if old.device.type == "cpu" else value


def _momentum_in(group: dict[str, Any]) -> Any:
    return group["betas"][0] if "betas" in group else group["momentum"]
