"""Uses the plug-in where only the core is installed; `release_check.py` runs it there.

A plain PyTorch loop on a generated task, then the same once more, resumed from the middle. It
stops with a message where anything is not as promised.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import pacesetter.agent
from pacesetter.agent import LearnedScheduler

STEPS = 400
UNWANTED = ("gymnasium", "stable_baselines3", "tensorboard", "sklearn", "scipy", "matplotlib")


def demand(condition: bool, message: str) -> None:
    """Stops with a message where a condition does not hold."""
    if not condition:
        sys.exit(f"plug-in alone: {message}")


class TrainingJob:
    """A small network that learns a sine, with the shipped policy on its optimizer."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = 4 * torch.rand(256, 1, generator=generator) - 2
        self.targets = torch.sin(2 * self.inputs)
        self.rows = torch.randint(256, (STEPS, 32), generator=generator)
        self.model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(0.6 * torch.randn(weight.shape, generator=generator))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.scheduler = LearnedScheduler(self.optimizer, total_steps=STEPS)

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared error of some rows, whose indices have the shape (batch,)."""
        return nn.functional.mse_loss(self.model(self.inputs[rows]), self.targets[rows])

    def train(self, first: int, last: int) -> None:
        """The steps from `first` up to `last`."""
        for rows in self.rows[first:last]:
            loss = self.loss(rows)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
            self.optimizer.zero_grad()


def main() -> None:
    """Checks what is installed, then what it does."""
    warnings.simplefilter("error")
    # torch 2.6 leaves a folder to be removed when the interpreter ends.
    warnings.simplefilter("ignore", ResourceWarning)
    there = [name for name in UNWANTED if find_spec(name)]
    demand(not there, f"expected the core only, but {', '.join(there)} can be imported")
    code = Path(pacesetter.agent.__file__)
    inside = code.is_relative_to(sys.prefix)
    demand(inside, f"expected the code of the wheel, below {sys.prefix}, got {code}")

    job, everything = TrainingJob(), torch.arange(256)
    before = job.loss(everything).item()
    job.train(0, STEPS)
    after = job.loss(everything).item()
    demand(after < before / 4, f"expected the loss to fall to a quarter, got {before} to {after}")
    decisions = job.scheduler.history
    demand(len(decisions) == 39, f"expected 39 decisions, got {len(decisions)}")
    moved = any(abs(entry) > 0.01 for decision in decisions for entry in decision.action)
    demand(moved, "the policy never acted")

    half, resumed = TrainingJob(), TrainingJob()
    half.train(0, STEPS // 2)
    for name in ("model", "optimizer", "scheduler"):
        getattr(resumed, name).load_state_dict(getattr(half, name).state_dict())
    resumed.train(STEPS // 2, STEPS)
    last = resumed.loss(everything).item()
    demand(abs(last - after) < 1e-6, f"a resumed run ended at {last}, an unbroken one at {after}")
    print(f"  {len(list(distributions()))} packages; loss {before:.3f} to {after:.4f}")


if __name__ == "__main__":
    main()
