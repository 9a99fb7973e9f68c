"""What users may choose of the plug-in, checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pacesetter.agent.plugin.callbacks import ScheduleCallback
from pacesetter.agent.plugin.checks import count, positive_integer
from pacesetter.envs.decision import CONTROLS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices for one run; see `LearnedScheduler` for their meaning.

    Raises:
        TypeError: the model is no module, or a callback has no ``on_decision``.
        ValueError: a number or a name is out of range.
    """

    model: nn.Module | None = None
    warmup_steps: int = 0
    control: Collection[str] = CONTROLS
    lr_bounds: tuple[float, float] | None = None
    rollback: bool | None = None
    dry_run: bool = False
    patience: int | None = 10
    callbacks: Sequence[ScheduleCallback] = ()
    process_group: Any = None

    def __post_init__(self) -> None:
        if self.model is not None and not isinstance(self.model, nn.Module):
            raise TypeError(
                "model must be the torch.nn.Module whose buffers are to be kept, "
                f"but got {type(self.model).__name__}"
            )
        object.__setattr__(self, "warmup_steps", count(self.warmup_steps, "warmup_steps"))
        names = (self.control,) if isinstance(self.control, str) else tuple(self.control)
        if not names or any(name not in CONTROLS for name in names):
            raise ValueError(f"control must be some of {CONTROLS}, but got {self.control!r}")
        object.__setattr__(self, "control", names)
        if self.lr_bounds is not None:
            object.__setattr__(self, "lr_bounds", _bounds(self.lr_bounds))
        if self.patience is not None:
            positive_integer(self.patience, "patience")
        for callback in self.callbacks:
            if not callable(getattr(callback, "on_decision", None)):
                raise TypeError(
                    "callbacks must have a method on_decision(decision), "
                    f"but got {type(callback).__name__}"
                )

    def check_against(self, total_steps: int) -> None:
        """Refuses a warm-up that leaves nothing to the scheduler.

        Raises:
            ValueError: `warmup_steps` is not below `total_steps`.
        """
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be below total_steps={total_steps}, which counts the warm-up "
                f"too, but got {self.warmup_steps}"
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
