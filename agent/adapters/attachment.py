"""What the adapters share: a scheduler on an optimizer that a trainer made and may restore."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.envs.decision import CONTROLS


def controls(options: Mapping[str, Any], name: str) -> bool:
    """Whether a scheduler made with these options sets ``"lr"``, ``"momentum"`` or ``"clip"``."""
    return name in options.get("control", CONTROLS) and not options.get("dry_run", False)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside its wrappers, such as the one that Accelerate puts round it."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A scheduler at work for a trainer.

    Attributes:
        scheduler: on the trainer's optimizer.
        offset: updates that the trainer had done before the scheduler's first one.
    """

    scheduler: LearnedScheduler
    offset: int

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a checkpoint has to hold after `step` updates of the trainer."""
        return {
            "step": step,
            "offset": self.offset,
            "total_steps": self.scheduler.total_steps,
            "scheduler": self.scheduler.state_dict(),
        }

    def readings(self) -> dict[str, float]:
        """Learning rate, momentum and clip threshold, if there are any. Waits for the device."""
        group = self.scheduler.optimizer.param_groups[0]
        momentum = group["betas"][0] if "betas" in group else group.get("momentum", math.nan)
        values = {
            "pacesetter/lr": float(group["lr"]),
            "pacesetter/momentum": float(momentum),
            "pacesetter/clip_threshold": self.scheduler.last_clip_norm,
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}


def attach(
    optimizer: Optimizer,
    total_steps: int,
    *,
    model: nn.Module,
    options: Mapping[str, Any],
    step: int,
    saved: dict[str, Any] | None,
) -> Attachment:
    """Puts a scheduler onto a trainer's optimizer, at the beginning or where it was saved.

    Args:
        optimizer: unwrapped, and already restored if the trainer resumes.
        total_steps: updates of the whole run.
        model: its buffers join the scheduler's snapshots.
        options: keyword arguments of `LearnedScheduler`.
        step: updates that the trainer has done.
        saved: what `Attachment.state_dict` returned, if the trainer resumes.

    Raises:
        TypeError: the optimizer is not supported.
        ValueError: the optimizer has a scheduler already, no updates are left, or the state is
            that of another job.
    """
    if saved is not None and saved["step"] != step:
        saved = None  # handed on, unread, by a stretch of the run that went without a scheduler
    if saved is None and step:
        warnings.warn(
            f"the run goes on at update {step}, but its checkpoint holds no state of "
            "LearnedScheduler for it: a new schedule begins, over the updates that remain",
            stacklevel=4,
        )
    offset = step if saved is None else int(saved["offset"])
    total = total_steps - offset
    if total < 1:
        raise ValueError(
            f"expected more than {offset} updates in total, since so many are done, but got "
            f"{total_steps}: raise the trainer's max_steps or epochs"
        )
    warmup = max(0, options.get("warmup_steps", 0) - offset)
    rates = [_copied(group["lr"]) for group in optimizer.param_groups]
    if not warmup:
        _restore_starts(optimizer)
    first_total = total if saved is None else saved["total_steps"]
    settings: dict[str, Any] = {"model": model, **options, "warmup_steps": warmup}
    scheduler = LearnedScheduler(optimizer, first_total, **settings)
    if saved is not None:
        scheduler.load_state_dict(saved["scheduler"])
        if first_total != total:
            scheduler.extend(total)
    if not controls(options, "lr"):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            _set_lr(group, rate)
    return Attachment(scheduler=scheduler, offset=offset)


def _restore_starts(optimizer: Optimizer) -> None:
    """Undoes what the first step of a foreign scheduler, mostly a warm-up from 0, did to lr."""
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            _set_lr(group, group["initial_lr"])


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _set_lr(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].copy_(lr) if isinstance(lr, Tensor) else group["lr"].fill_(lr)
    else:
        group["lr"] = float(lr)
