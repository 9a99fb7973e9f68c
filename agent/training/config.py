"""Settings of meta-training, from nothing or from a policy: everything that decides what it learns.

A learner that starts from a policy keeps its network and its control. What that policy can do
already is easily lost, so exploration begins smaller (`FINE_TUNING_LOG_STD`) and steps are shorter
(`FINE_TUNING_LEARNING_RATE`): with the few tasks of one user's family a gradient is mostly noise,
and what a long step forgets of the families that the policy came from, a short training does not
bring back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from pacesetter.envs.config import EnvConfig
from pacesetter.inner_models.registry import (
    FROM_FILES,
    META_TRAIN,
    VALIDATION,
    family_names,
    is_own,
    make_family,
)

if TYPE_CHECKING:
    from pacesetter.agent.policy.policy import Policy

FINE_TUNING_LOG_STD = -1.0
"""Log of the actions' standard deviation at the start of a fine-tuning, at most: 0.37; from nothing
it is 0.50."""
FINE_TUNING_LEARNING_RATE = 5e-4
"""Of PPO in a fine-tuning, at most; from nothing it is 7e-4."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One meta-training run. Its size is counted in decisions, not in minutes.

    Attributes:
        decisions: how many to learn from; rounded up to whole rollouts.
        families: task families to learn from.
        validation_families: task families to choose the policy by.
        env: which runs there are side by side, their control and their reward.
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
    env: EnvConfig = field(default_factory=lambda: EnvConfig(spread_floor=0.1))
    hidden: tuple[int, ...] = (64, 64)
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
            *("decisions", "epochs", "minibatches"),
            *("validations", "validation_tasks", "validation_seeds", "checkpoint_every"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)}")
        self.env.check_families(self.families)
        if self.exploration not in ("independent", "state-dependent"):
            raise ValueError(
                f"exploration must be independent or state-dependent, but got {self.exploration!r}"
            )
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must lie in [0, 1), but got {self.averaging}")
        for name in (*self.families, *self.validation_families):
            make_family(name)
        if self.env.num_decisions < 1:
            raise ValueError("meta-training needs at least 2 intervals, one decision, per run")

    @property
    def rollout(self) -> int:
        """Decisions of one rollout: whole episodes of every run."""
        return self.env.num_envs * self.env.num_decisions

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run."""
        return -(-self.decisions // self.rollout)

    def to_dict(self) -> dict[str, Any]:
        """The settings in JSON types."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**settings, "env": self.env.to_dict()}


def fine_tuning_config(config: TrainConfig, policy: Policy) -> TrainConfig:
    """Settings for a learner that starts from a policy, from those of a training from nothing.

    Returns:
        `config` with the control and the widths of the policy, and with `FINE_TUNING_LOG_STD` and
        `FINE_TUNING_LEARNING_RATE` where it has more than these.
    """
    return replace(
        config,
        env=replace(config.env, control=policy.control),
        hidden=hidden_of(policy),
        log_std=min(config.log_std, FINE_TUNING_LOG_STD),
        learning_rate=min(config.learning_rate, FINE_TUNING_LEARNING_RATE),
    )


def hidden_of(policy: Policy) -> tuple[int, ...]:
    return tuple(len(bias) for _, bias in policy.layers[:-1])


def check_start(config: TrainConfig, policy: Policy) -> None:
    """Checks that a learner with these settings can start from a policy.

    Raises:
        ValueError: control or widths differ; the message has both and says what to do.
    """
    wanted = {"hidden": config.hidden, **vars(config.env.control)}
    there = {"hidden": hidden_of(policy), **vars(policy.control)}
    differing = [
        f"{name}: {wanted[name]!r} in the settings, {there[name]!r} in the policy"
        for name in wanted
        if wanted[name] != there[name]
    ]
    if differing:
        raise ValueError(
            f"cannot start from policy {policy.digest[:12]}: {'; '.join(differing)}. A learner "
            "keeps these of the policy that it starts from; "
            "fine_tuning_config(config, policy) makes such settings"
        )


def learned_families(config: TrainConfig, start: Policy | None) -> tuple[str, ...]:
    """Families that a policy of this training has learned from, its start's included."""
    earlier = () if start is None else start.info.families
    return tuple(dict.fromkeys((*config.families, *earlier)))


def meter_families(config: TrainConfig, policy: Policy) -> tuple[str, ...]:
    """Families that the meter of a policy is fitted to: all that it knows, as far as they are here.

    A meter that knew one user's few tasks alone would find their very next job unfamiliar. Own
    families of an earlier training may be gone, and those from files are never learned from here.
    """
    here = set(family_names()) - set(FROM_FILES)
    earlier = [name for name in policy.info.families if name in here]
    return tuple(dict.fromkeys((*config.families, *earlier)))


def validation_families(
    families: Sequence[str], usual: Sequence[str] = VALIDATION
) -> tuple[str, ...]:
    """Families to choose the policy by, where the user names none.

    A user's own families are the best judges of a policy for them: fixed tasks are drawn from
    them that training never draws, on seeds of their own. Where bundled families are mixed in,
    against forgetting, the usual validation families have a say too.

    >>> validation_families(["my_module:Spirals"])
    ('my_module:Spirals',)
    """
    own = [name for name in families if is_own(name)]
    mixed = len(own) < len(families)
    return (*own, *(usual if mixed else ()))
