"""From the agent's actions to learning rate, momentum and clip threshold, step by step.

One codec serves the environments (many runs) and the plug-in (one run). Actions are changes in
[-1, 1]; zero means "carry on". The schedule is a residual on a sane one::

    lr(step) = start lr * ramp(step) * clamp(exp(offset) * decay(step / total), bounds)

with a cosine decay to 1 % and, over the first K-th of the run, a linear ramp from 1 %. Late in a
run the learning rate may be held, but not raised above its earlier peak: by then there is nothing
left to recover from, and on a training set that is memorised a rate that keeps rising is
rewarded by nothing until it wrecks the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

ACTION_NAMES = ("log_lr", "log_one_minus_momentum", "log_clip_ratio")
NUM_ACTIONS = len(ACTION_NAMES)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Bounds and step sizes of the control; a policy file carries the ones it was trained with.

    Attributes:
        num_intervals: intervals of a run, K; decisions fall on the K - 1 inner boundaries.
        lr_step: largest change of log lr per decision.
        momentum_step: largest change of log(1 - momentum) per decision.
        clip_step: largest change of log clip ratio per decision.
        lr_bounds: least and greatest learning rate over its start, ramp aside.
        one_minus_momentum_bounds: range of 1 - momentum; widened to hold the user's start.
        clip_ratio_start: clip threshold over the running mean gradient norm, at the start.
        clip_ratio_bounds: its range.
        ramp_start: the first learning rate over its start.
        final_decay: where the decay ends, over its start.
        peak_until: share of the run after which lr stays at or below its peak so far.
        decision_power: spacing of the decisions; 1 spaces them evenly, more sets them denser early.
    """

    num_intervals: int = 40
    lr_step: float = 0.35
    momentum_step: float = 0.15
    clip_step: float = 0.15
    lr_bounds: tuple[float, float] = (1e-4, 1e4)
    one_minus_momentum_bounds: tuple[float, float] = (0.01, 0.7)
    clip_ratio_start: float = 4.0
    clip_ratio_bounds: tuple[float, float] = (0.5, 20.0)
    ramp_start: float = 0.01
    final_decay: float = 0.01
    peak_until: float = 0.4
    decision_power: float = 1.5

    def __post_init__(self) -> None:
        if self.num_intervals < 1:
            raise ValueError(f"num_intervals must be positive, but got {self.num_intervals}")
        if not 1 <= self.decision_power <= 4:
            raise ValueError(f"decision_power must lie in [1, 4], but got {self.decision_power}")
        for name in ("lr_bounds", "one_minus_momentum_bounds", "clip_ratio_bounds"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be positive and ordered, but got ({low}, {high})")
        for name in ("lr_step", "momentum_step", "clip_step"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be zero or positive, but got {value}")
        for name in ("ramp_start", "final_decay", "peak_until"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], but got {value}")
        low, high = self.clip_ratio_bounds
        if not low <= self.clip_ratio_start <= high:
            raise ValueError(
                f"clip_ratio_start must lie in clip_ratio_bounds, but got {self.clip_ratio_start}"
            )
        if self.one_minus_momentum_bounds[1] > 1:
            raise ValueError(
                "one_minus_momentum_bounds must lie in (0, 1], but got "
                f"{self.one_minus_momentum_bounds}"
            )
        low, high = self.lr_bounds
        if not low <= 1 <= high:
            raise ValueError(
                f"lr_bounds are factors of the start and must hold 1, but got {low, high}"
            )


def interval_ends(total_steps: int, num_intervals: int, power: float = 1.0) -> tuple[int, ...]:
    """The inner step at which each interval ends; the last is `total_steps`.

    Interval k (from 1) ends at floor(T (k / K)^power), or at 2 k where that is later, so that every
    interval has two steps; a run of T < 2 K steps has max(1, T // 2) intervals.

    Args:
        total_steps: T.
        num_intervals: K.
        power: 1 for even intervals, more for intervals that are shorter early.

    >>> interval_ends(100, 4)
    (25, 50, 75, 100)
    >>> interval_ends(100, 4, 1.5)
    (12, 35, 64, 100)
    >>> interval_ends(7, 40)
    (2, 4, 7)
    """
    if total_steps < 1:
        raise ValueError(f"total_steps must be a positive integer, but got {total_steps}")
    count = num_intervals if total_steps >= 2 * num_intervals else max(1, total_steps // 2)
    if power == 1:  # in whole numbers, whatever their size
        return tuple(k * total_steps // count for k in range(1, count + 1))
    inner = (int(total_steps * (k / count) ** power) for k in range(1, count))
    return (*(max(2 * k, end) for k, end in enumerate(inner, start=1)), total_steps)


def base_decay(progress: float, final: float) -> float:
    """The cosine that a policy departs from (Loshchilov & Hutter 2017).

    >>> base_decay(0.0, 0.01), round(base_decay(1.0, 0.01), 6)
    (1.0, 0.01)
    """
    progress = min(max(progress, 0.0), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class ActionCodec:
    """Where each run's hyperparameters stand.

    Args:
        config: bounds and step sizes.
        total_steps: inner steps of a run.
        momentum_start: (num_runs,), the user's momentum; a run that starts with none keeps none.
        momentum_scales_lr: whether lr is multiplied by (1 - mu) / (1 - mu_start), as SGD and
            RMSprop need so that momentum is not a second learning rate.
        lr_bounds: narrower bounds of lr over its start than the configuration's, if any.
        ramp: whether lr ramps up at first.

    Attributes:
        ends: the inner step at which each interval ends.
        lr_offset: (num_runs,), log of the learning rate's factor over start and decay.
        log_one_minus_momentum: (num_runs,).
        log_clip_ratio: (num_runs,).
        last_action: (num_runs, 3), the latest action, clipped to [-1, 1]; zeros at first.
        decisions: how many were taken.
    """

    def __init__(
        self,
        config: ControlConfig,
        *,
        total_steps: int,
        momentum_start: ArrayLike,
        momentum_scales_lr: bool,
        lr_bounds: tuple[float, float] | None = None,
        ramp: bool = True,
    ) -> None:
        start = np.atleast_1d(np.asarray(momentum_start, dtype=np.float64))
        self.config = config
        self.total_steps = total_steps
        self.ends = interval_ends(total_steps, config.num_intervals, config.decision_power)
        self._ramp_steps = interval_ends(total_steps, config.num_intervals)[0] if ramp else 0
        low, high = lr_bounds or (0.0, math.inf)
        self._lr_bounds = (max(config.lr_bounds[0], low), min(config.lr_bounds[1], high))
        self.momentum_scales_lr = momentum_scales_lr
        self.has_momentum = start > 0
        self._start = np.log1p(-start)
        low, high = (math.log(b) for b in config.one_minus_momentum_bounds)
        self._momentum_low = np.where(self.has_momentum, np.minimum(self._start, low), self._start)
        self._momentum_high = np.where(
            self.has_momentum, np.maximum(self._start, high), self._start
        )
        self._momentum_start = start
        num_runs = len(start)
        self.lr_offset = np.zeros(num_runs)
        self.log_one_minus_momentum = self._start.copy()
        self.log_clip_ratio = np.full(num_runs, math.log(config.clip_ratio_start))
        self.last_action = np.zeros((num_runs, NUM_ACTIONS))
        self.decisions = 0
        # Logs of factors, decay included: the greatest so far (the start itself is one), and one
        # that the guard lets no run exceed.
        self._log_peak = np.zeros(num_runs)
        self._log_ceiling = np.full(num_runs, np.inf)

    @property
    def num_runs(self) -> int:
        return len(self.lr_offset)

    @property
    def momentum(self) -> FloatArray:
        """(num_runs,), the momentum of each run; exactly the user's own until it is changed."""
        moved = self.log_one_minus_momentum != self._start
        return np.where(moved, -np.expm1(self.log_one_minus_momentum), self._momentum_start)

    @property
    def clip_ratio(self) -> FloatArray:
        """(num_runs,), clip threshold over the running mean of gradient norms."""
        ratio: FloatArray = np.exp(self.log_clip_ratio)
        return ratio

    def apply(
        self,
        actions: ArrayLike,
        *,
        lr_cut: FloatArray | float = 0.0,
        headroom: FloatArray | float = math.inf,
    ) -> None:
        """Takes one decision for every run.

        Args:
            actions: (num_runs, 3), in units of the largest change; clipped to [-1, 1].
            lr_cut: (num_runs,), further change of log lr from the guard.
            headroom: (num_runs,), how far log lr, decay included, may ever again rise above where
                this decision leaves it.

        Raises:
            ValueError: the actions have another shape or are not finite.
        """
        raw = np.asarray(actions, dtype=np.float64)
        if raw.shape != (self.num_runs, NUM_ACTIONS):
            raise ValueError(
                f"actions must have shape ({self.num_runs}, {NUM_ACTIONS}), but got {raw.shape}"
            )
        if not np.isfinite(raw).all():
            raise ValueError("actions must be finite numbers, but some are NaN or infinite")
        action = np.clip(raw, -1.0, 1.0)
        c = self.config
        low, high = (math.log(b) for b in self._lr_bounds)
        offset = np.clip(self.lr_offset + action[:, 0] * c.lr_step + lr_cut, low, high)
        progress = self.ends[min(self.decisions, len(self.ends) - 1)] / self.total_steps
        log_decay = self._log_decay(progress)
        if progress > c.peak_until:
            offset = np.minimum(offset, self._log_peak - log_decay)
        offset = np.minimum(offset, self._log_ceiling - log_decay)
        self._log_ceiling = np.minimum(self._log_ceiling, offset + log_decay + headroom)
        self._log_peak = np.maximum(self._log_peak, offset + log_decay)
        self.lr_offset = offset
        self.decisions += 1
        self.log_one_minus_momentum = np.clip(
            self.log_one_minus_momentum + action[:, 1] * c.momentum_step,
            self._momentum_low,
            self._momentum_high,
        )
        low, high = (math.log(b) for b in c.clip_ratio_bounds)
        self.log_clip_ratio = np.clip(self.log_clip_ratio + action[:, 2] * c.clip_step, low, high)
        self.last_action = action

    def lr_factors(self, first_step: int, num_steps: int) -> FloatArray:
        """Learning rate over its start, for steps counted from 0: shape (num_steps, num_runs)."""
        c = self.config
        steps = range(first_step, first_step + num_steps)
        decay = np.array([base_decay(s / self.total_steps, c.final_decay) for s in steps])
        length = self._ramp_steps
        ramp = np.array(
            [c.ramp_start + (1 - c.ramp_start) * s / length if s < length else 1.0 for s in steps]
        )
        bounded = np.clip(np.exp(self.lr_offset) * decay[:, None], *self._lr_bounds)
        factors: FloatArray = bounded * ramp[:, None]
        if self.momentum_scales_lr:
            factors *= np.exp(self.log_one_minus_momentum - self._start)
        return factors

    def extend(self, total_steps: int, *, step: int) -> None:
        """Moves the horizon to `total_steps`, after `step` inner steps.

        The learning rate of the next step stays what it would have been.
        """
        before = self._log_decay(min(step, self.total_steps - 1) / self.total_steps)
        self.total_steps = total_steps
        self.ends = interval_ends(
            total_steps, self.config.num_intervals, self.config.decision_power
        )
        self.decisions = bisect_right(self.ends, step)
        self.lr_offset = self.lr_offset + before - self._log_decay(step / total_steps)

    def _log_decay(self, progress: float) -> float:
        return math.log(max(base_decay(progress, self.config.final_decay), 1e-300))

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name).tolist() for name in _STATE}
        return {
            **state,
            "decisions": self.decisions,
            "total_steps": self.total_steps,
            "ramp_steps": self._ramp_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, np.asarray(state[name], dtype=np.float64))
        self.decisions = int(state["decisions"])
        self.total_steps = int(state["total_steps"])
        self._ramp_steps = int(state["ramp_steps"])
        self.ends = interval_ends(
            self.total_steps, self.config.num_intervals, self.config.decision_power
        )


_STATE = (
    *("lr_offset", "log_one_minus_momentum", "log_clip_ratio", "last_action"),
    *("_log_peak", "_log_ceiling"),
)
