"""`LearnedScheduler`: a policy in charge of an ordinary PyTorch optimizer.

It does in a user's loop what the trainer of the environments does with many runs: the same
statistics, taken at the same moments, through the same encoder and codec, so that the policy
meets in a job what it met in meta-training.
"""

from __future__ import annotations

import math
import warnings
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.checks import one_number, positive_integer
from pacesetter.agent.clock import Clock
from pacesetter.agent.directions import check_supported, is_adaptive, momentum_scales_lr
from pacesetter.agent.gradients import finish_update
from pacesetter.agent.history import Decision, History
from pacesetter.agent.hooks import attach
from pacesetter.agent.hyperparameters import GroupHyperparameters, other_schedulers
from pacesetter.agent.monitor import UpdateMonitor
from pacesetter.agent.policy import DEFAULT_POLICY, Policy, load_policy
from pacesetter.envs.actions import ActionCodec
from pacesetter.envs.features import FeatureEncoder
from pacesetter.inner_models.guard import lr_cut

STATE_VERSION = 1


class LearnedScheduler:
    """Sets learning rate, momentum and gradient clipping of an optimizer while it trains.

    Call `step` with the loss after every ``optimizer.step()``, for `total_steps` updates::

        scheduler = LearnedScheduler(optimizer, total_steps=10_000)
        for batch in loader:
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()

    The optimizer's own learning rate is the start that the schedule is relative to. Gradients are
    clipped within ``optimizer.step()``: do not clip them as well. An update whose gradients are
    not finite is skipped, and the learning rate lowered at the next decision. With
    ``maximize=True``, give `step` and `observe_validation` what is maximised.

    Args:
        optimizer: torch's AdamW, Adam, SGD, RMSprop, NAdam, RAdam or a subclass of one.
        total_steps: updates of the whole run.
        policy: ``"default"`` for the shipped policy, a path to another, or a `Policy`.

    Attributes:
        optimizer: the optimizer.
        total_steps: updates of the whole run.
        policy: the policy in use.
        history: every decision so far.

    Raises:
        TypeError: the optimizer is not supported.
        ValueError: `total_steps` is not a positive integer, or the optimizer has a
            `LearnedScheduler` already.
        FileNotFoundError: there is no such policy file.
        PolicyFileError: the policy file cannot be used.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        policy: str | PathLike[str] | Policy = DEFAULT_POLICY,
    ) -> None:
        check_supported(optimizer)
        self.optimizer = optimizer
        self.total_steps = positive_integer(total_steps, "total_steps")
        self.policy = policy if isinstance(policy, Policy) else load_policy(policy)
        self.history = History()
        self._detach = attach(optimizer, self)
        self._attached = True
        self._groups = GroupHyperparameters(
            optimizer,
            one_minus_momentum_bounds=self.policy.control.one_minus_momentum_bounds,
            momentum_scales_lr=momentum_scales_lr(optimizer),
        )
        self._encoder = FeatureEncoder(1, adaptive=is_adaptive(optimizer))
        self._warned: set[str] = set()
        self._monitor = UpdateMonitor(self.policy.control.clip_ratio_start)
        self._start()
        self._write()

    # -- the user's side ----------------------------------------------------------------------

    def step(self, loss: Tensor | float) -> None:
        """Takes in the loss of the update just done, and decides when a decision is due.

        After `total_steps` calls there is one warning, and the last values hold. On a scheduler
        that was taken off with `detach` it does nothing.

        Args:
            loss: one number; a tensor may stay on its device. It need not be finite.

        Raises:
            TypeError: the loss is neither a tensor nor a number.
            ValueError: the loss is a tensor of more than one element.
        """
        value = self._signed(loss, "loss")
        if not self._attached:
            return
        if self._clock.over:
            self._warn_once(
                f"LearnedScheduler.step() was called more often than total_steps="
                f"{self.total_steps}: the last values hold from here on"
            )
            return
        if self._clock.step == 0 and not self._groups.latest:
            self._warn_once(
                "LearnedScheduler.step() was called before optimizer.step(), or there was no "
                "gradient: call optimizer.step() first, or each loss counts for a wrong update"
            )
        self._monitor.record_loss(value)
        if self._clock.advance():
            self._decide()
        else:
            self._write()

    def observe_validation(self, valid_loss: Tensor | float) -> None:
        """Takes in a validation loss, for the next decision; one that is not finite is ignored.

        Args:
            valid_loss: one number, on the scale of the training loss. A tensor on another device
                is fetched at once.

        Raises:
            TypeError: it is neither a tensor nor a number.
            ValueError: it is a tensor of more than one element.
        """
        value = float(self._signed(valid_loss, "valid_loss"))
        self._encoder.observe_validation(np.array([value]))

    def get_last_lr(self) -> list[float]:
        """Learning rate of each param group for the next update."""
        return [setting.lr for setting in self._groups.current]

    @property
    def last_clip_norm(self) -> float:
        """Clip threshold of the latest update; infinite if there was none. Waits for the device."""
        return self._monitor.threshold

    @property
    def skipped_steps(self) -> int:
        """Updates skipped so far for gradients that were not finite. Waits for the device."""
        return self._monitor.skipped

    def detach(self) -> None:
        """Takes the hooks off and leaves the optimizer as it is; another scheduler may attach."""
        self._attached = False
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, at any step: tensors and plain Python types.

        The policy is not in it, only its digest.
        """
        return {
            "version": STATE_VERSION,
            "policy": self.policy.digest,
            "total_steps": self.total_steps,
            "clock": self._clock.state_dict(),
            "groups": self._groups.state_dict(),
            "codec": self._codec.state_dict(),
            "encoder": self._encoder.state_dict(),
            "monitor": self._monitor.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken. The optimizer's own state is the user's to load.

        Raises:
            ValueError: the state is of another policy, another `total_steps`, a newer version of
                pacesetter, or an optimizer with more param groups.
        """
        version = state_dict.get("version")
        if not isinstance(version, int) or version > STATE_VERSION:
            raise ValueError(
                f"expected a state of version {STATE_VERSION} or older, but got {version!r}: "
                "upgrade pacesetter"
            )
        for name, own in (("policy", self.policy.digest), ("total_steps", self.total_steps)):
            if state_dict[name] != own:
                raise ValueError(
                    f"the state was taken with {name}={state_dict[name]!r}, but this scheduler "
                    f"has {own!r}"
                )
        self._groups.load_state_dict(state_dict["groups"])
        self._start()
        self._codec.load_state_dict(state_dict["codec"])
        self._clock.load_state_dict(state_dict["clock"])
        self._encoder.load_state_dict(state_dict["encoder"])
        self._monitor.load_state_dict(state_dict["monitor"])
        self.history.load_state_dict(state_dict["history"])
        self._write()

    # -- called by the hooks, at every update -------------------------------------------------

    def before_update(self) -> None:
        """Sees to it that the update is done with our hyperparameters."""
        self._write()

    def on_gradients(self) -> None:
        """Takes the statistics, clips, and has an update skipped that would break the run."""
        latest = self._groups.latest
        if self._monitor.on_gradients(
            self.optimizer, in_window=self._clock.in_window, latest=latest
        ):
            self._groups.mark_update()

    def after_update(self) -> None:
        """Leaves the optimizer as its user knows it."""
        finish_update(self.optimizer)

    # -- decisions ----------------------------------------------------------------------------

    def _decide(self) -> None:
        stats = self._monitor.fetch()
        features = self._encoder.encode(stats, self._codec, interval=self._clock.interval)
        action = self.policy.act(features)
        self._codec.apply(action, lr_cut=lr_cut(stats.nonfinite_share))
        self._monitor.set_clip_ratio(float(self._codec.clip_ratio[0]))
        self._write()
        running, settings = float(stats.norm_running[0]), self._groups.current
        self.history.append(
            Decision(
                step=self._clock.step,
                loss=float(stats.loss_mean[0]),
                features=tuple(features[0].tolist()),
                action=tuple(action[0].tolist()),
                lr=settings[0].lr,
                lr_factor=self._clock.lr_factor(),
                momentum=next((s.momentum for s in settings if s.momentum is not None), None),
                clip_threshold=running * float(self._codec.clip_ratio[0]) or math.inf,
            )
        )

    def _start(self) -> None:
        """A codec and a clock at the beginning of the run."""
        self._momentum_start = self._groups.momentum_start
        self._codec = ActionCodec(
            self.policy.control,
            total_steps=self.total_steps,
            momentum_start=self._momentum_start,
            momentum_scales_lr=momentum_scales_lr(self.optimizer),
        )
        self._clock = Clock(self._codec)

    def _write(self) -> None:
        """Sets the hyperparameters of the next update, over what anybody else has set."""
        moved = self._codec.log_one_minus_momentum[0] - np.log1p(-self._momentum_start)
        foreign = self._groups.write(self._clock.lr_factor(), float(moved))
        if foreign and "foreign" not in self._warned:
            self._warned.add("foreign")
            names = ", ".join(other_schedulers(self.optimizer)) or "something else"
            warnings.warn(
                f"{names} changed the learning rate or momentum of param groups {foreign}, which "
                "LearnedScheduler sets: it overrules such changes. Take the other scheduler away, "
                "or this one with detach()",
                stacklevel=3,
            )

    def _signed(self, value: Tensor | float, name: str) -> Tensor:
        """A loss as a tensor of shape (1,), wherever it is; turned round if it is maximised."""
        number = one_number(value, name)
        return -number if self.optimizer.param_groups[0].get("maximize") else number

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
