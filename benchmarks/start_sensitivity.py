"""How much the start of the learning rate matters, with the shipped policy and without.

    python benchmarks/start_sensitivity.py

One job, a plain PyTorch loop on scikit-learn's digits (800 steps), from starts over four decades:
outer-valid loss, median and range over five seeds.
"""

from __future__ import annotations

import numpy as np
import torch

from pacesetter.agent import LearnedScheduler
from pacesetter.experiments.demo import split_loss, train_digits

STEPS, SEEDS = 800, 5


def losses(lr: float, *, learned: bool) -> list[float]:
    """Outer-valid loss of each seed."""

    def control(optimizer: torch.optim.Optimizer) -> LearnedScheduler | None:
        return LearnedScheduler(optimizer, STEPS) if learned else None

    jobs = [train_digits(control, lr=lr, seed=seed, steps=STEPS) for seed in range(SEEDS)]
    return [split_loss(job.model, "outer_valid") for job in jobs]


def show(values: list[float]) -> str:
    """Median and range."""
    return f"{np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    print("| start | shipped policy | AdamW constant |\n|---|---|---|")
    for lr in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        row = (show(losses(lr, learned=learned)) for learned in (True, False))
        print(f"| {lr:g} | {' | '.join(row)} |", flush=True)
