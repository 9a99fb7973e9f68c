"""An ordinary PyTorch job: a small network on scikit-learn's handwritten digits.

Written as its user would write it, with nothing of the batched trainer in it. What sets the
learning rate is attached from outside: a `LearnedScheduler`, a scheduler of torch's, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.inner_models.families.real.digits import digits_splits
from pacesetter.inner_models.task import Batch, SplitName

Control = Callable[[torch.optim.Optimizer], "LearnedScheduler | CosineAnnealingLR | None"]
"""Attaches to an optimizer what sets its learning rate; None leaves it as it is."""


@dataclass(frozen=True)
class Job:
    """One finished run of the plain loop.

    Attributes:
        model: as trained.
        untrained: outer-valid loss before the first update.
        losses: (steps,), training loss of each update.
        lrs: (steps,), learning rate of each update.
        momenta: (steps,), ``betas[0]`` of each update.
        clip_thresholds: (steps,), NaN where nothing was clipped.
    """

    model: nn.Module
    untrained: float
    losses: list[float]
    lrs: list[float]
    momenta: list[float]
    clip_thresholds: list[float]


def train_digits(
    control: Control, *, lr: float, seed: int, steps: int, width: int = 64, batch_size: int = 32
) -> Job:
    """An ordinary training run.

    Args:
        control: attaches what sets the learning rate.
        lr: learning rate that the optimizer is made with.
        seed: of initial weights and batch order, equal for all arms.
        steps: updates.
        width: of the two hidden layers.
        batch_size: rows per update.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )
    untrained = split_loss(model, "outer_valid")
    loader = DataLoader(
        _dataset(),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = control(optimizer)
    job = Job(model, untrained, [], [], [], [])
    group = optimizer.param_groups[0]
    while len(job.losses) < steps:
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            job.lrs.append(group["lr"])
            job.momenta.append(group["betas"][0])
            optimizer.step()
            if isinstance(scheduler, LearnedScheduler):
                job.clip_thresholds.append(scheduler.last_clip_norm)
                scheduler.step(loss)
            else:
                job.clip_thresholds.append(np.nan)
                if scheduler is not None:
                    scheduler.step()
            job.losses.append(loss.item())
            if len(job.losses) == steps:
                break
    return job


@torch.no_grad()
def split_loss(model: nn.Module, split: SplitName) -> float:
    """Mean cross-entropy on a whole split of the digits."""
    inputs, labels = _split(split)
    return float(nn.functional.cross_entropy(model(inputs), labels))


def _split(split: SplitName) -> tuple[Tensor, Tensor]:
    batch: Batch = getattr(digits_splits(), split)
    inputs, labels = batch
    return inputs, labels


@cache
def _dataset() -> TensorDataset:
    return TensorDataset(*_split("train"))
