"""What the adapters share: a scheduler on an optimizer that a trainer made and may restore."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.plugin.snapshot import cloned
from pacesetter.envs.decision import CONTROLS


def controls(options: Mapping[str, Any], name: str) -> bool:
    """Whether a scheduler made with these options sets ``"lr"``, ``"momentum"`` or ``"clip"``."""
    return name in options.get("control", CONTROLS) and not options.get("dry_run", False)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside its wrappers, such as the one that Accelerate puts round it."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


_MORE_IS_BETTER = re.compile(
    r"accuracy|f1|auc|auroc|precision|recall|bleu|rouge|ndcg|psnr|ssim|exact_?match|top_?\d"
    r"|(?<![a-z])(acc|r2|m?iou|map|mcc|dice|em|reward)(?![a-z])"
)
_OF_SEVERAL = re.compile(r"eval_.+_loss|val_loss/dataloader_idx_\d+")


class Monitor:
    """Finds the validation loss, or what stands for it, among the metrics of a trainer.

    The usual name stands for the first of several validation sets, too; any other has to be there,
    even where it is not `required`. Without a mode, the name tells whether more is better.
    """

    def __init__(self, name: str, mode: str | None, *, required: bool) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', but got {mode!r}")
        self.mode = mode or "min"
        low = name.lower()
        if mode is None and _MORE_IS_BETTER.search(low) and not re.search("loss|err", low):
            self.mode = "max"
            warnings.warn(
                f"of monitor={name!r}, more is taken to be better: give mode='max' to be rid of "
                "this note, or mode='min' if less is",
                stacklevel=3,
            )
        self._asked, self._usual = name, name in ("eval_loss", "val_loss")
        self._required = required or not self._usual
        self.begin()

    def begin(self) -> None:
        """Forgets an earlier training."""
        self.name, self._found = self._asked, False
        self._others: set[str] = set()

    def observe(self, metrics: Mapping[str, Any], scheduler: LearnedScheduler) -> None:
        """Hands the metric over, if it is there."""
        if self.name not in metrics and self._usual and not self._found:
            self.name = next(filter(_OF_SEVERAL.fullmatch, metrics), self.name)
        if self.name in metrics:
            self._found = True
            scheduler.observe_validation(metrics[self.name], mode=self.mode)
        self._others.update(metrics)

    def check(self) -> None:
        """Raises a ValueError where there were validations, but none had what is required."""
        if self._others and self._required and not self._found:
            found = [n for n in self._others if not n.endswith(("runtime", "_second", "epoch"))]
            raise ValueError(
                f"expected the validation loss {self.name!r}, but validation gave "
                f"{sorted(found)}: have it measured, or name another with monitor="
            )


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A scheduler at work for a trainer."""

    scheduler: LearnedScheduler
    offset: int
    """Updates that the trainer had done before the scheduler's first one."""

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
    rates = [cloned(group["lr"]) for group in optimizer.param_groups]
    if not warmup:
        for group in optimizer.param_groups:
            if "initial_lr" in group:  # the first step of a foreign warm-up has set lr, mostly to 0
                _set_lr(group, group["initial_lr"])
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


def _set_lr(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].copy_(lr) if isinstance(lr, Tensor) else group["lr"].fill_(lr)
    else:
        group["lr"] = float(lr)
