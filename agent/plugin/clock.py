"""Where a run stands on its horizon: which step, which interval, what is due."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

from pacesetter.envs.actions import ActionCodec
from pacesetter.inner_models.watch.signals import window_length

_AHEAD = 1024  # learning rates are worked out for so many steps at once


class Clock:
    """Counts the steps of one run.

    Args:
        codec: knows where intervals end and what the learning rate is. The clock only reads it.

    Attributes:
        step: updates done.
        interval: intervals that are over.
    """

    def __init__(self, codec: ActionCodec) -> None:
        self._codec = codec
        self.step = 0
        self.interval = 0
        self._window_start = math.inf
        self._factors: list[float] = []
        self._first = 0
        self._turn()

    @property
    def over(self) -> bool:
        """Whether the horizon is reached."""
        return self.step >= self._codec.total_steps

    @property
    def in_window(self) -> bool:
        """Whether the next update is one of those in which directions are compared."""
        return self.step >= self._window_start

    def advance(self) -> bool:
        """Counts one step; returns whether a decision is due. There is none at the horizon."""
        self.step += 1
        if self.step < self._codec.ends[self.interval]:
            return False
        self.interval += 1
        self._turn()
        return self.interval < len(self._codec.ends)

    def lr_factor(self) -> float:
        """Learning rate of the next update over its start; beyond the horizon, the last one.

        The codec is asked anew after `advance` has said that a decision is due.
        """
        step = min(self.step, self._codec.total_steps - 1)
        ahead = step - self._first
        if not 0 <= ahead < len(self._factors):
            ends = self._codec.ends
            end = ends[min(self.interval, len(ends) - 1)]
            count = min(end - step, _AHEAD)
            self._factors = self._codec.lr_factors(step, count)[:, 0].tolist()
            self._first, ahead = step, 0
        return self._factors[ahead]

    def realign(self) -> None:
        """Finds its place again after the codec's horizon has moved."""
        self.interval = bisect_right(self._codec.ends, self.step)
        self._turn()

    def _turn(self) -> None:
        """Prepares for the interval that begins."""
        ends, k = self._codec.ends, self.interval
        # Nothing is decided at the horizon, so the last interval needs no window.
        self._window_start = math.inf
        if k < len(ends) - 1:
            self._window_start = ends[k] - window_length(ends[k] - (ends[k - 1] if k else 0))
        self._factors, self._first = [], 0

    def state_dict(self) -> dict[str, Any]:
        """Step and interval."""
        return {"step": self.step, "interval": self.interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.step, self.interval = state["step"], state["interval"]
        self._turn()
