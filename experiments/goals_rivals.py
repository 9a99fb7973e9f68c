"""Rivals of the policy that look at nothing: what it would be worth if it were not adaptive.

Its mean schedule played back, and a constant multiple of the start under the plain decay. They
share ramp, clipping and guard with the policy. What they know was found on the meta-train families.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.runs.folder import write_json
from pacesetter.envs.actions import ControlConfig
from pacesetter.experiments.analysis.statistics import comparable
from pacesetter.experiments.goals_baselines import key_digest
from pacesetter.experiments.goals_policy import (
    ADAPTIVE_STARTS,
    RIGHT_START,
    Cell,
    agent_runs,
    mean_log_multiples,
)
from pacesetter.experiments.goals_records import GoalRun
from pacesetter.experiments.runs.agents import ClosedLoop, Idle, run_agents
from pacesetter.experiments.runs.replay import Replay, mean_replay
from pacesetter.experiments.sampling import adamw_groups
from pacesetter.inner_models.task import Task, TaskFamily

FloatArray = NDArray[np.float64]

REPLAY, STRICT = "open-loop replay", "strict open-loop replay"
OWN_MULTIPLE, BEST_MULTIPLE = "the policy's mean multiple", "the best multiple"
"""Arms."""
MULTIPLES = tuple(float(f"{10**k:.3g}") for k in np.linspace(0, 3, 13))
"""Quarters of a decade from which the best multiple is chosen."""


@dataclass(frozen=True)
class Habits:
    """What is known from the meta-train families.

    Attributes:
        replay: mean schedule of the policy, over tasks and starts as it met them.
        own: geometric mean of its lr over start and plain decay, from `ADAPTIVE_STARTS`.
        best: the one of `MULTIPLES` with the least mean log loss from there.
    """

    replay: Replay
    own: float
    best: float

    @property
    def multiples(self) -> dict[str, float]:
        """By arm."""
        return {OWN_MULTIPLE: self.own, BEST_MULTIPLE: self.best}


def habits(
    policy: Policy,
    families: Sequence[TaskFamily],
    *,
    num_tasks: int,
    seed: int,
    cache: Path,
    device: torch.device | str = "cpu",
) -> Habits:
    """Finds what the rivals know, or reads it from the cache where it is there.

    Args:
        policy: whose habits.
        families: to draw tasks from, in turn.
        num_tasks: how many, rounded up to whole groups.
        seed: of the tasks.
        cache: a folder.
        device: where the runs live.

    Raises:
        ValueError: the cache holds something else.
    """
    key = {
        "families": [family.name for family in families],
        "num_tasks": num_tasks,
        "seed": seed,
        "starts": list(ADAPTIVE_STARTS),
        "control": repr(policy.control),
    }

    def drawn() -> list[list[Task]]:
        generator = torch.Generator().manual_seed(seed)
        groups = adamw_groups(families, num_tasks=num_tasks, generator=generator)
        return [[replace(task, valid_every=0) for task in tasks] for tasks in groups]

    def own() -> dict[str, Any]:
        replay, multiple = _own_habits(policy, drawn(), device=device)
        return {"replay": replay.mean.tolist(), "multiple": multiple}

    def best() -> dict[str, Any]:
        means = _multiple_means(drawn(), control=policy.control, device=device)
        return {"mean_log_loss": means, "multiple": min(means, key=means.__getitem__)}

    found = _cached(cache, "multiple", {**key, "multiples": list(MULTIPLES)}, best)
    seen = _cached(cache, "habits", {**key, "policy": policy.digest}, own)
    mean = np.array(seen["replay"], dtype=np.float64)
    return Habits(Replay(mean, policy.control), float(seen["multiple"]), float(found["multiple"]))


def _cached(
    cache: Path, name: str, key: Mapping[str, Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What was found for a key: read where it is there, found and written where not."""
    path = cache / f"{name}-{key_digest(key)}.json"
    if not path.is_file():
        write_json(path, {"key": dict(key), **find()})
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = found["multiple"]
        return found
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged; remove it: {error!r}") from error


def _own_habits(
    policy: Policy, groups: Sequence[Sequence[Task]], *, device: torch.device | str
) -> tuple[Replay, float]:
    met: list[FloatArray] = []
    multiples: list[FloatArray] = []
    for tasks in groups:
        moved = [t.with_optimizer(lr=start) for start in ADAPTIVE_STARTS for t in tasks]
        loop = ClosedLoop(policy)
        runs = run_agents([*tasks, *moved], [loop], control=policy.control, device=device)
        met += list(np.stack(runs.trajectory, axis=1)[: len(tasks)])
        multiples.append(mean_log_multiples(runs)[len(tasks) :])
    return mean_replay(met, policy.control), math.exp(np.concatenate(multiples).mean())


def _multiple_means(
    groups: Sequence[Sequence[Task]], *, control: ControlConfig, device: torch.device | str
) -> dict[float, float]:
    """Mean log outer-valid loss over tasks and starts by multiple, relative to the best."""
    pairs = [(multiple, start) for multiple in MULTIPLES for start in ADAPTIVE_STARTS]
    rows: list[FloatArray] = []
    for tasks in groups:
        moved = [t.with_optimizer(lr=m * start) for m, start in pairs for t in tasks]
        runs = run_agents(moved, [Idle()], control=control, device=device)
        losses = runs.losses("outer_valid").reshape(len(pairs), len(tasks), 1)
        values = comparable(losses, untrained=runs.untrained[: len(tasks)])
        rows.append(values.reshape(len(MULTIPLES), -1).mean(axis=1))
    mean = np.mean(rows, axis=0)
    return {m: float(v - mean.min()) for m, v in zip(MULTIPLES, mean, strict=True)}


def rival_runs(
    task: Task,
    policy: Policy,
    known: Habits,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[GoalRun]:
    """The replay of meta-train, from the right start; constant multiples, from several."""
    control = policy.control
    replayed = [Cell(REPLAY, RIGHT_START, seed) for seed in seeds]
    constant = [
        Cell(arm, start, seed, factor=multiple)
        for arm, multiple in known.multiples.items()
        for start in ADAPTIVE_STARTS
        for seed in seeds
    ]
    return [
        *agent_runs(task, replayed, known.replay, control=control, device=device),
        *agent_runs(task, constant, Idle(), control=control, device=device),
    ]


def strict_runs(
    task: Task,
    policy: Policy,
    runs: Sequence[GoalRun],
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> list[GoalRun]:
    """The policy's mean schedule over the measured tasks themselves, played back on one of them.

    Args:
        task: the task.
        policy: whose schedule.
        runs: of all tasks; those whose trajectory is kept are played back.
        seeds: of the report.
        device: where the runs live.
    """
    moves = [np.array(run.trajectory) for run in runs if run.trajectory is not None]
    cells = [Cell(STRICT, RIGHT_START, seed) for seed in seeds]
    replay = mean_replay(moves, policy.control)
    return agent_runs(task, cells, replay, control=policy.control, device=device)
