"""One run under control: all that a scheduler holds of it, and what happens at every update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.plugin.clock import Clock
from pacesetter.agent.plugin.directions import is_adaptive, momentum_scales_lr
from pacesetter.agent.plugin.distributed import Group
from pacesetter.agent.plugin.history import Decision, Intervention
from pacesetter.agent.plugin.optimizer_state import GroupHyperparameters, Setting
from pacesetter.agent.plugin.options import Options
from pacesetter.agent.plugin.pilot import Pilot
from pacesetter.agent.plugin.recorded_schedule import RecordedSchedule
from pacesetter.agent.plugin.snapshot import KEPT_BY_DEFAULT, JobSnapshot, snapshot_bytes
from pacesetter.agent.plugin.stopping import EarlyStopping
from pacesetter.agent.plugin.updates import UpdateMonitor
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ActionCodec
from pacesetter.envs.decision import DecisionCore
from pacesetter.envs.features import FloatArray


class ControlledRun:
    """Statistics, decisions and hyperparameters of one run; says nothing to anybody.

    Args:
        optimizer: the user's.
        total_steps: updates of the whole run, warm-up included.
        policy: what decides.
        options: the user's choices.

    Attributes:
        total_steps: updates of the whole run.
        steps: updates done.
        warmup_left: updates that still belong to the user's own warm-up.
        warming: whether the run is still the user's; it is ours from the update after the warm-up.
        groups: hyperparameters of the param groups.
        clock: where the run stands.
        pilot: what decides.
        monitor: statistics, clipping and skipping.
        snapshot: the last good state; None where none is kept.
        stopping: counts intervals without a better validation loss.
        should_stop: what that said at the latest decision, on all ranks alike.
        recorded: the schedule, update by update.
        warmup_lrs: learning rates of the warm-up, group by group, until it is over.

    Raises:
        ValueError: a param group starts outside the bounds of the learning rate.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, policy: Policy, options: Options
    ) -> None:
        self._optimizer = optimizer
        self._policy = policy
        self._options = options
        self._ranks = Group(options.process_group)
        self.total_steps = total_steps
        self.steps = 0
        self.warmup_left = options.warmup_steps
        self.warming = self.warmup_left > 0
        self.monitor = UpdateMonitor(math.inf, dry_run=options.dry_run)
        self.stopping = EarlyStopping(options.patience)
        self.should_stop = False
        self.recorded = RecordedSchedule()
        self.warmup_lrs: list[list[float]] = []
        self._valid_loss: float | None = None
        self._threshold = math.inf
        self._foreign: set[int] = set()
        size = snapshot_bytes(optimizer, options.model)
        wanted = size < KEPT_BY_DEFAULT if options.rollback is None else options.rollback
        wanted = wanted and not options.dry_run
        self.rollback_bytes = size if wanted else 0
        self.snapshot = JobSnapshot(optimizer, options.model) if wanted else None
        self.start()

    def start(self) -> None:
        """Takes what the param groups hold as the start of the schedule."""
        self.groups = GroupHyperparameters(
            self._optimizer,
            one_minus_momentum_bounds=self._policy.control.one_minus_momentum_bounds,
            momentum_scales_lr=momentum_scales_lr(self._optimizer),
            control=self._options.control,
            lr_bounds=self._lr_bounds,
        )
        self._start_pilot()
        if not self.warming:
            self.monitor.set_clip_ratio(self._clip_ratio())

    @property
    def _lr_bounds(self) -> tuple[float, float] | None:
        """A warm-up may begin below the bounds."""
        return None if self.warming else self._options.lr_bounds

    def _start_pilot(self) -> None:
        """A pilot and a clock at the beginning of the run; `groups` say where that was."""
        bounds, start_lr = self._options.lr_bounds, self.groups.lr_start
        factors = (bounds[0] / start_lr, bounds[1] / start_lr) if bounds and start_lr else None
        self._momentum_start = self.groups.momentum_start
        codec = ActionCodec(
            self._policy.control,
            total_steps=self.total_steps - self._options.warmup_steps,
            momentum_start=self._momentum_start,
            momentum_scales_lr=momentum_scales_lr(self._optimizer),
            lr_bounds=factors,
            ramp=not self._options.warmup_steps,
        )
        control = self._options.control
        core = DecisionCore(codec, adaptive=is_adaptive(self._optimizer), control=control)
        self.pilot = Pilot(
            self._policy,
            core,
            sets_lr="lr" in control,
            can_roll_back=self.snapshot is not None,
        )
        self.clock = Clock(self.pilot.core.codec)

    @property
    def over(self) -> bool:
        """Whether the horizon is reached."""
        return self.steps >= self.total_steps

    @property
    def _sign(self) -> float:
        """What is maximised is turned round: within, less is better."""
        return -1.0 if self._optimizer.param_groups[0].get("maximize") else 1.0

    @property
    def settings(self) -> list[Setting]:
        """Hyperparameters of the next update, group by group; proposed ones, in a dry run."""
        if self.warming:
            return self.groups.held()
        if self._options.dry_run:
            return self.groups.proposed(self.clock.lr_factor(), self._momentum_change())
        return self.groups.current if "lr" in self._options.control else self.groups.held()

    def _clip_ratio(self) -> float:
        return (
            float(self.pilot.core.codec.clip_ratio[0])
            if "clip" in self._options.control
            else math.inf
        )

    # -- at every update ----------------------------------------------------------------------

    def before_update(self) -> None:
        """Sees to it that the update is done with our hyperparameters, and can be undone."""
        if self.snapshot is not None and not self.snapshot.taken:
            self.snapshot.keep()
        if self.warming and not self.warmup_left:
            self._take_over()
        self.write()

    def write(self) -> None:
        """Sets the hyperparameters of the next update."""
        if not self.warming and not self._options.dry_run:
            self._foreign.update(self.groups.write(self.clock.lr_factor(), self._momentum_change()))

    def take_foreign(self) -> list[int]:
        """Numbers of the groups that somebody else has written to since the last call."""
        found, self._foreign = sorted(self._foreign), set()
        return found

    def on_gradients(self) -> None:
        """Takes the statistics; clips, and skips what would break the run."""
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
        self._record()
        if self.clock.advance():
            return self._decide()
        self.write()
        return None

    def _record(self) -> None:
        latest = self.groups.latest or self.settings
        momentum = next((s.momentum for s in latest if s.momentum is not None), None)
        self.recorded.append(
            self._factor([s.lr for s in latest]),
            momentum=momentum,
            clip_threshold=self._threshold,
        )

    def _factor(self, lrs: Sequence[float]) -> float:
        """Learning rate over its start, given that of every group."""
        start = self.groups.lr_start
        return lrs[self.groups.lead] / start if start else 0.0

    def _take_over(self) -> None:
        """The warm-up is over: what it led to is the start."""
        self.warming = False
        # What the warm-up did to the statistics is no measure of what we do.
        self.monitor.fetch(reduce=self._ranks.reduce)
        latest = self.groups.latest
        self.start()
        self.groups.latest = latest
        for lrs in self.warmup_lrs:
            self.recorded.append(self._factor(lrs), momentum=None)
        self.warmup_lrs = []

    # -- decisions ----------------------------------------------------------------------------

    def observe_validation(self, valid_loss: float) -> None:
        """Takes in a validation loss, for the next decision."""
        self.pilot.core.observe_validation(np.array([self._sign * valid_loss]))
        self.stopping.observe(self._sign * valid_loss)
        self._valid_loss = valid_loss

    def _decide(self) -> Decision:
        stats = self.monitor.fetch(reduce=self._ranks.reduce)
        self.stopping.interval_over()
        features, action, interventions = self.pilot.decide(
            stats, step=self.steps, broadcast=self._broadcast
        )
        verdict = self.pilot.core.verdict
        if self.snapshot is not None and verdict is not None:
            if verdict.roll_back[0]:
                self.snapshot.restore()
            elif verdict.good[0]:
                self.snapshot.keep()
            elif verdict.alarm[0]:
                self.snapshot.discard_candidate()
        self.monitor.set_clip_ratio(self._clip_ratio())
        self.write()
        settings, valid_loss = self.settings, self._valid_loss
        self._valid_loss = None
        running, ratio = float(stats.norm_running[0]), self._clip_ratio()
        self._threshold = running * ratio if running else math.inf
        return Decision(
            step=self.steps,
            loss=self._sign * float(stats.loss_mean[0]),
            features=tuple(features.tolist()),
            action=tuple(action.tolist()),
            lr=settings[0].lr,
            lr_factor=self.clock.lr_factor(),
            momentum=next((s.momentum for s in settings if s.momentum is not None), None),
            clip_threshold=self._threshold,
            valid_loss=valid_loss,
            interventions=interventions,
        )

    def _broadcast(self, array: FloatArray) -> FloatArray:
        """The array of the first rank, on every rank; whether to stop goes along."""
        told = self._ranks.broadcast(np.append(array, float(self.stopping.should_stop)))
        self.should_stop = bool(told[-1])
        return told[:-1].reshape(array.shape)

    def finish(self) -> list[Intervention]:
        """Looks at the last interval, after which there is no decision; returns what was done."""
        stats = self.monitor.fetch(reduce=self._ranks.reduce)
        notes = self.pilot.judge_end(stats, step=self.steps, broadcast=self._broadcast)
        if notes and self.snapshot is not None:
            self.snapshot.restore()
        return notes

    def extend(self, total_steps: int) -> None:
        """Moves the horizon to `total_steps`, which lies beyond `steps`."""
        self.total_steps = total_steps
        if self.warming:
            self.start()
            return
        own = total_steps - self._options.warmup_steps
        self.pilot.core.codec.extend(own, step=self.clock.step)
        self.clock.realign()
        self.write()

    def _momentum_change(self) -> float:
        moved = self.pilot.core.codec.log_one_minus_momentum[0] - np.log1p(-self._momentum_start)
        return float(moved)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, but the policy and the history."""
        return {
            "total_steps": self.total_steps,
            "steps": self.steps,
            "warmup_left": self.warmup_left,
            "warming": self.warming,
            "warmup_lrs": list(self.warmup_lrs),
            "clock": self.clock.state_dict(),
            "groups": self.groups.state_dict(),
            "pilot": self.pilot.state_dict(),
            "monitor": self.monitor.state_dict(),
            "stopping": self.stopping.state_dict(),
            "should_stop": self.should_stop,
            "valid_loss": self._valid_loss,
            "threshold": self._threshold,
            "recorded": self.recorded.state_dict(),
            "snapshot": self.snapshot.state_dict() if self.snapshot is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: the optimizer has fewer param groups than there were.
        """
        self.groups.load_state_dict(state["groups"])  # first: it may refuse
        self.total_steps, self.steps = state["total_steps"], state["steps"]
        self.warmup_left, self.warming = state["warmup_left"], state["warming"]
        self.warmup_lrs = list(state["warmup_lrs"])
        self.groups.lr_bounds = self._lr_bounds
        self._start_pilot()
        self.pilot.load_state_dict(state["pilot"])
        self.clock.load_state_dict(state["clock"])
        self.monitor.load_state_dict(state["monitor"])
        self.stopping.load_state_dict(state["stopping"])
        self.should_stop = state["should_stop"]
        self._valid_loss = state["valid_loss"]
        self._threshold = state["threshold"]
        self.recorded.load_state_dict(state["recorded"])
        if self.snapshot is not None and state["snapshot"] is not None:
            self.snapshot.load_state_dict(state["snapshot"])
        self.write()
