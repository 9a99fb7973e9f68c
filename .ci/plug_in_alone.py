"""The plug-in where only the core is installed: a loop trains, and resumes from its middle.

`release_check.py` runs this script in an environment that holds the wheel and nothing else.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from sys import prefix

import torch
from torch import nn

import pacesetter.agent
from pacesetter.agent import LearnedScheduler

STEPS = 400
UNWANTED = ("gymnasium", "stable_baselines3", "tensorboard", "sklearn", "scipy", "matplotlib")


class TrainingJob:
    """A small network that learns a sine, with the shipped policy on its optimizer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.inputs = 4 * torch.rand(256, 1) - 2
        self.rows = torch.randint(256, (STEPS, 32))
        self.model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.scheduler = LearnedScheduler(self.optimizer, total_steps=STEPS)

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared error of some rows, whose indices have the shape (batch,)."""
        inputs = self.inputs[rows]
        return nn.functional.mse_loss(self.model(inputs), torch.sin(2 * inputs))

    def train(self, first: int, last: int) -> float:
        """Takes the steps from `first` up to `last`; returns the loss on all rows after them."""
        for rows in self.rows[first:last]:
            loss = self.loss(rows)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
            self.optimizer.zero_grad()
        return self.loss(torch.arange(256)).item()


def main() -> None:
    """Checks what is installed, then what it does."""
    warnings.simplefilter("error")
    # torch 2.6 leaves a folder to be removed when the interpreter ends.
    warnings.simplefilter("ignore", ResourceWarning)
    assert not [name for name in UNWANTED if find_spec(name)], "more than the core is installed"
    assert Path(pacesetter.agent.__file__).is_relative_to(prefix), "not the code of the wheel"

    job = TrainingJob()
    before, after = job.train(0, 0), job.train(0, STEPS)
    assert after < before / 4, f"the loss went from {before} to {after} only"
    assert len(job.scheduler.history) == 39, f"{len(job.scheduler.history)} decisions"
    assert any(abs(a) > 0.01 for d in job.scheduler.history for a in d.action), "never acted"

    half, resumed = TrainingJob(), TrainingJob()
    half.train(0, STEPS // 2)
    for name in ("model", "optimizer", "scheduler"):
        getattr(resumed, name).load_state_dict(getattr(half, name).state_dict())
    last = resumed.train(STEPS // 2, STEPS)
    assert abs(last - after) < 1e-6, f"a resumed run ended at {last}, an unbroken one at {after}"
    print(f"  loss {before:.3f} to {after:.4f}, resumed too")


if __name__ == "__main__":
    main()
