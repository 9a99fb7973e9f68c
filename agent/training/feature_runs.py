"""Features as meta-training meets them: runs of its families under a policy, for the meter.

They are to hold whatever a sane job may show, so the runs vary what users vary: besides their
random tasks and starts, half of them act with exploration noise, and in some the learning rate,
the momentum or the clipping is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.runs.interruption import safe_point
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.registry import make_family
from pacesetter.inner_models.task import Task, TaskFamily

FloatArray = NDArray[np.float64]

RUNS_PER_GROUP = 4
"""Runs of one shape, each of a task of its own; many shapes tell more than many runs of each."""
NOISE = 0.5
"""Standard deviation of exploration in half of the runs, about that of meta-training."""
LEFT_ALONE = 0.2
"""Share of the runs that leave one of the three hyperparameters alone, for each of them."""


@dataclass(frozen=True, kw_only=True)
class FeatureRuns:
    """The features of some runs.

    Attributes:
        features: (n, NUM_FEATURES), what each decision saw, those of a run in order.
        runs: (n,), number of the run that a row belongs to.
    """

    features: FloatArray
    runs: NDArray[np.int64]


def collect_features(
    policy: Policy,
    families: Sequence[str | TaskFamily],
    *,
    num_runs: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> FeatureRuns:
    """Trains runs of every family in turn under a policy and keeps what it saw.

    Args:
        policy: in charge, with its own control.
        families: to draw tasks from, their starts included.
        num_runs: how many runs, rounded up to whole groups of `RUNS_PER_GROUP`.
        seed: of tasks, noise and what is left alone.
        device: where the runs live.
        progress: show how far it is.

    Raises:
        ValueError: there is no family, or no run is asked for.
    """
    if not families or num_runs < 1:
        raise ValueError(
            f"need a family and at least one run, but got {len(families)} and {num_runs}"
        )
    known = [make_family(f) if isinstance(f, str) else f for f in families]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[FloatArray] = []
    groups = -(-num_runs // RUNS_PER_GROUP)
    with progress_bar("meter", total=groups, unit="groups", shown=progress) as bar:
        for group in range(groups):
            safe_point()  # a resumed training fits its meter anew
            tasks = known[group % len(known)].sample_group(RUNS_PER_GROUP, generator)
            found += list(observe_runs(policy, tasks, rng=rng, device=device).swapaxes(0, 1))
            bar.update()
    lengths = [len(rows) for rows in found]
    return FeatureRuns(
        features=np.concatenate(found), runs=np.repeat(np.arange(len(found)), lengths)
    )


def observe_runs(
    policy: Policy,
    tasks: Sequence[Task],
    *,
    rng: np.random.Generator | None = None,
    control: ControlConfig | None = None,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """What a policy sees at every decision of some runs.

    Args:
        policy: in charge.
        tasks: one run of each; of one shape, each with a seed.
        rng: varies the actions as the module says; None: the policy's own actions.
        control: bounds and step sizes; None: those of the policy.
        device: where the runs live.

    Returns:
        (num_decisions, num_tasks, NUM_FEATURES).
    """
    runs = ScheduledRuns(tasks, control=control or policy.control, device=device)
    shape = (len(tasks), NUM_ACTIONS)
    free, noise = np.ones(shape), np.zeros(shape)
    if rng is not None:
        free = (rng.random(shape) >= LEFT_ALONE).astype(np.float64)
        noise[rng.random(len(tasks)) < 0.5] = NOISE
    features = runs.begin()
    seen = []
    while not runs.done:
        seen.append(features)
        actions = policy.act(features)
        if rng is not None:
            actions = free * np.clip(actions + noise * rng.standard_normal(shape), -1.0, 1.0)
        features = runs.decide(actions)
    return np.stack(seen) if seen else np.zeros((0, len(tasks), features.shape[1]))
