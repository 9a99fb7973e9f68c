"""What a policy does in whole runs: its schedules, and how it answers to a start that is off.

Every task has a yardstick of its own: the best of a grid of AdamW cosines, chosen in hindsight.
Starts and rates are given over the rate of that cosine, so that tasks can be laid over each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.experiments.analysis.statistics import comparable, quantile_band
from pacesetter.experiments.report.plots import Band
from pacesetter.experiments.rivals.arms import LR, Baseline, Configured
from pacesetter.experiments.rivals.schedules import cosine
from pacesetter.experiments.rivals.space import Space
from pacesetter.experiments.runs.agents import ClosedLoop, run_agents
from pacesetter.experiments.runs.batched import train_batch
from pacesetter.experiments.runs.outcomes import FinishedRuns
from pacesetter.inner_models.task import Task

FloatArray = NDArray[np.float64]
Side = Literal["low", "high"]
Rate = Literal["peak", "mean"]

FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Starts of the learning rate over the best cosine's."""
SHOWN_FACTORS = (0.1, 1.0, 10.0)
"""Those whose schedules are drawn and whose losses are told."""
LRS = tuple(float(f"{10**k:.3g}") for k in np.arange(-4.0, 0.1, 0.5))
"""Half decades from which the best cosine is chosen."""
PROGRESS: FloatArray = (np.arange(40) + 0.5) / 40
"""Shares of a run at which schedules are read off."""

