"""Population-based training: runs that train together, copy the better ones and vary them.

Jaderberg et al., "Population Based Training of Neural Networks", 2017, arXiv:1711.09846: truncation
selection, and hyperparameters perturbed by a factor of 0.8 or 1.2. It costs as many inner steps as
a search with the same number of trials, re-run on the seed at hand: that is what it is paired with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.envs.actions import FloatArray, interval_ends
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.schedules import number
from pacesetter.experiments.rivals.space import Dimension
from pacesetter.experiments.runs.batched import (
    FinishedRuns,
    RunKey,
    RunOptions,
    check_points,
    segments,
    start_trainer,
)
from pacesetter.experiments.runs.records import RunRecord
from pacesetter.inner_models.task import Task

TRUNCATED = 0.2
"""Share of the worst members, which copy one of as many best."""
PERTURBED = (0.8, 1.2)
"""Factors of a copied hyperparameter."""

Table = dict[str, FloatArray]
"""Hyperparameters by name, (num_runs,) each."""


def population_size(trials: int, *, tuning_seeds: int) -> int:
    """Members that cost what a search costs: every trial on every tuning seed, and the re-run.

    >>> population_size(20, tuning_seeds=2), population_size(1, tuning_seeds=2)
    (41, 1)
    """
    return 1 if trials == 1 else trials * tuning_seeds + 1


def run_population(
    task: Task, baseline: Baseline, *, members: int, seeds: Sequence[int], options: RunOptions
) -> list[RunRecord]:
    """Trains a population per seed; its record is the member of least outer-valid loss.

    Members share initial weights and batch order, as all runs of a seed do. The first begins with
    the default setting, the others with a random one; whom to copy is decided by inner_valid. A
    single member stays as it is.

    Returns:
        One record per seed. Its curves are the line of ancestors of the chosen member.
    """
    generators = [np.random.default_rng([seed, members]) for seed in seeds]
    space = baseline.space
    starts = [[space.default, *(space.sample(g) for _ in range(members - 1))] for g in generators]
    configured = [Configured(baseline, space.default)] * members
    trainer = start_trainer(task, configured, seeds=seeds, device=options.device)
    hyper = [baseline.hyperparameters(s, task) for group in starts for s in group]
    table: Table = {
        name: np.array([number(h, name, 0.0) for h in hyper])
        for name in ("lr", "momentum", "weight_decay")
    }
    factors = np.stack([baseline.factors(task.horizon, h) for h in hyper], axis=1)
    first_lr = table["lr"].copy()
    held = trainer.optimizer.weight_decay
    assert isinstance(held, torch.Tensor)
    steps = interval_ends(task.horizon, options.num_intervals)
    runs = FinishedRuns(trainer, trainer.evaluate("outer_valid"), steps)
    losses: list[FloatArray] = []
    used: list[FloatArray] = []
    bounds = {n: d for n, d in space.dimensions.items() if isinstance(d, Dimension)}
    for start, end in segments(task.horizon, steps, checked=members > 1):
        with runs.watch:
            decay = torch.as_tensor(table["weight_decay"])[:, None]
            held.copy_(decay)  # in place, so that CUDA graphs see it
            used.append(table["lr"] * factors[start:end])
            losses.append(trainer.run(used[-1], momentum=table["momentum"]).losses)
        if end in steps:
            runs.end_interval(losses, used, table["momentum"])
        if members > 1 and end in check_points(task.horizon):
            with runs.watch:
                valid = trainer.evaluate("inner_valid").reshape(len(seeds), members)
                parts = [i * members + exploit(valid[i], g) for i, g in enumerate(generators)]
                sources = np.concatenate(parts)
                trainer.copy_runs(sources)
                moved = sources != np.arange(trainer.num_runs)
                table = {name: values[sources] for name, values in table.items()}
                for i, generator in enumerate(generators):
                    rows = np.flatnonzero(moved[i * members : (i + 1) * members]) + i * members
                    explore(table, rows, bounds, generator)
                first_lr = first_lr[sources]
                for kept in (runs.curve, runs.lrs, runs.momenta, losses, used):
                    kept[:] = [values[..., sources] for values in kept]
                runs.valid_curve = {s: v[sources] for s, v in runs.valid_curve.items()}
    runs.look(final=True)
    final = runs.losses("outer_valid").reshape(len(seeds), members)
    best = np.where(np.isfinite(final), final, np.inf).argmin(axis=1)
    chosen = [i * members + int(member) for i, member in enumerate(best)]
    keys: list[RunKey] = [
        (baseline.name, dict(space.default), seed, float(first_lr[row]))
        for seed, row in zip(seeds, chosen, strict=True)
    ]
    found = runs.records(task, keys, evaluate=options.evaluate, rows=chosen)
    spent = members * task.horizon
    return [replace(r, inner_steps=spent, wall_seconds=r.wall_seconds * members) for r in found]


def exploit(losses: FloatArray, generator: np.random.Generator) -> NDArray[np.int64]:
    """Whose state each member goes on with, (members,); a loss that is not finite is the worst."""
    order = np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")
    count = max(1, int(TRUNCATED * len(losses)))
    sources = np.arange(len(losses))
    sources[order[-count:]] = order[generator.integers(count, size=count)]
    return sources


def explore(
    table: Table,
    rows: NDArray[np.int64],
    bounds: Mapping[str, Dimension],
    generator: np.random.Generator,
) -> None:
    """Perturbs the hyperparameters of some members in place, within what a dimension may reach."""
    for name, dimension in bounds.items():
        factors = generator.choice(PERTURBED, size=len(rows))
        most = dimension.most if dimension.log else dimension.high
        table[name][rows] = np.clip(table[name][rows] * factors, dimension.least, most)
