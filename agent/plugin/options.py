"""Choices of the plug-in's user, checked: errors say what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from pacesetter.agent.plugin.callbacks import ScheduleCallback
from pacesetter.agent.plugin.directions import SUPPORTED
from pacesetter.envs.decision import CONTROLS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices for one run; `LearnedScheduler` tells their meaning and their errors."""

    total_steps: int
    model: nn.Module | None = None
    warmup_steps: int = 0
    control: Collection[str] = CONTROLS
    lr_bounds: tuple[float, float] | None = None
    guard: bool = True
    rollback: bool | None = None
    dry_run: bool = False
    patience: int | None = 10
    callbacks: Sequence[ScheduleCallback] = ()
    process_group: Any = None

    def __post_init__(self) -> None:
        total = positive_integer(self.total_steps, "total_steps")
        object.__setattr__(self, "total_steps", total)
        if self.model is not None and not isinstance(self.model, nn.Module):
            raise TypeError(
                "model must be the torch.nn.Module whose buffers are to be kept, "
                f"but got {type(self.model).__name__}"
            )
        warmup = integer(self.warmup_steps)
        if warmup is None or warmup < 0:
            raise ValueError(
                f"Expected integer warmup_steps of zero or more, but got {self.warmup_steps!r}"
            )
        if warmup >= total:
            raise ValueError(
                f"warmup_steps must be below total_steps={total}, which counts the warm-up too, "
                f"but got {warmup}"
            )
        object.__setattr__(self, "warmup_steps", warmup)
        names = (self.control,) if isinstance(self.control, str) else tuple(self.control)
        if not names or any(name not in CONTROLS for name in names):
            raise ValueError(f"control must be some of {CONTROLS}, but got {self.control!r}")
        object.__setattr__(self, "control", names)
        if self.lr_bounds is not None:
            object.__setattr__(self, "lr_bounds", _bounds(self.lr_bounds))
        if self.rollback and not self.guard:
            raise ValueError(
                "rollback=True needs the guard, which says when to go back: leave guard=False out"
            )
        if self.patience is not None:
            positive_integer(self.patience, "patience")
        for callback in self.callbacks:
            if not callable(getattr(callback, "on_decision", None)):
                raise TypeError(
                    "callbacks must have a method on_decision(decision), "
                    f"but got {type(callback).__name__}"
                )


def _bounds(value: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high < math.inf:
        raise ValueError(
            "lr_bounds must be two learning rates, lower one first, both positive and finite, "
            f"but got {value!r}"
        )
    return low, high


def refuse_inference_mode(what: str) -> None:
    """Refuses to make tensors that nothing could be written into afterwards."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{what} under torch.inference_mode(), whose tensors cannot be trained: "
            "expected a call outside of it"
        )


def integer(value: Any) -> int | None:
    """An integer of whatever type; None for anything else, booleans included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def positive_integer(value: Any, name: str) -> int:
    """A positive count, of whatever integer type; else a ValueError."""
    number = integer(value)
    if number is None or number < 1:
        raise ValueError(f"Expected positive integer {name}, but got {value!r}")
    return number


def one_number(value: Any, name: str) -> Tensor:
    """A loss as a tensor of shape (1,), detached, on whatever device it is."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, but got shape {tuple(value.shape)}")
        return value.detach().reshape(1)
    if not isinstance(value, str | bytes):
        try:
            return torch.tensor([float(value)], dtype=torch.float64)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a tensor or a number, but got {type(value).__name__}")


def describe(optimizer: Optimizer) -> dict[str, Any]:
    """Kind of an optimizer and shapes of its parameters, one text per group, for `check_state`."""
    kind = next(kind.__name__ for kind in SUPPORTED if isinstance(optimizer, kind))
    groups = [
        "; ".join("lazy" if is_lazy(p) else str(tuple(p.shape)) for p in group["params"])
        for group in optimizer.param_groups
    ]
    return {"kind": kind, "groups": groups}


def check_state(state: Any, like: Iterable[str], *, whole: str = "the state") -> None:
    """Refuses a state that is no dict, or lacks entries that one of this scheduler would have."""
    source = "one from LearnedScheduler.state_dict()"
    if not isinstance(state, Mapping):
        raise TypeError(f"expected {whole} to be {source}, a dict, but got {type(state).__name__}")
    missing = [name for name in like if name not in state]
    if missing:
        found = ", ".join(map(str, list(state)[:8])) or "nothing"
        raise ValueError(
            f"expected {whole} to be {source}, with {', '.join(missing)}, but it has {found}: it "
            "is damaged, or that of something else"
        )


def check_same_job(told: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuses the state of another kind of optimizer, or of other parameters."""
    ours = describe(optimizer)
    if told["kind"] != ours["kind"]:
        raise ValueError(
            f"the state was taken with {told['kind']}, but this optimizer is of the kind "
            f"{ours['kind']}: resume with the optimizer that it was taken with"
        )
    if len(told["groups"]) > len(ours["groups"]):
        raise ValueError(
            f"the state is that of an optimizer with {len(told['groups'])} param groups, "
            f"but this one has {len(ours['groups'])}"
        )
    for i, (then, now) in enumerate(zip(told["groups"], ours["groups"], strict=False)):
        pairs = list(zip_longest(then.split("; "), now.split("; "), fillvalue="none"))
        for k, (was, is_now) in enumerate(pairs):
            if was != is_now and "lazy" not in (was, is_now):
                raise ValueError(
                    f"the state is that of another model: in param group {i}, the shape of "
                    f"parameter {k} was {was}, but is {is_now} here"
                )
