"""Learning on from a policy: its network is where the learner starts, its control what it keeps.

A policy that is good already is not to be shaken as one that knows nothing. So exploration begins
smaller (`LOG_STD`) and steps are shorter (`LEARNING_RATE`): with the few tasks of one user's
family a gradient is mostly noise, and what a long step forgets of the families that the policy
came from, a short training does not bring back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.training.config import TrainConfig
from pacesetter.inner_models.registry import (
    FROM_FILES,
    VALIDATION,
    family_names,
    is_own,
)

LOG_STD = -1.0
"""Log of the actions' standard deviation at the start, at most: 0.37; from nothing it is 0.50."""
LEARNING_RATE = 5e-4
"""Of PPO, at most; from nothing it is 7e-4."""
"""Names that stand for several families."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def fine_tuning_config(config: TrainConfig, policy: Policy) -> TrainConfig:
    """Settings for a learner that starts from a policy.

    Args:
        config: settings of a training from nothing.
        policy: the start; its control and its layers' widths replace those of `config`.

    Returns:
        `config` with the control and the widths of the policy, and with `LOG_STD` and
        `LEARNING_RATE` where it has more than these.
    """
    return replace(
        config,
        control=policy.control,
        hidden=hidden_of(policy),
        log_std=min(config.log_std, LOG_STD),
        learning_rate=min(config.learning_rate, LEARNING_RATE),
    )


def hidden_of(policy: Policy) -> tuple[int, ...]:
    """Widths of a policy's hidden layers."""
    return tuple(len(bias) for _, bias in policy.layers[:-1])


def check_start(config: TrainConfig, policy: Policy) -> None:
    """Checks that a learner with these settings can start from a policy.

    Raises:
        ValueError: control or widths differ; the message has both and says what to do.
    """
    differing = [
        f"{name}: {ours!r} in the settings, {theirs!r} in the policy"
        for name, ours, theirs in (
            ("hidden", config.hidden, hidden_of(policy)),
            *(
                (name, value, getattr(policy.control, name))
                for name, value in vars(config.control).items()
            ),
        )
        if ours != theirs
    ]
    if differing:
        raise ValueError(
            f"cannot start from policy {policy.digest[:12]}: {'; '.join(differing)}. A learner "
            "keeps these of the policy that it starts from; "
            "fine_tuning_config(config, policy) makes such settings"
        )


def load_actor(model: Any, policy: Policy) -> None:
    """Puts a policy's weights into the actor of a learner; its critic stays as it is.

    Args:
        model: a `stable_baselines3.PPO` made by `make_learner` for `policy`.
        policy: where it starts.
    """
    network = model.policy
    modules = [*network.mlp_extractor.policy_net, network.action_net]
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for module, (weight, bias) in zip(linear, policy.layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))


def learned_families(config: TrainConfig, start: Policy | None) -> tuple[str, ...]:
    """Families that a policy of this training has learned from, its start's included."""
    earlier = () if start is None else start.info.families
    return tuple(dict.fromkeys((*config.families, *earlier)))


def meter_families(config: TrainConfig, policy: Policy) -> tuple[str, ...]:
    """Families that the meter of a policy is fitted to: all that it knows, as far as they are here.

    A meter that knew one user's few tasks alone would find their very next job strange. Own
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

    Args:
        families: to learn from.
        usual: validation families of a training on bundled families alone.

    >>> validation_families(["my_module:Spirals"])
    ('my_module:Spirals',)
    """
    own = [name for name in families if is_own(name)]
    mixed = len(own) < len(families)
    return (*own, *(usual if mixed else ()))
