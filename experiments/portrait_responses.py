"""How a policy's actions depend on what it sees, over states that training runs really meet.

Partial dependence (Friedman 2001, "Greedy Function Approximation") moves one feature and leaves the
others as they were met; permutation importance (Breiman 2001, "Random Forests") is how much an
action changes when a feature is shuffled over the states. `response_curves` is the quick look that
needs no states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import NUM_ACTIONS
from pacesetter.envs.features import FEATURE_NAMES, FEATURES, NUM_FEATURES, Feature

FloatArray = NDArray[np.float64]

NUM_POINTS = 21
"""Values at which a feature is tried, where it has more than that."""
EDGE = 0.02
"""Share of the states beyond either end of the values that are tried: outliers stay outside."""
DECILES = np.arange(1, 10) / 10

KINDS: dict[str, tuple[str, ...]] = {
    "where in the run": ("progress", "log_horizon"),
    "hyperparameters now": ("lr_offset", "log_one_minus_momentum", "log_clip_ratio"),
    "its own last changes": ("last_lr_action", "lr_trend"),
    "course of the loss": (
        *("loss_drop", "loss_drop_slow", "loss_drop_total", "loss_above_best"),
        *("loss_drop_share", "loss_regret_share"),
    ),
    "noise of the loss": ("log_loss_spread", "loss_spread_change"),
    "directions of the gradient": (
        *("cos_momentum", "cos_momentum_slow", "cos_update", "cos_update_slow"),
    ),
    "size and noise of the gradient": (
        *("norm_spread", "norm_total", "norm_change", "clipped_share", "nonfinite_share"),
    ),
    "size of weights and updates": ("log_update_size", "log_param_growth"),
    "kind of optimizer": ("adaptive",),
    "validation losses": (
        *("valid_known", "valid_age", "valid_above_best", "valid_drop_total", "valid_gap"),
    ),
}
"""Features that tell of the same thing: shuffled alone, one is stood in for by the others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """How the actions depend on one feature.

    Attributes:
        feature: which.
        values: (P,), raw values that were tried, ascending; a single one if it never varied.
        mean: (P, 3), mean action over the states, in [-1, 1].
        low: (P, 3), lower quartile over the states.
        high: (P, 3), upper quartile.
        deciles: (9,), of the raw values that were met.
        importance: (3,), mean absolute change of each action when the feature is shuffled.
    """

    feature: Feature
    values: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    deciles: FloatArray
    importance: FloatArray

    @property
    def varied(self) -> bool:
        """Whether the feature had more than one value."""
        return len(self.values) > 1

    @property
    def effect(self) -> FloatArray:
        """(3,), mean action at the greatest value that was tried less that at the least."""
        return np.asarray(self.mean[-1] - self.mean[0])


def measure_responses(
    policy: Policy,
    states: FloatArray,
    *,
    generator: np.random.Generator,
    num_states: int = 600,
    repeats: int = 3,
) -> list[Response]:
    """The responses to all features, in their order.

    Args:
        policy: whose.
        states: (n, NUM_FEATURES), normalised, as runs met them.
        generator: of what is shuffled, and of the states that curves are taken over.
        num_states: how many of them curves are taken over.
        repeats: how often each feature is shuffled.

    Raises:
        ValueError: the states have another shape, or there are fewer than two.
    """
    if states.ndim != 2 or states.shape[1] != NUM_FEATURES or len(states) < 2:
        raise ValueError(
            f"states must have shape (n, {NUM_FEATURES}) with n of 2 or more, but got "
            f"{states.shape}"
        )
    chosen = generator.permutation(len(states))[:num_states]
    found = []
    for i, feature in enumerate(FEATURES):
        tried = _values(states[:, i])
        rows = np.tile(states[chosen], (len(tried), 1))
        rows[:, i] = np.repeat(tried, len(chosen))
        actions = policy.act(rows).reshape(len(tried), len(chosen), NUM_ACTIONS)
        low, high = np.quantile(actions, (0.25, 0.75), axis=1)
        found.append(
            Response(
                feature=feature,
                values=tried * feature.scale + feature.centre,
                mean=actions.mean(axis=1),
                low=low,
                high=high,
                deciles=np.quantile(states[:, i], DECILES) * feature.scale + feature.centre,
                importance=importance(policy, states, [i], generator=generator, repeats=repeats),
            )
        )
    return found


def kind_importances(
    policy: Policy, states: FloatArray, *, generator: np.random.Generator, repeats: int = 3
) -> dict[str, FloatArray]:
    """Permutation importance of each of `KINDS`, whose features are shuffled together: (3,) each.

    Arguments as in `measure_responses`.
    """
    return {
        kind: importance(
            policy,
            states,
            [FEATURE_NAMES.index(name) for name in names],
            generator=generator,
            repeats=repeats,
        )
        for kind, names in KINDS.items()
    }


def importance(
    policy: Policy,
    states: FloatArray,
    columns: Sequence[int],
    *,
    generator: np.random.Generator,
    repeats: int,
) -> FloatArray:
    """Mean absolute change of each action when some features are shuffled over the states.

    Args:
        policy: whose actions.
        states: (n, NUM_FEATURES).
        columns: numbers of the features; they keep together.
        generator: of the shuffles.
        repeats: how many.

    Returns:
        (3,), in units of the largest change per decision.
    """
    before = policy.act(states)
    total = np.zeros(NUM_ACTIONS)
    for _ in range(repeats):
        shuffled = states.copy()
        shuffled[:, columns] = states[generator.permutation(len(states))][:, columns]
        total += np.abs(policy.act(shuffled) - before).mean(axis=0)
    return total / repeats


def _values(column: FloatArray) -> FloatArray:
    """The normalised values to try of a feature that was met with these."""
    distinct = np.unique(column)
    if len(distinct) <= NUM_POINTS // 4:  # a flag, or next to it: nothing between is possible
        return distinct
    low, high = np.quantile(column, (EDGE, 1 - EDGE))
    if low == high:
        low, high = distinct[0], distinct[-1]
    return np.linspace(low, high, NUM_POINTS)
