"""Trains settings of baselines that share an optimizer as siblings of one tensor program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pacesetter.envs.actions import interval_ends
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.runs.outcomes import FinishedRuns, FloatArray, RunOutcome
from pacesetter.experiments.rivals.schedules import number
from pacesetter.inner_models.task import SplitName, Task
from pacesetter.inner_models.engine.trainer import InnerTrainer

CHECKS = 20
"""How often in a run a schedule that looks at it, or a population, is asked."""


def start_trainer(
    task: Task,
    configured: Sequence[Configured],
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> InnerTrainer:
    """A trainer whose run ``i * len(configured) + j`` is seed i under setting j.

    Args:
        task: its data and model; seed and optimizer are replaced.
        configured: settings of baselines that `batches` has put together.
        seeds: of initial weights and batch order.
        device: where the runs live.
        dtype: of parameters and data.
    """
    baseline = configured[0].baseline
    assert not callable(baseline.optimizer)
    base = task.with_optimizer(name=baseline.optimizer, **_shared(configured[0]))
    trainer = InnerTrainer(
        [base.with_seed(seed) for seed in seeds],
        siblings=len(configured),
        device=device,
        dtype=dtype,
    )
    decays = [
        number(c.baseline.hyperparameters(c.setting, task), "weight_decay", 0.0) for c in configured
    ]
    trainer.optimizer.decay_by(torch.tensor(decays, dtype=torch.float64).repeat(len(seeds)))
    return trainer


def batches(configured: Sequence[Configured]) -> list[list[int]]:
    """Numbers of those settings that can be siblings: of one batched optimizer."""
    groups: dict[object, list[int]] = {}
    for i, c in enumerate(configured):
        if c.baseline.batched and not c.baseline.population:
            key = (c.baseline.optimizer, *_shared(c).items())
            groups.setdefault(key, []).append(i)
    return list(groups.values())


def _shared(configured: Configured) -> dict[str, float]:
    """What all runs of a program have in common, where the baseline fixes it."""
    beta2 = configured.baseline.fixed.get("beta2")
    return {} if beta2 is None else {"beta2": float(beta2)}


def train_batch(
    task: Task,
    configured: Sequence[Configured],
    *,
    seeds: Sequence[int],
    num_intervals: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FinishedRuns:
    """Trains a task once per setting and seed; gradients are never clipped.

    Args:
        task: its data and model; seed and optimizer are replaced.
        configured: settings of baselines that `batches` has put together.
        seeds: of initial weights and batch order.
        num_intervals: parts into which curves are cut.
        device: where the runs live.
        dtype: of parameters and data.

    Returns:
        Run ``i * len(configured) + j`` is seed i under setting j.
    """
    hyper = [c.baseline.hyperparameters(c.setting, task) for c in configured]
    rates = np.stack(
        [
            number(h, "lr", 0.0) * c.baseline.factors(task.horizon, h)
            for c, h in zip(configured, hyper, strict=True)
        ],
        axis=1,
    )
    rates = np.tile(rates, (1, len(seeds)))
    momentum = np.tile([number(h, "momentum", 0.9) for h in hyper], len(seeds))
    watchers = {
        i * len(configured) + j: c.baseline.feedback(h)
        for i in range(len(seeds))
        for j, (c, h) in enumerate(zip(configured, hyper, strict=True))
        if c.baseline.feedback is not None
    }
    trainer = start_trainer(task, configured, seeds=seeds, device=device, dtype=dtype)
    steps = interval_ends(task.horizon, num_intervals)
    runs = FinishedRuns(trainer, trainer.evaluate("outer_valid"), steps)
    scale = np.ones(trainer.num_runs)
    losses, used = [], []
    for start, end in segments(task.horizon, steps, checked=bool(watchers)):
        with runs.watch:
            used.append(rates[start:end] * scale)
            losses.append(trainer.run(used[-1], momentum=momentum).losses)
            if watchers and end in check_points(task.horizon):
                valid = trainer.evaluate("inner_valid")
                for row, watcher in watchers.items():
                    scale[row] = watcher.factor(float(valid[row]))
        if end in steps:
            runs.curve.append(finite_mean(np.concatenate(losses)))
            runs.lrs.append(np.concatenate(used).mean(axis=0))
            runs.momenta.append(momentum)
            runs.clip_thresholds.append(np.full(trainer.num_runs, np.nan))
            losses, used = [], []
            runs.look()
    return runs


def check_points(horizon: int) -> tuple[int, ...]:
    """Inner steps after which a run is checked; the horizon is too late for it.

    >>> check_points(40)[:3], check_points(40)[-1]
    ((2, 4, 6), 38)
    """
    return interval_ends(horizon, CHECKS)[:-1]


def segments(horizon: int, steps: Sequence[int], *, checked: bool) -> Iterator[tuple[int, int]]:
    """Successive (start, end) of what is trained at one go: up to the next interval or check."""
    ends = sorted({*steps, *(check_points(horizon) if checked else ())})
    yield from zip([0, *ends[:-1]], ends, strict=True)


def finite_mean(losses: FloatArray) -> FloatArray:
    """Mean over the steps whose loss was finite: (steps, num_runs) -> (num_runs,); NaN if none."""
    known = np.isfinite(losses)
    total = np.where(known, losses, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def run_batch(
    task: Task,
    configured: Sequence[Configured],
    *,
    seeds: Sequence[int],
    num_intervals: int,
    evaluate: Sequence[SplitName],
    device: torch.device | str = "cpu",
) -> list[RunOutcome]:
    """Trains siblings and evaluates them at their horizon; arguments as in `train_batch`.

    Returns:
        Setting-major: outcome ``j * len(seeds) + i`` is seed i under setting j.
    """
    runs = train_batch(task, configured, seeds=seeds, num_intervals=num_intervals, device=device)
    found = runs.outcomes(
        task,
        [
            (
                c.baseline.name,
                dict(c.setting),
                seed,
                number(c.baseline.hyperparameters(c.setting, task), "lr", 0.0),
            )
            for seed in seeds
            for c in configured
        ],
        evaluate=evaluate,
    )
    return [
        found[i * len(configured) + j] for j in range(len(configured)) for i in range(len(seeds))
    ]
