"""Sizes of meta-training by name, counted in decisions."""

from __future__ import annotations

from typing import Any

from pacesetter.agent.config import TrainConfig
from pacesetter.envs.actions import ControlConfig
from pacesetter.inner_models.names import check_name

# The quickest families.
_MLPS: dict[str, Any] = {"families": ("teacher-mlp",), "validation_families": ("digits-mlp",)}

PRESETS: dict[str, TrainConfig] = {
    # Seconds: shows that the whole path works, learns nothing to speak of.
    "smoke": TrainConfig(
        decisions=2_000,
        num_groups=2,
        tasks_per_group=2,
        siblings=4,
        control=ControlConfig(num_intervals=10),
        validations=2,
        validation_tasks=1,
        validation_seeds=1,
        validation_starts=(1e-3,),
        checkpoint_every=1,
        **_MLPS,
    ),
    # Two to three minutes on two cores, for `pacesetter demo`.
    "demo": TrainConfig(
        decisions=250_000,
        learning_rate=1e-3,
        validations=3,
        validation_tasks=2,
        validation_seeds=1,
        **_MLPS,
    ),
    # About half an hour on two cores; made the shipped policy.
    "laptop": TrainConfig(decisions=1_200_000, validation_tasks=3),
    # The same recipe, about three hours on two cores; no shipped policy comes from it yet.
    "workstation": TrainConfig(decisions=7_000_000, validation_tasks=3, validations=24),
}


def get_preset(name: str) -> TrainConfig:
    """A preset by name.

    Raises:
        ValueError: there is no such preset; the message has the nearest names.
    """
    check_name(name, PRESETS, kind="preset")
    return PRESETS[name]
