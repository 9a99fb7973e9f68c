"""What comes of a run, whatever trained it: an agent, siblings in one program, or a plain loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pacesetter.inner_models.losses import metric_of
from pacesetter.inner_models.task import SplitName, Task
from pacesetter.inner_models.engine.trainer import InnerTrainer

FloatArray = NDArray[np.float64]

VALID_POINTS = 10
"""Points of a validation curve, where a run has so many intervals."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """A run at its horizon. Numbers that are not finite stand for a run that diverged.

    Attributes:
        arm: name of the arm.
        setting: what the run was asked to do, as given.
        seed: of initial weights and batch order.
        lr: learning rate of the setting, at its peak.
        inner_steps: that were taken; more than the horizon for a population.
        untrained: outer-valid loss before the first step.
        losses: final loss by split, of the splits that were asked for.
        metric_name: such as ``"accuracy"``; None: the task has none.
        metric: its final value by split; None: the task has none.
        steps: (K,), inner step at which each interval ended.
        curve: (K,), mean training loss of each interval.
        lrs: (K,), mean learning rate of each interval.
        momenta: (K,).
        clip_thresholds: (K,); NaN where nothing is clipped.
        valid_steps: inner steps at which outer-valid was looked at, the horizon last.
        valid_curve: the loss then.
        trajectory: (K, 3) of an agent; None for others.
        wall_seconds: time that training took, without what is only looked at.
        failed: why the run crashed; its losses are NaN. None: it did not.
    """

    arm: str
    setting: dict[str, float | str]
    seed: int
    lr: float
    inner_steps: int = 0
    untrained: float = math.nan
    losses: dict[str, float] = field(default_factory=dict)
    metric_name: str | None = None
    metric: dict[str, float] | None = None
    steps: list[int] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)
    clip_thresholds: list[float] = field(default_factory=list)
    valid_steps: list[int] = field(default_factory=list)
    valid_curve: list[float] = field(default_factory=list)
    trajectory: list[list[float]] | None = None
    wall_seconds: float = 0.0
    failed: str | None = None

    @property
    def best(self) -> float:
        """The least outer-valid loss that was seen; NaN where none was finite."""
        seen = [loss for loss in self.valid_curve if math.isfinite(loss)]
        return min(seen, default=math.nan)


def why(error: BaseException) -> str:
    """An error in a line, for a record."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def crashed(
    arm: str,
    setting: dict[str, float | str],
    *,
    seed: int,
    lr: float,
    reason: str,
    evaluate: Sequence[SplitName],
) -> RunOutcome:
    """The outcome of a run that raised."""
    losses: dict[str, float] = dict.fromkeys(evaluate, math.nan)
    return RunOutcome(arm=arm, setting=setting, seed=seed, lr=lr, losses=losses, failed=reason)


def valid_points(steps: Sequence[int]) -> tuple[int, ...]:
    """At which of the ends of intervals outer-valid is looked at, the last among them.

    >>> valid_points(range(2, 41, 2))
    (4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
    >>> valid_points([7, 9])
    (7, 9)
    """
    count = min(len(steps), VALID_POINTS)
    return tuple(steps[-(-(k + 1) * len(steps) // count) - 1] for k in range(count))


class Stopwatch:
    """Adds up the time of training.

    >>> watch = Stopwatch()
    >>> with watch:
    ...     pass
    >>> watch.seconds >= 0
    True
    """

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
        curve: K arrays (num_runs,), mean training loss of each interval.
        lrs: K arrays (num_runs,), mean learning rate of each interval.
        momenta: K arrays (num_runs,).
        clip_thresholds: K arrays (num_runs,), at the interval's end; NaN where nothing is clipped.
        trajectory: K arrays (num_runs, 3), log factors of lr, 1 - momentum and clip ratio over
            their starts; empty for baselines.
        valid_curve: by inner step, (num_runs,) outer-valid losses.
        watch: the time of training, of all runs together.
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

    def outcomes(
        self,
        task: Task,
        keys: Sequence[tuple[str, dict[str, float | str], int, float]],
        *,
        evaluate: Sequence[SplitName],
        rows: Sequence[int] | None = None,
    ) -> list[RunOutcome]:
        """Evaluates the splits that are asked for, each once, and makes an outcome of every run.

        Args:
            task: whose metric is taken.
            keys: arm, setting, seed and learning rate of each run.
            evaluate: the splits.
            rows: of the runs that `keys` are about, in their order; None: all of them.
        """
        self.look(final=True)
        losses = {split: self.losses(split) for split in evaluate}
        metric = metric_of(task)
        values: dict[SplitName, FloatArray] = {}
        if metric is not None:
            values = {split: self.trainer.measure(split, metric.measure) for split in evaluate}
        share = self.watch.seconds / self.trainer.num_runs

        def column(kept: Sequence[FloatArray], row: int) -> list[float]:
            return [float(numbers[row]) for numbers in kept]

        return [
            RunOutcome(
                arm=arm,
                setting=setting,
                seed=seed,
                lr=lr,
                inner_steps=self.trainer.horizon,
                untrained=float(self.untrained[row]),
                losses={split: float(numbers[row]) for split, numbers in losses.items()},
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
                valid_curve=column(list(self.valid_curve.values()), row),
                trajectory=[numbers[row].tolist() for numbers in self.trajectory] or None,
                wall_seconds=share,
            )
            for row, (arm, setting, seed, lr) in zip(
                range(len(keys)) if rows is None else rows, keys, strict=True
            )
        ]
