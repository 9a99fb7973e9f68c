"""Sizes of meta-training by name, counted in decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pacesetter.agent.training.config import (
    FINE_TUNING_LEARNING_RATE,
    FINE_TUNING_LOG_STD,
    TrainConfig,
)
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.config import EnvConfig
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.registry import META_TRAIN

# The quickest families.
_MLPS: dict[str, Any] = {"families": ("teacher-mlp",), "validation_families": ("digits-mlp",)}

# Seconds that a group of 64 runs takes on one core. Costly families are drawn less often, so that
# the same time gives more runs.
_SECONDS = {
    "teacher-mlp": 1.4,
    "quadratic": 0.6,
    "logistic": 0.4,
    "ratings": 0.6,
    "autoencoder": 1.8,
    "multitask": 2.0,
    "distilled-mlp": 0.8,
    "image-convnet": 4.3,
    "quantised-mlp": 1.0,
    "pruned-mlp": 1.4,
    "fine-tuned-mlp": 2.3,
    "hard-labels-mlp": 1.4,
    "language-transformer": 10.5,
    "sequence-rnn": 7.8,
}


def weights_by_cost(families: Sequence[str]) -> tuple[float, ...]:
    """How often to draw each family; one whose cost is not known counts as usual."""
    return tuple(round(_SECONDS.get(name, 1.0) ** -0.7, 3) for name in families)


# What docs/lab-book.md arrived at.
_ENV = EnvConfig(family_weights=weights_by_cost(META_TRAIN), reward="difference", spread_floor=0.2)
_RECIPE: dict[str, Any] = {
    "families": META_TRAIN,
    "env": _ENV,
    "validation_tasks": 3,
    "exploration": "state-dependent",
    "log_std": -2.3,
}

PRESETS: dict[str, TrainConfig] = {
    # Seconds: shows that the whole path works, learns nothing to speak of.
    "smoke": TrainConfig(
        decisions=2_000,
        env=EnvConfig(
            num_groups=2,
            tasks_per_group=2,
            siblings=4,
            control=ControlConfig(num_intervals=10),
            spread_floor=0.1,
        ),
        validations=2,
        validation_tasks=1,
        validation_seeds=1,
        validation_starts=(1e-3,),
        checkpoint_every=1,
        **_MLPS,
    ),
    # Two minutes on two cores, for `pacesetter demo`, which goes on from the shipped policy: from
    # nothing, so few decisions make no policy that is worth showing.
    "demo": TrainConfig(
        decisions=100_000,
        learning_rate=2e-4,
        validations=2,
        validation_seeds=1,
        **{**_RECIPE, "validation_tasks": 2},
    ),
    # About a quarter of an hour on one core, so half an hour for four seeds on two.
    "laptop": TrainConfig(decisions=1_000_000, validations=10, **_RECIPE),
    # The same recipe, about three hours on two cores; no shipped policy comes from it yet.
    "workstation": TrainConfig(decisions=10_000_000, validations=40, **_RECIPE),
    # The same for one large GPU, whose steps cost about the same for many more runs; never run yet.
    "gpu": TrainConfig(
        decisions=10_000_000,
        validations=10,
        minibatches=32,
        **{
            **_RECIPE,
            "env": replace(_ENV, num_groups=8, tasks_per_group=16, siblings=16),
            "validation_tasks": 2,
        },
    ),
    # Some minutes on two cores, for `pacesetter train --init`: from a policy that is good already.
    "fine-tune": TrainConfig(decisions=200_000, learning_rate=2e-4, log_std=FINE_TUNING_LOG_STD),
    # Ten minutes a seed on one core, for `pacesetter train --init`: the recipe on everything, from
    # a policy that is good already; no clear gain yet.
    "second-stage": TrainConfig(
        decisions=600_000, learning_rate=FINE_TUNING_LEARNING_RATE, validations=6, **_RECIPE
    ),
}


def get_preset(name: str) -> TrainConfig:
    """A preset by name; ValueError with the nearest names where there is none."""
    check_name(name, PRESETS, kind="preset")
    return PRESETS[name]
