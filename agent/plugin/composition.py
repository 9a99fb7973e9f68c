"""How a `LearnedScheduler` gets along with torch's own schedulers on the same optimizer."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

RECIPE = (
    "step() needs the loss of the update just done: step(loss). SequentialLR, ChainedScheduler and "
    "the like cannot drive a LearnedScheduler. For a warm-up of your own before it, step your "
    "warm-up scheduler by itself for N updates and make LearnedScheduler(optimizer, total_steps, "
    "warmup_steps=N)"
)


def warn_of_others(optimizer: Optimizer, groups: Sequence[int], *, stacklevel: int) -> None:
    """Says who else sets what we set.

    Args:
        optimizer: whose param groups.
        groups: numbers of those that somebody else has written to.
        stacklevel: as for `warnings.warn`, from here.
    """
    names = ", ".join(other_schedulers(optimizer)) or "something else"
    warnings.warn(
        f"{names} changed the learning rate or momentum of param groups {list(groups)}, which "
        "LearnedScheduler sets: it overrules such changes. Take the other scheduler away, "
        "or this one with detach()",
        stacklevel=stacklevel,
    )


def other_schedulers(optimizer: Optimizer) -> list[str]:
    """Names of torch's own schedulers that are alive and hold this optimizer. Slow."""
    return sorted(
        type(found).__name__
        for found in gc.get_objects()
        if issubclass(type(found), LRScheduler) and getattr(found, "optimizer", None) is optimizer
    )
