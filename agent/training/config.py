"""Settings of meta-training: everything that decides what a run learns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.envs.groups import check_weights
from pacesetter.envs.rewards import REWARD_FORMS, RewardForm
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.registry import META_TRAIN, VALIDATION, make_family


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One meta-training run. Its size is counted in decisions, not in minutes.

    Attributes:
        decisions: how many to learn from; rounded up to whole rollouts.
        families: task families to learn from.
        validation_families: task families to choose the policy by.
        num_groups: groups of runs per rollout, each of one shape.
        tasks_per_group: tasks per group.
        siblings: runs per task.
        control: intervals, bounds and step sizes.
        family_weights: how often each family is drawn, relative to the others; empty: equally.
        reward: how siblings are held against each other, see `sibling_scores`.
        spread_floor: floor under the siblings' spread in the reward, or its unit.
        hidden_features: names of features that read zero; the policy takes no notice of them.
        hidden: widths of the policy's and of the critic's hidden layers.
        learning_rate: of PPO, falling linearly to zero.
        epochs: passes over a rollout.
        minibatches: per pass.
        clip_range: of PPO's ratio.
        exploration: ``"independent"`` noise in every decision, or ``"state-dependent"``: a random
            function of the network's last hidden layer, the same for a whole run (gSDE, Raffin,
            Kober & Stulp 2022), so that siblings part ways further at the same size of noise.
        log_std: log of the noise's standard deviation at the start; if state-dependent, of the
            function's weights.
        learn_noise: whether that is learned, or held fixed.
        averaging: weight of the past in the running average of the policy's weights over rollouts;
            the average is what is validated and shipped.
        validations: how often the policy is validated, evenly spaced, the end included.
        validation_tasks: fixed tasks per validation family.
        validation_seeds: seeds per validation task.
        validation_starts: starts of the learning rate from which each task is run.
        checkpoint_every: rollouts between checkpoints.
    """

    decisions: int
    families: tuple[str, ...] = META_TRAIN
    validation_families: tuple[str, ...] = VALIDATION
    num_groups: int = 4
    tasks_per_group: int = 4
    siblings: int = 8
    control: ControlConfig = field(default_factory=ControlConfig)
    hidden_features: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (64, 64)
    family_weights: tuple[float, ...] = ()
    reward: RewardForm = "z-score"
    spread_floor: float = 0.1
    learning_rate: float = 7e-4
    epochs: int = 5
    minibatches: int = 4
    clip_range: float = 0.2
    exploration: Literal["independent", "state-dependent"] = "independent"
    log_std: float = -0.7
    learn_noise: bool = True
    averaging: float = 0.95
    validations: int = 12
    validation_tasks: int = 8
    validation_seeds: int = 2
    validation_starts: tuple[float, ...] = (3e-4, 1e-3, 1e-2)
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        for name in (
            *("decisions", "num_groups", "tasks_per_group", "epochs", "minibatches"),
            *("validations", "validation_tasks", "validation_seeds", "checkpoint_every"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)}")
        check_weights(self.family_weights, families=len(self.families))
        for name in self.hidden_features:
            check_name(name, FEATURE_NAMES, kind="feature")
        if self.reward not in REWARD_FORMS:
            raise ValueError(
                f"reward must be one of {', '.join(REWARD_FORMS)}, but got {self.reward!r}"
            )
        if self.exploration not in ("independent", "state-dependent"):
            raise ValueError(
                f"exploration must be independent or state-dependent, but got {self.exploration!r}"
            )
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must lie in [0, 1), but got {self.averaging}")
        for name in (*self.families, *self.validation_families):
            make_family(name)
        if self.control.num_intervals < 2:
            raise ValueError("meta-training needs at least 2 intervals, one decision, per run")

    @property
    def num_envs(self) -> int:
        """Inner runs side by side."""
        return self.num_groups * self.tasks_per_group * self.siblings

    @property
    def rollout(self) -> int:
        """Decisions of one rollout: whole episodes of every run."""
        return self.num_envs * (self.control.num_intervals - 1)

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return -(-self.decisions // self.rollout)

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON types."""
        return asdict(self)
