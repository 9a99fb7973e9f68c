"""One run under control: statistics, decisions and hyperparameters, update by update."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.plugin.decider import Decider, EarlyStopping
from pacesetter.agent.plugin.directions import is_adaptive
from pacesetter.agent.plugin.distributed import Group
from pacesetter.agent.plugin.history import Decision, Intervention, RecordedSchedule
from pacesetter.agent.plugin.optimizer_state import (
    GroupHyperparameters,
    Setting,
    momentum_scales_lr,
)
from pacesetter.agent.plugin.options import Options
from pacesetter.agent.plugin.snapshot import KEPT_BY_DEFAULT, JobSnapshot, snapshot_bytes
from pacesetter.agent.plugin.updates import UpdateMonitor
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ActionCodec, FloatArray
from pacesetter.envs.decision import DecisionCore
from pacesetter.inner_models.watch.guard import DivergenceGuard
from pacesetter.inner_models.watch.signals import window_length

_AHEAD = 1024  # learning rates are worked out for so many steps at once


class ControlledRun:
    """All that a scheduler holds of one run; it neither warns nor logs.

    The run is still the user's while it is `warming`, and ours from the update after that.
    `should_stop` is what early stopping said at the latest decision, on all ranks alike.
    """

    def __init__(self, optimizer: Optimizer, policy: Policy, options: Options) -> None:
        self._optimizer, self._policy, self._options = optimizer, policy, options
        self._ranks = Group(options.process_group)
        self.total_steps = options.total_steps
        self.steps = 0
        self.warmup_left = options.warmup_steps
        self.warming = self.warmup_left > 0
        self.monitor = UpdateMonitor(math.inf, dry_run=options.dry_run)
        self.stopping = EarlyStopping(options.patience)
        self.should_stop = False
        self.warmup_lrs: list[list[float]] = []
        self._recorded = RecordedSchedule()
        self._unrecorded: list[tuple[float, float | None]] = []
        self.valid_loss: float | None = None
        self._foreign: set[int] = set()
        self._read_groups()
        codec = self._codec()
        guard = DivergenceGuard(1, mode="job" if options.guard else "off")
        core = DecisionCore(
            codec, adaptive=is_adaptive(optimizer), control=options.control, guard=guard
        )
        wanted = options.guard and options.rollback is not False and not options.dry_run
        snapshot = JobSnapshot(optimizer, options.model) if wanted else None
        self.decider = Decider(policy, core, sets_lr="lr" in options.control, snapshot=snapshot)
        self._forgo_large_snapshot()
        self._start(codec)

    @property
    def snapshot(self) -> JobSnapshot | None:
        return self.decider.snapshot

    @property
    def rollback_bytes(self) -> int:
        return snapshot_bytes(self._optimizer, self._options.model) if self.snapshot else 0

    def _forgo_large_snapshot(self) -> None:
        if self._options.rollback is None and self.rollback_bytes >= KEPT_BY_DEFAULT:
            self.decider.snapshot = None

    def _read_groups(self) -> None:
        self.groups = GroupHyperparameters(
            self._optimizer,
            one_minus_momentum_bounds=self._policy.control.one_minus_momentum_bounds,
            control=self._options.control,
            lr_bounds=self._lr_bounds,
        )

    @property
    def _lr_bounds(self) -> tuple[float, float] | None:
        # A warm-up may begin below the bounds.
        return None if self.warming else self._options.lr_bounds

    def _codec(self) -> ActionCodec:
        """At the beginning of the run; `groups` say where that was."""
        bounds, start_lr = self._options.lr_bounds, self.groups.lr_start
        factors = (bounds[0] / start_lr, bounds[1] / start_lr) if bounds and start_lr else None
        self._momentum_start = self.groups.momentum_start
        return ActionCodec(
            self._policy.control,
            total_steps=self.total_steps - self._options.warmup_steps,
            momentum_start=self._momentum_start,
            momentum_scales_lr=momentum_scales_lr(self._optimizer),
            lr_bounds=factors,
            ramp=not self._options.warmup_steps,
        )

    def _start(self, codec: ActionCodec) -> None:
        """Begins the schedule; validation losses seen before it stay known."""
        self.decider.core.codec = codec
        self.clock = Clock(codec)
        if not self.warming:
            self.monitor.set_clip_ratio(self._clip_ratio())

    @property
    def _sign(self) -> float:
        # What is maximised is negated: within, less is better.
        return -1.0 if self._optimizer.param_groups[0].get("maximize") else 1.0

    @property
    def settings(self) -> list[Setting]:
        """Hyperparameters of the next update, group by group; proposed ones, in a dry run."""
        if self.warming:
            return self.groups.held()
        if self._options.dry_run:
            return self.groups.proposed(self.clock.lr_factor(), self._momentum_change())
        return self.groups.written if "lr" in self._options.control else self.groups.held()

    def _clip_ratio(self) -> float:
        if "clip" not in self._options.control:
            return math.inf
        return float(self.decider.core.codec.clip_ratio[0])

    def before_update(self) -> None:
        """Sees to it that the update is done with our hyperparameters, and can be undone."""
        if self.snapshot is not None and not self.snapshot.taken:
            self._forgo_large_snapshot()  # lazy parameters have a size by now
            if self.snapshot is not None:
                self.snapshot.keep()
        if self.warming and not self.warmup_left:
            self._take_over()
        self.write()

    def write(self) -> None:
        if not self.warming and not self._options.dry_run:
            self._foreign.update(self.groups.write(self.clock.lr_factor(), self._momentum_change()))

    def take_foreign(self) -> list[int]:
        found, self._foreign = sorted(self._foreign), set()
        return found

    def on_gradients(self) -> None:
        if self.monitor.on_gradients(
            self._optimizer,
            in_window=not self.warming and self.clock.in_window,
            latest=self.groups.latest,
        ):
            self.groups.mark_update()

    def close_step(self, loss: Tensor) -> Decision | None:
        """Takes in the loss of an update, shape (1,); returns the decision, if one was due."""
        self.monitor.record_loss(self._sign * loss)
        self.steps += 1
        if self.warming:
            latest = self.groups.latest or self.groups.held()
            self.warmup_lrs.append([s.lr for s in latest])
            self.warmup_left -= 1
            return None
        latest = self.groups.latest or self.settings
        self._unrecorded.append((self._factor([s.lr for s in latest]), _momentum(latest)))
        if self.clock.advance():
            return self._decide()
        self.write()
        return None

    def record(self) -> RecordedSchedule:
        """Brings the schedule so far up to date, and returns it. Waits for the device."""
        if self._unrecorded:
            thresholds = self.monitor.take_thresholds()
            for (factor, momentum), threshold in zip(self._unrecorded, thresholds, strict=True):
                self._recorded.append(factor, momentum=momentum, clip_threshold=threshold)
            self._unrecorded = []
        return self._recorded

    def _factor(self, lrs: Sequence[float]) -> float:
        start = self.groups.lr_start
        return lrs[self.groups.lead] / start if start else 0.0

    def _take_over(self) -> None:
        """The warm-up is over: what it led to is the start."""
        self.warming = False
        # What the warm-up did to the statistics is no measure of what we do.
        self.monitor.fetch(reduce=self._ranks.reduce)
        self.monitor.take_thresholds()
        latest = self.groups.latest
        self._read_groups()
        self._start(self._codec())
        self.groups.latest = latest
        for lrs in self.warmup_lrs:
            self._recorded.append(self._factor(lrs), momentum=None)
        self.warmup_lrs = []

    def observe_validation(self, valid_loss: float, *, mode: str) -> None:
        value = (-1.0 if mode == "max" else self._sign) * valid_loss
        self.decider.core.observe_validation(np.array([value]))
        self.stopping.observe(value)
        self.valid_loss = valid_loss

    def _decide(self) -> Decision:
        stats = self.monitor.fetch(reduce=self._ranks.reduce)
        self.stopping.interval_over()
        features, action, interventions = self.decider.decide(
            stats, step=self.steps, broadcast=self._broadcast
        )
        verdict = self.decider.core.verdict
        if self.snapshot is not None:
            if verdict.roll_back[0]:
                if self.decider.can_roll_back:
                    self.snapshot.restore()
            elif verdict.good[0]:
                self.snapshot.keep()
            elif verdict.alarm[0]:
                self.snapshot.discard_candidate()
        self.monitor.set_clip_ratio(self._clip_ratio())
        self.write()
        self.record()
        settings, valid_loss = self.settings, self.valid_loss
        self.valid_loss = None
        running = float(stats.norm_running[0])
        return Decision(
            step=self.steps,
            loss=self._sign * float(stats.loss_mean[0]),
            features=tuple(features.tolist()),
            action=tuple(action.tolist()),
            lr=settings[0].lr,
            lr_factor=self.clock.lr_factor(),
            momentum=_momentum(settings),
            clip_threshold=running * self._clip_ratio() if running else math.inf,
            valid_loss=valid_loss,
            interventions=interventions,
        )

    def _broadcast(self, array: FloatArray) -> FloatArray:
        # Whether to stop goes along: one broadcast per decision.
        told = self._ranks.broadcast(np.append(array, float(self.stopping.should_stop)))
        self.should_stop = bool(told[-1])
        return told[:-1].reshape(array.shape)

    def finish(self) -> list[Intervention]:
        stats = self.monitor.fetch(reduce=self._ranks.reduce)
        notes = self.decider.judge_end(stats, step=self.steps, broadcast=self._broadcast)
        if notes and self.snapshot is not None:
            self.snapshot.restore()
        return notes

    def restore_starts(self) -> None:
        if not self.warming and not self._options.dry_run:
            self.groups.restore_starts()

    def extend(self, total_steps: int) -> None:
        self.total_steps = total_steps
        if self.warming:
            self._start(self._codec())
            return
        own = total_steps - self._options.warmup_steps
        self.decider.core.codec.extend(own, step=self.clock.step)
        self.clock.realign()
        self.write()

    def _momentum_change(self) -> float:
        start = np.log1p(-self._momentum_start)
        return float(self.decider.core.codec.log_one_minus_momentum[0] - start)

    def state_dict(self, *, with_snapshot: bool = True) -> dict[str, Any]:
        snapshot = self.snapshot if with_snapshot else None
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: getattr(self, name).state_dict() for name in _PARTS},
            "warmup_lrs": list(self.warmup_lrs),
            "recorded": self.record().state_dict(),
            "snapshot": snapshot.state_dict() if snapshot is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.groups.load_state_dict(state["groups"])  # first: it may refuse
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.groups.lr_bounds = self._lr_bounds
        self._start(self._codec())
        for name in _PARTS[1:]:
            getattr(self, name).load_state_dict(state[name])
        self.warmup_lrs = list(state["warmup_lrs"])
        self._recorded.load_state_dict(state["recorded"])
        self._unrecorded = []
        if self.snapshot is not None and state["snapshot"] is not None:
            self.snapshot.load_state_dict(state["snapshot"])
        self.write()


_PLAIN = ("total_steps", "steps", "warmup_left", "warming", "should_stop", "valid_loss")
_PARTS = ("groups", "decider", "clock", "monitor", "stopping")


def _momentum(settings: Sequence[Setting]) -> float | None:
    return next((s.momentum for s in settings if s.momentum is not None), None)


class Clock:
    """Counts the steps of one run, whose codec is only read."""

    def __init__(self, codec: ActionCodec) -> None:
        self._codec = codec
        self.step = 0
        self.interval = 0
        self._factors: list[float] = []
        self._first = 0
        self._turn()

    @property
    def in_window(self) -> bool:
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
        self.interval = bisect_right(self._codec.ends, self.step)
        self._turn()

    def _turn(self) -> None:
        ends, k = self._codec.ends, self.interval
        # Nothing is decided at the horizon, so the last interval needs no window.
        self._window_start = math.inf
        if k < len(ends) - 1:
            self._window_start = ends[k] - window_length(ends[k] - (ends[k - 1] if k else 0))
        self._factors, self._first = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "interval": self.interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.interval = state["step"], state["interval"]
        self._turn()
