"""`LearnedScheduler`: a policy in charge of an ordinary PyTorch optimizer.

It does in a user's loop what the trainer of the environments does with many runs: the same
statistics, taken at the same moments, through the same encoder and codec, so that the policy
meets in a job what it met in meta-training.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.directions import (
    check_supported,
    is_adaptive,
    momentum_scales_lr,
    read_directions,
)
from pacesetter.agent.gradients import (
    finish_update,
    gradients_of,
    scale_gradients,
    skip_unless,
    total_norm,
    with_gradients,
)
from pacesetter.agent.history import Decision, History
from pacesetter.agent.hooks import attach
from pacesetter.agent.hyperparameters import GroupHyperparameters, other_schedulers
from pacesetter.agent.policy import DEFAULT_POLICY, Policy, load_policy
from pacesetter.envs.actions import ActionCodec
from pacesetter.envs.features import FeatureEncoder
from pacesetter.inner_models.guard import lr_cut
from pacesetter.inner_models.signals import TrainingSignals, window_length

STATE_VERSION = 1
_PLANNED = 1024  # learning rates are worked out for so many steps at once


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
        if not isinstance(total_steps, Integral) or isinstance(total_steps, bool):
            raise ValueError(f"Expected positive integer total_steps, but got {total_steps!r}")
        if total_steps < 1:
            raise ValueError(f"Expected positive integer total_steps, but got {total_steps}")
        self.optimizer = optimizer
        self.total_steps = int(total_steps)
        self.policy = policy if isinstance(policy, Policy) else load_policy(policy)
        self.history = History()
        self._detach = attach(optimizer, self)
        self._attached = True
        self._groups = GroupHyperparameters(
            optimizer,
            one_minus_momentum_bounds=self.policy.control.one_minus_momentum_bounds,
            momentum_scales_lr=momentum_scales_lr(optimizer),
        )
        self._codec = self._new_codec()
        self._encoder = FeatureEncoder(1, adaptive=is_adaptive(optimizer))
        self._signals = self._new_signals(optimizer.param_groups[0]["params"][0].device)
        self._step = 0
        self._interval = 0
        self._skipped = 0
        self._warned: set[str] = set()
        self._plan()
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
        value = self._one_number(loss, name="loss")
        if not self._attached:
            return
        if self._step >= self.total_steps:
            self._warn_once(
                f"LearnedScheduler.step() was called more often than total_steps="
                f"{self.total_steps}: the last values hold from here on"
            )
            return
        if self._step == 0 and not self._groups.latest:
            self._warn_once(
                "LearnedScheduler.step() was called before optimizer.step(), or there was no "
                "gradient: call optimizer.step() first, or each loss counts for a wrong update"
            )
        self._signals.record_loss(value)
        self._step += 1
        if self._step < self._codec.ends[self._interval]:
            self._write()
            return
        self._interval += 1
        if self._interval < len(self._codec.ends):
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
        value = float(self._one_number(valid_loss, name="valid_loss"))
        self._encoder.observe_validation(np.array([value]))

    def get_last_lr(self) -> list[float]:
        """Learning rate of each param group for the next update."""
        return [setting.lr for setting in self._groups.current]

    @property
    def last_clip_norm(self) -> float:
        """Clip threshold of the latest update; infinite if there was none. Waits for the device."""
        return float(self._threshold)

    @property
    def skipped_steps(self) -> int:
        """Updates skipped so far for gradients that were not finite. Waits for the device."""
        return self._skipped + int(self._skipped_on_device)

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
            "step": self._step,
            "interval": self._interval,
            "skipped": self.skipped_steps,
            "threshold": self._threshold.clone(),
            "groups": self._groups.state_dict(),
            "codec": self._codec.state_dict(),
            "encoder": self._encoder.state_dict(),
            "signals": self._signals.state_dict(),
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
        self._codec = self._new_codec()
        self._codec.load_state_dict(state_dict["codec"])
        self._encoder.load_state_dict(state_dict["encoder"])
        self._signals.load_state_dict(state_dict["signals"])
        self.history.load_state_dict(state_dict["history"])
        self._step = state_dict["step"]
        self._interval = state_dict["interval"]
        self._skipped = state_dict["skipped"]
        self._skipped_on_device.zero_()
        self._threshold = state_dict["threshold"].to(self._threshold, copy=True)
        self._plan()
        self._write()

    # -- called by the hooks, at every update -------------------------------------------------

    def before_update(self) -> None:
        """Sees to it that the update is done with our hyperparameters."""
        self._write()

    @torch.no_grad()
    def on_gradients(self) -> None:
        """Takes the statistics and clips, in the order in which the environments do."""
        params = with_gradients(self.optimizer)
        if not params:
            return
        grads = gradients_of(params)
        self._move_to(grads[0].device)
        norm = total_norm(grads, device=self._device, dtype=self._dtype)
        scale, self._threshold, finite = self._signals.record_gradient(norm, self._ratio)
        if self._step >= self._window_start:
            self._record_window(norm)
        happens = skip_unless(finite, self.optimizer, params)
        if happens is None:
            self._skipped_on_device += ~finite
        elif not happens:
            self._skipped += 1
        if happens is not False:
            scale_gradients(grads, scale)
        self._groups.mark_update()

    def after_update(self) -> None:
        """Leaves the optimizer as its user knows it."""
        finish_update(self.optimizer)

    def _record_window(self, norm: Tensor) -> None:
        groups = self.optimizer.param_groups
        trained = [p.detach() for g in groups for p in g["params"] if p.requires_grad]
        kind = {"device": self._device, "dtype": self._dtype}
        latest = self._groups.latest
        self._signals.record_window(
            param_sq=total_norm(trained, **kind).square(),
            grad_sq=norm.square(),
            directions=read_directions(self.optimizer, latest, **kind) if latest else None,
        )

    # -- decisions ----------------------------------------------------------------------------

    def _decide(self) -> None:
        stats = self._signals.fetch()
        features = self._encoder.encode(stats, self._codec, interval=self._interval)
        action = self.policy.act(features)
        self._codec.apply(action, lr_cut=lr_cut(stats.nonfinite_share))
        self._plan()
        self._write()
        running, ratio = float(stats.norm_running[0]), float(self._codec.clip_ratio[0])
        self.history.append(
            Decision(
                step=self._step,
                loss=float(stats.loss_mean[0]),
                features=tuple(features[0].tolist()),
                action=tuple(action[0].tolist()),
                lr=self._groups.current[0].lr,
                lr_factor=self._lr_factor(),
                momentum=next(
                    (s.momentum for s in self._groups.current if s.momentum is not None), None
                ),
                clip_threshold=running * ratio if running > 0 else math.inf,
            )
        )

    def _plan(self) -> None:
        """Works out what holds until the next decision."""
        ends = self._codec.ends
        last = len(ends) - 1
        self._ratio = torch.as_tensor(
            self._codec.clip_ratio, dtype=self._dtype, device=self._device
        )
        self._momentum_change = float(
            self._codec.log_one_minus_momentum[0] - np.log1p(-self._groups.momentum_start)
        )
        # Nothing is decided at the horizon, so the last interval needs no window.
        self._window_start: float = math.inf
        if self._interval < last:
            begin = ends[self._interval - 1] if self._interval else 0
            self._window_start = ends[self._interval] - window_length(ends[self._interval] - begin)
        self._factors: list[float] = []
        self._factors_from = 0
