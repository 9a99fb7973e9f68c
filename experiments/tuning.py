"""Tuning of baselines on one task: a grid of learning rates, chosen by outer-valid loss.

All grid points of all arms that share an optimizer run as siblings of one tensor program. The
seeds are not those of the report, and `test` is not touched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pacesetter.agent.run_folder import write_json
from pacesetter.experiments.baselines import Baseline
from pacesetter.experiments.running import Setting, by_optimizer, run_schedules
from pacesetter.inner_models.task import Task

TUNING_SEEDS = (1_000_003, 1_000_033)
"""Seeds over which a setting's loss is averaged; far from those that reports use."""
LOWEST, HIGHEST = 1e-7, 1e2
"""A grid is not widened beyond these learning rates."""
MAX_WIDENINGS = 3
"""A grid is widened at most so often, by a decade each time."""


@dataclass(frozen=True)
class Tuned:
    """What tuning found for one baseline.

    Attributes:
        lr: the chosen learning rate.
        losses: mean outer-valid loss by learning rate; infinite where a run diverged.
        widened: whether the best of the grid lay on its edge, so that the grid was widened.
        inner_steps: inner steps spent.
    """

    lr: float
    losses: dict[float, float]
    widened: bool
    inner_steps: int

    @property
    def trials(self) -> int:
        """How many learning rates were tried."""
        return len(self.losses)

    @property
    def on_edge(self) -> bool:
        """Whether the choice still lies on the edge of what was tried."""
        return self.lr in (min(self.losses), max(self.losses))


def tune(
    task: Task,
    baselines: Sequence[Baseline],
    *,
    seeds: Sequence[int] = TUNING_SEEDS,
    device: torch.device | str = "cpu",
) -> dict[str, Tuned]:
    """Chooses a learning rate for every baseline on one task.

    Args:
        task: what to tune on.
        baselines: those to tune; each brings its grid.
        seeds: of the runs over which a setting's loss is averaged.
        device: where the runs live.

    Returns:
        What was found, by name of the baseline.
    """
    found: dict[str, dict[float, float]] = {b.name: {} for b in baselines}
    wanted = {b.name: list(b.lrs) for b in baselines}
    for _ in range(1 + MAX_WIDENINGS):
        for group in by_optimizer(baselines):
            settings = [Setting(b, lr) for b in group for lr in wanted[b.name]]
            if not settings:
                continue
            losses = _mean_losses(task, settings, seeds=seeds, device=device)
            for setting, loss in zip(settings, losses, strict=True):
                found[setting.baseline.name][setting.lr] = loss
        wanted = {name: _beyond_edge(losses) for name, losses in found.items()}
        if not any(wanted.values()):
            break
    return {
        b.name: Tuned(
            lr=_best(found[b.name]),
            losses=dict(sorted(found[b.name].items())),
            widened=len(found[b.name]) > len(b.lrs),
            inner_steps=len(found[b.name]) * len(seeds) * task.horizon,
        )
        for b in baselines
    }


def write_tuned(path: Path, found: Mapping[str, Tuned]) -> None:
    """Writes what tuning found, whole or not at all, as JSON; a diverged run's loss is null."""
    write_json(
        path,
        {
            name: {
                "lr": tuned.lr,
                "losses": [
                    [lr, loss if math.isfinite(loss) else None] for lr, loss in tuned.losses.items()
                ],
                "widened": tuned.widened,
                "inner_steps": tuned.inner_steps,
            }
            for name, tuned in found.items()
        },
    )


def read_tuned(path: Path) -> dict[str, Tuned]:
    """Reads what `write_tuned` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Tuned(
            lr=entry["lr"],
            losses={lr: math.inf if loss is None else loss for lr, loss in entry["losses"]},
            widened=entry["widened"],
            inner_steps=entry["inner_steps"],
        )
        for name, entry in found.items()
    }


def _mean_losses(
    task: Task, settings: Sequence[Setting], *, seeds: Sequence[int], device: torch.device | str
) -> list[float]:
    runs = run_schedules(task, settings, seeds=seeds, num_intervals=1, device=device)
    losses = runs.losses("outer_valid").reshape(len(seeds), len(settings))
    # One diverged seed is enough: nobody can use a setting that fails every other time.
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return [float(loss) for loss in finite.mean(axis=0)]


def _best(losses: dict[float, float]) -> float:
    """The learning rate of least loss; of several, and where all diverged, the lowest."""
    return min(losses, key=lambda lr: (losses[lr], lr))


def _beyond_edge(losses: dict[float, float]) -> list[float]:
    """The next decade of a grid whose best lies on an edge; empty where it does not."""
    best, grid = _best(losses), sorted(losses)
    if best not in (grid[0], grid[-1]):
        return []
    factor = 0.1 if best == grid[0] else 10.0
    moved = [float(f"{lr * factor:.6g}") for lr in grid]
    return [lr for lr in moved if not grid[0] <= lr <= grid[-1] and LOWEST <= lr <= HIGHEST]
