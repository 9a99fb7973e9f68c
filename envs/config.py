"""Settings of the environment that an agent learns in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.envs.rewards import REWARD_FORMS, SPREAD_FLOOR, RewardForm
from pacesetter.inner_models.lookup import check_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which runs there are side by side, how they are controlled and what is rewarded.

    Attributes:
        num_groups: groups of runs per episode, each of one shape, trained as one tensor program.
        tasks_per_group: tasks per group.
        siblings: runs per task, at least 2.
        control: bounds and step sizes of the control.
        reward: how siblings are compared, see `pacesetter.envs.rewards.sibling_scores`.
        spread_floor: floor under the siblings' spread in the reward, or its unit.
        family_weights: how often each family is drawn, relative to the others; empty: equally.
        hidden_features: names of features that read zero, to learn what they are worth.
        device: where the inner runs live.
        dtype: of their parameters and data; None: float32.

    Raises:
        ValueError: a number is out of range, or a name unknown.
    """

    num_groups: int = 4
    tasks_per_group: int = 4
    siblings: int = 8
    control: ControlConfig = field(default_factory=ControlConfig)
    reward: RewardForm = "z-score"
    spread_floor: float = SPREAD_FLOOR
    family_weights: Sequence[float] = ()
    hidden_features: Sequence[str] = ()
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_groups", 1), ("tasks_per_group", 1), ("siblings", 2)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but got {value}")
        if self.reward not in REWARD_FORMS:
            raise ValueError(
                f"reward must be one of {', '.join(REWARD_FORMS)}, but got {self.reward!r}"
            )
        for name in ("family_weights", "hidden_features"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(0 < weight < math.inf for weight in self.family_weights):
            raise ValueError(
                f"family_weights must be positive and finite, but got {self.family_weights}"
            )
        for name in self.hidden_features:
            check_name(name, FEATURE_NAMES, kind="feature")

    @property
    def rows(self) -> int:
        """Inner runs of a group."""
        return self.tasks_per_group * self.siblings

    @property
    def num_envs(self) -> int:
        """Inner runs side by side."""
        return self.num_groups * self.rows

    @property
    def num_decisions(self) -> int:
        """Decisions of an episode: one per inner boundary of the intervals."""
        return self.control.num_intervals - 1

    def check_families(self, families: Sequence[Any]) -> None:
        """Refuses families that do not go with the weights."""
        if not families:
            raise ValueError("need at least one task family, but got none")
        if self.family_weights and len(self.family_weights) != len(families):
            raise ValueError(
                f"need one weight for each of {len(families)} families, but got "
                f"{len(self.family_weights)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide what happens, in JSON types: all but device and dtype."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        del settings["device"], settings["dtype"]
        return {**settings, "control": vars(self.control)}
