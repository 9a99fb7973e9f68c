"""Groups of inner runs, the unit in which meta-training is drawn, trained and spread.

A group depends on ``(seed, episode, group)`` and on the actions taken in it, on nothing else: it
can be trained in any process, and once more where it was lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.envs.rewards import SPREAD_FLOOR, RewardForm, sibling_scores
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.envs.turns import FloatArray, Turn
from pacesetter.inner_models.task import Task, TaskFamily


class SiblingGroup:
    """Tasks of one shape, each with siblings that are rewarded against each other.

    Args:
        runs: what is trained.
        spread_floor: floor under the siblings' spread in the reward, or its unit.
        reward: form of the reward, see `sibling_scores`.
        hidden_features: names of features that read zero.
    """

    def __init__(
        self,
        runs: ScheduledRuns,
        *,
        spread_floor: float,
        reward: RewardForm = "z-score",
        hidden_features: tuple[str, ...] = (),
    ) -> None:
        self._runs, self._spread_floor, self._reward = runs, spread_floor, reward
        self._seen = np.array([name not in hidden_features for name in FEATURE_NAMES])

    @property
    def tasks(self) -> list[Task]:
        """The task of each row."""
        return [task for task in self._runs.tasks for _ in range(self._runs.siblings)]

    def begin(self) -> FloatArray:
        """See `Group.begin`."""
        return np.where(self._seen, self._runs.begin(), 0.0)

    def turn(self, actions: NDArray[Any]) -> Turn:
        """See `Group.turn`. A group that was over before is idle, and its infos say so."""
        runs, rows = self._runs, self._runs.num_runs
        zeros = np.zeros(rows)
        was_over: bool = runs.done
        if was_over:
            idle: list[dict[str, Any]] = [{"idle": True} for _ in range(rows)]
            return Turn(np.zeros((rows, NUM_FEATURES)), zeros, True, idle)
        features = np.where(self._seen, runs.decide(actions), 0.0)
        if not runs.done:
            return Turn(features, zeros, False, [{} for _ in range(rows)])
        losses = runs.final_losses()
        scores = sibling_scores(losses, spread_floor=self._spread_floor, form=self._reward).ravel()
        infos: list[dict[str, Any]] = [
            {"outer_valid_loss": float(loss), "task": task.name}
            for loss, task in zip(losses.ravel(), self.tasks, strict=True)
        ]
        return Turn(features, scores, True, infos)


@dataclass(frozen=True, kw_only=True)
class FamilyGroups:
    """Draws each group from one of several task families.

    Attributes:
        families: to draw from.
        tasks_per_group: tasks of one shape per group.
        siblings: runs per task.
        control: bounds and step sizes of the control.
        device: where the inner runs live.
        dtype: of their parameters and data.
        spread_floor: floor under the siblings' spread in the reward, or its unit.
        reward: form of the reward, see `sibling_scores`.
        weights: how often each family is drawn, relative to the others; empty: equally.
        hidden_features: names of features that read zero.
    """

    families: tuple[TaskFamily, ...]
    tasks_per_group: int
    siblings: int
    control: ControlConfig = field(default_factory=ControlConfig)
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    spread_floor: float = SPREAD_FLOOR
    reward: RewardForm = "z-score"
    weights: tuple[float, ...] = ()
    hidden_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights, families=len(self.families))

    def draw(self, seed: int, episode: int, group: int) -> SiblingGroup:
        """See `GroupSource.draw`.

        Raises:
            ValueError: the family drew a horizon too short for a decision.
        """
        entropy = np.random.SeedSequence((seed, episode, group))
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        if self.weights:
            shares = torch.tensor(self.weights, dtype=torch.float64)
            pick = int(torch.multinomial(shares, 1, generator=generator))
        else:
            pick = int(torch.randint(len(self.families), (), generator=generator))
        tasks = self.families[pick].sample_group(self.tasks_per_group, generator)
        runs = ScheduledRuns(
            tasks,
            siblings=self.siblings,
            control=self.control,
            device=self.device,
            dtype=self.dtype,
        )
        if not runs.num_decisions:
            raise ValueError(
                f"family {self.families[pick].name!r} drew a horizon of {runs.trainer.horizon} "
                "steps, too short for a decision: raise its horizons to at least 4"
            )
        return SiblingGroup(
            runs,
            spread_floor=self.spread_floor,
            reward=self.reward,
            hidden_features=self.hidden_features,
        )


def check_weights(weights: tuple[float, ...], *, families: int) -> None:
    """Refuses weights that do not go with their families.

    Args:
        weights: one for each family, or none at all.
        families: how many there are.

    Raises:
        ValueError: their number differs, or one is not a positive finite number.
    """
    if not weights:
        return
    if len(weights) != families:
        raise ValueError(f"need one weight for each of {families} families, but got {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights of families must be positive and finite, but got {weights}")
