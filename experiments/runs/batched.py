"""Batched runs: settings of baselines that share an optimizer, as siblings of one program."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pacesetter.envs.actions import FloatArray, interval_ends
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.schedules import number
from pacesetter.experiments.runs.records import RunRecord, least, valid_points
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.losses import metric_of
from pacesetter.inner_models.task import SplitName, Task

RunKey = tuple[str, dict[str, float | str], int, float]
"""Arm, setting, seed and learning rate of a run."""

CHECKS = 20
"""How often in a run a schedule that looks at it, or a population, is asked."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How runs are trained, and evaluated on which splits; each of these is read once."""

    evaluate: tuple[SplitName, ...] = ("outer_valid",)
    num_intervals: int = 1
    device: str = "cpu"


class Stopwatch:
    """Adds up the time of training, as a context."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


@dataclass
class FinishedRuns:
    """Runs of one program at their horizon, with what happened on the way.

    Attributes:
        trainer: holds the trained models; rows are task-major, siblings within.
        untrained: (num_runs,), outer-valid losses before the first step.
        steps: (K,), inner step at which each interval ended.
        curve: K arrays (num_runs,) as in `RunRecord`; so are the three after it.
        trajectory: K arrays (num_runs, 3), as there; empty for baselines.
        valid_curve: by inner step, (num_runs,) outer-valid losses.
    """

    trainer: InnerTrainer
    untrained: FloatArray
    steps: tuple[int, ...]
    curve: list[FloatArray] = field(default_factory=list)
    lrs: list[FloatArray] = field(default_factory=list)
    momenta: list[FloatArray] = field(default_factory=list)
    clip_thresholds: list[FloatArray] = field(default_factory=list)
    trajectory: list[FloatArray] = field(default_factory=list)
    valid_curve: dict[int, FloatArray] = field(default_factory=dict)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def end_interval(
        self, losses: list[FloatArray], rates: list[FloatArray], momentum: FloatArray
    ) -> None:
        """Keeps an interval without clipping, and empties its parts, (steps, num_runs) each."""
        self.curve.append(finite_mean(np.concatenate(losses)))
        self.lrs.append(np.concatenate(rates).mean(axis=0))
        self.momenta.append(momentum.copy())
        self.clip_thresholds.append(np.full(self.trainer.num_runs, np.nan))
        losses.clear()
        rates.clear()
        self.look()

    def look(self, *, final: bool = False) -> None:
        """Evaluates outer_valid where the curve wants a point."""
        step = self.trainer.step_count
        if final or step in valid_points(self.steps)[:-1]:
            self.valid_curve[step] = self.trainer.evaluate("outer_valid")

    def losses(self, split: SplitName) -> FloatArray:
        """Final losses on a split, (num_runs,); not finite where a run diverged."""
        if split == "outer_valid" and self.trainer.horizon in self.valid_curve:
            return self.valid_curve[self.trainer.horizon]
        return self.trainer.evaluate(split)

    def records(
        self,
        task: Task,
        keys: Sequence[RunKey],
        *,
        evaluate: Sequence[SplitName],
        rows: Sequence[int] | None = None,
    ) -> list[RunRecord]:
        """Evaluates each split of `evaluate` once and makes a record of every run.

        `keys` are those of the runs, or of `rows` of them, in their order.
        """
        self.look(final=True)
        losses = {split: self.losses(split) for split in evaluate}
        metric = metric_of(task)
        values: dict[SplitName, FloatArray] = {}
        if metric is not None:
            values = {split: self.trainer.measure(split, metric.measure) for split in evaluate}

        def column(kept: Sequence[FloatArray], row: int) -> list[float]:
            return [float(numbers[row]) for numbers in kept]

        found = []
        rows = range(len(keys)) if rows is None else rows
        for row, (arm, setting, seed, lr) in zip(rows, keys, strict=True):
            valid_curve = column(list(self.valid_curve.values()), row)
            record = RunRecord(
                task=task.name,
                arm=arm,
                seed=seed,
                lr=lr,
                setting=setting,
                inner_steps=self.trainer.horizon,
                untrained=float(self.untrained[row]),
                losses={split: float(numbers[row]) for split, numbers in losses.items()},
                best={"outer_valid": least(valid_curve)},
                metric_name=None if metric is None else metric.name,
                metric=None
                if metric is None
                else {split: metric.value(float(v[row])) for split, v in values.items()},
                steps=list(self.steps),
                curve=column(self.curve, row),
                lrs=column(self.lrs, row),
                momenta=column(self.momenta, row),
                clip_thresholds=column(self.clip_thresholds, row),
                valid_steps=list(self.valid_curve),
                valid_curve=valid_curve,
                trajectory=[numbers[row].tolist() for numbers in self.trajectory] or None,
                wall_seconds=self.watch.seconds / self.trainer.num_runs,
            )
            found.append(record)
        return found


def start_trainer(
    task: Task,
    configured: Sequence[Configured],
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> InnerTrainer:
    """A trainer whose run ``i * len(configured) + j`` is seed i under setting j."""
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
        if c.baseline.sibling:
            key = (c.baseline.optimizer, *_shared(c).items())
            groups.setdefault(key, []).append(i)
    return list(groups.values())


def _shared(configured: Configured) -> dict[str, float]:
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
    """Trains a task once per setting and seed; gradients are clipped only where a setting says so.

    Seed and optimizer of the task are replaced; the settings are those that `batches` has put
    together. Run ``i * len(configured) + j`` is seed i under setting j.
    """
    hyper = [c.baseline.hyperparameters(c.setting, task) for c in configured]
    pairs = list(zip(configured, hyper, strict=True))
    each = [number(h, "lr", 0.0) * c.baseline.factors(task.horizon, h) for c, h in pairs]
    rates = np.tile(np.stack(each, axis=1), (1, len(seeds)))
    momentum = np.tile([number(h, "momentum", 0.9) for h in hyper], len(seeds))
    clips = np.tile([number(h, "clip", np.inf) for h in hyper], len(seeds))
    clip_ratio = clips if np.isfinite(clips).any() else None
    watchers = {
        i * len(configured) + j: c.baseline.feedback(h)
        for i in range(len(seeds))
        for j, (c, h) in enumerate(pairs)
        if c.baseline.feedback is not None
    }
    trainer = start_trainer(task, configured, seeds=seeds, device=device, dtype=dtype)
    steps = interval_ends(task.horizon, num_intervals)
    runs = FinishedRuns(trainer, trainer.evaluate("outer_valid"), steps)
    scale = np.ones(trainer.num_runs)
    losses: list[FloatArray] = []
    used: list[FloatArray] = []
    for start, end in segments(task.horizon, steps, checked=bool(watchers)):
        with runs.watch:
            used.append(rates[start:end] * scale)
            losses.append(trainer.run(used[-1], momentum=momentum, clip_ratio=clip_ratio).losses)
            if watchers and end in check_points(task.horizon):
                valid = trainer.evaluate("inner_valid")
                for row, watcher in watchers.items():
                    scale[row] = watcher.factor(float(valid[row]))
        if end in steps:
            runs.end_interval(losses, used, momentum)
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
    task: Task, configured: Sequence[Configured], *, seeds: Sequence[int], options: RunOptions
) -> list[RunRecord]:
    """Trains siblings and evaluates them at their horizon.

    Setting-major: record ``j * len(seeds) + i`` is seed i under setting j.
    """
    runs = train_batch(
        task, configured, seeds=seeds, num_intervals=options.num_intervals, device=options.device
    )
    rates = [number(c.baseline.hyperparameters(c.setting, task), "lr", 0.0) for c in configured]
    keys: list[RunKey] = [
        (c.baseline.name, dict(c.setting), seed, lr)
        for seed in seeds
        for c, lr in zip(configured, rates, strict=True)
    ]
    found = runs.records(task, keys, evaluate=options.evaluate)
    return [record for j in range(len(configured)) for record in found[j :: len(configured)]]