COSINE = Baseline(
    name="adamw-cosine",
    label="AdamW cosine",
    optimizer="adamw",
    schedule=cosine,
    space=Space({"lr": LR}),
    source="Loshchilov & Hutter 2017, arXiv:1608.03983",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskRuns:
    """Runs of one task from F starts and S seeds, at the P points of `PROGRESS`.

    Attributes:
        task: its name, ``family/index``.
        best_lr: learning rate of the best cosine.
        factors: (F,), starts over `best_lr`, ascending.
        lrs: (F, S, P), learning rate over `best_lr`.
        momenta: (F, S, P).
        clip_ratios: (F, S, P), clip threshold over the running mean of the gradient norm.
        peaks: (F, S), greatest mean learning rate of an interval over `best_lr`.
        scores: (F, S), log ratio of the final outer-valid loss to the best cosine's of the seed; on
            tasks whose losses may be negative a difference over their spread.
        diverged: (F, S), whether the final loss is not finite.
    """

    task: str
    best_lr: float
    factors: FloatArray
    lrs: FloatArray
    momenta: FloatArray
    clip_ratios: FloatArray
    peaks: FloatArray
    scores: FloatArray
    diverged: NDArray[np.bool_]

    @property
    def family(self) -> str:
        """Name of the task's family."""
        return self.task.rpartition("/")[0]

    def rates(self, rate: Rate) -> FloatArray:
        """(F,), geometric mean over seeds of a rate over `best_lr`.

        Args:
            rate: ``"peak"``, or ``"mean"``: geometric mean over the run.
        """
        logs = np.log(self.peaks) if rate == "peak" else np.log(self.lrs).mean(axis=-1)
        return np.asarray(np.exp(logs.mean(axis=-1)))

    def correction(self, rate: Rate, side: Side) -> float:
        """How much of a wrong start is corrected: slope of log(rate / start) on log(start / best).

        Args:
            rate: which.
            side: starts that are too low or too high; the right one belongs to both.

        Returns:
            -1 where the rate is the same from every start; 0 where it is a fixed multiple of it;
            NaN where there is a single start on that side.
        """
        kept = self.factors <= 1 if side == "low" else self.factors >= 1
        if kept.sum() < 2:
            return float("nan")
        off = np.log(self.factors[kept])
        return float(np.polyfit(off, np.log(self.rates(rate)[kept]) - off, 1)[0])


def run_task(
    policy: Policy,
    task: Task,
    *,
    seeds: Sequence[int],
    factors: Sequence[float] = FACTORS,
    lrs: Sequence[float] = LRS,
    device: torch.device | str = "cpu",
) -> TaskRuns:
    """Finds a task's best cosine, and trains the task under a policy from starts around it.

    Args:
        policy: in charge; its meter of strange jobs is not asked.
        task: with AdamW.
        seeds: of initial weights and batch order.
        factors: starts over the best cosine's rate, ascending.
        lrs: rates of the cosines.
        device: where the runs live.
    """
    count = len(seeds)
    settings = [Configured(COSINE, {"lr": lr}) for lr in lrs]
    cosines = train_batch(task, settings, seeds=seeds, num_intervals=1, device=device)
    theirs = cosines.losses("outer_valid").reshape(count, len(lrs)).T
    best = int(comparable_rows(theirs, cosines).mean(axis=1).argmin())
    tasks = [
        task.with_optimizer(lr=lrs[best] * factor).with_seed(seed)
        for factor in factors
        for seed in seeds
    ]
    runs = run_agents(tasks, [ClosedLoop(policy)], control=policy.control, device=device)
    ours = runs.losses("outer_valid").reshape(len(factors), count)
    values = comparable_rows(np.concatenate((ours, theirs)), cosines)
    used = np.stack(runs.lrs) / lrs[best]
    state = np.stack(runs.trajectory)
    shape = (len(factors), count, len(PROGRESS))
    return TaskRuns(
        task=task.name,
        best_lr=lrs[best],
        factors=np.array(factors),
        lrs=np.exp(_on_grid(np.log(used), runs)).reshape(shape),
        momenta=_on_grid(np.stack(runs.momenta), runs).reshape(shape),
        clip_ratios=np.exp(_on_grid(state[:, :, 2], runs)).reshape(shape)
        * policy.control.clip_ratio_start,
        peaks=used.max(axis=0).reshape(shape[:2]),
        scores=values[: len(factors)] - values[len(factors) + best],
        diverged=~np.isfinite(ours),
    )


def comparable_rows(losses: FloatArray, runs: FinishedRuns) -> FloatArray:
    """`comparable` for one task: (arms, seeds) to the same shape."""
    untrained = runs.untrained.max(keepdims=True)
    return comparable(losses[:, None], untrained=untrained)[:, 0]


def _on_grid(values: FloatArray, runs: FinishedRuns) -> FloatArray:
    """Values of intervals, (K, num_runs), read off at `PROGRESS`: (num_runs, P)."""
    ends = np.array(runs.steps) / runs.trainer.horizon
    middles = (np.concatenate(([0.0], ends[:-1])) + ends) / 2
    return np.stack([np.interp(PROGRESS, middles, column) for column in values.T])


def by_family(runs: Sequence[TaskRuns]) -> dict[str, list[TaskRuns]]:
    """Runs by family, in the order in which they come."""
    found: dict[str, list[TaskRuns]] = {}
    for r in runs:
        found.setdefault(r.family, []).append(r)
    return found


def schedule_bands(
    runs: Sequence[TaskRuns], quantity: Literal["lrs", "momenta", "clip_ratios"]
) -> dict[float, Band]:
    """A quantity over progress by start: mean and quartiles over tasks and seeds.

    Args:
        runs: of some tasks.
        quantity: what is averaged; in logs, but for the momentum.

    Returns:
        By start over the best cosine's, those of `SHOWN_FACTORS` that were run. The line of a band
        is the mean.
    """
    bands = {}
    for factor, index in _shown(runs):
        rows = np.concatenate([getattr(r, quantity)[index] for r in runs])
        logs = quantity != "momenta"
        mean = np.exp(np.log(rows).mean(axis=0)) if logs else rows.mean(axis=0)
        _, low, high = quantile_band(rows)
        bands[factor] = Band(PROGRESS, mean, low, high)
    return bands


def losses_by_start(runs: Sequence[TaskRuns]) -> dict[float, float]:
    """Mean score by start over the best cosine's, those of `SHOWN_FACTORS` that were run."""
    return {
        factor: float(np.mean([r.scores[index] for r in runs])) for factor, index in _shown(runs)
    }


def _shown(runs: Sequence[TaskRuns]) -> Iterator[tuple[float, int]]:
    factors = runs[0].factors.tolist()
    yield from ((f, factors.index(f)) for f in SHOWN_FACTORS if f in factors)
