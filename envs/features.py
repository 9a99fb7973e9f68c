"""What the agent sees: statistics that mean the same on any model.

Ratios, differences over their own spread, cosines and shares; never a raw loss, norm or parameter
count. Replacing the loss by ``a * loss + b`` (a > 0, the optimizer's eps scaled along) changes
nothing here. One encoder serves the environments (many runs) and the plug-in (one run).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacesetter.envs.actions import ActionCodec, FloatArray
from pacesetter.inner_models.watch.signals import IntervalStatistics

FEATURE_BOUND = 5.0
"""Features lie in [-FEATURE_BOUND, FEATURE_BOUND]."""
SMOOTHING = 0.7
"""Weight of the past in averages over intervals."""
HORIZON_RANGE = (50.0, 5000.0)
"""Horizons beyond this range look like its ends, so that no policy has to extrapolate."""
OVERFIT_SHARE = 0.03
"""A run overfits where validation stands above its best by more than this share of its fall."""
OVERFIT_AGE = 1
"""Intervals after which a validation loss no longer says so."""
ABSURD = 1e150
"""Beyond this a loss counts as infinite: differences and squares would overflow."""


@dataclass(frozen=True)
class Feature:
    """One entry of the observation.

    Attributes:
        name: its name in tables, histories and policy files.
        centre: subtracted from the raw value.
        scale: the difference is divided by it, so that features are of order one.
        meaning: what the raw value is.
    """

    name: str
    centre: float
    scale: float
    meaning: str


FEATURES = (
    Feature("progress", 0.5, 0.3, "share of the steps that are over"),
    Feature("log_horizon", 5.0, 0.8, "log of total steps, clipped to HORIZON_RANGE"),
    Feature("lr_offset", 0.0, 1.0, "log of lr over its start and the base decay"),
    Feature("log_one_minus_momentum", -2.3, 0.5, "log(1 - momentum)"),
    Feature("log_clip_ratio", 1.4, 0.5, "log of clip threshold over running gradient norm"),
    Feature("last_lr_action", 0.0, 0.5, "latest change of log lr, in units of the largest"),
    Feature("lr_trend", 0.0, 0.25, "smoothed changes of log lr"),
    Feature("loss_drop", 0.15, 0.7, "fall of the mean loss in this interval over its spread"),
    Feature("loss_drop_slow", 0.5, 0.75, "fall against the smoothed loss, over its spread"),
    Feature("loss_drop_total", 1.8, 1.3, "fall since the first interval, over the spread"),
    Feature("loss_above_best", 0.4, 0.5, "distance from the best interval, over the spread"),
    Feature("loss_drop_share", 0.05, 0.3, "fall in this interval over the range seen so far"),
    Feature("loss_regret_share", 0.15, 0.25, "distance from the best, over the range seen so far"),
    Feature("log_loss_spread", -2.0, 1.2, "log of the spread over the range seen so far"),
    Feature("loss_spread_change", -0.15, 0.7, "log change of the spread since the last interval"),
    Feature("norm_spread", -2.1, 0.9, "log of the gradient norm's relative spread"),
    Feature("norm_total", -0.2, 0.8, "log of the gradient norm over the first interval's"),
    Feature("norm_change", 0.0, 0.25, "log change of the gradient norm since the last interval"),
    Feature("cos_momentum", 0.3, 0.4, "cosine of gradient and momentum"),
    Feature("cos_momentum_slow", 0.3, 0.35, "the same, smoothed"),
    Feature("cos_update", 0.25, 0.3, "cosine of gradient and previous update: hypergradient"),
    Feature("cos_update_slow", 0.25, 0.3, "the same, smoothed"),
    Feature("log_update_size", -6.0, 2.0, "log of update norm over parameter norm"),
    Feature("log_param_growth", 0.1, 0.35, "log of the parameter norm over the first interval's"),
    Feature("clipped_share", 0.0, 0.2, "share of steps that were clipped"),
    Feature("nonfinite_share", 0.0, 0.2, "share of steps that broke"),
    Feature("adaptive", 0.5, 0.5, "1 if the optimizer divides by its second moment, else 0"),
    Feature("valid_known", 0.0, 1.0, "1 if there has been a validation loss, else 0"),
    Feature("valid_age", 0.0, 0.8, "log(1 + intervals since the latest validation loss)"),
    Feature("valid_above_best", 0.0, 0.4, "validation loss above its best, over the spread"),
    Feature("valid_drop_total", 0.0, 1.5, "fall since the first validation loss, over the spread"),
    Feature("valid_gap", 0.0, 0.9, "validation loss above the training loss, over the spread"),
)
NUM_FEATURES = len(FEATURES)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)

_CENTRE = np.array([feature.centre for feature in FEATURES])
_SCALE = np.array([feature.scale for feature in FEATURES])


def squash(value: FloatArray) -> FloatArray:
    """Symmetric logarithm, ``sign(x) log(1 + |x|)``; NaN becomes 0.

    >>> squash(np.array([0.0, math.e - 1, -math.inf, math.nan])).round(3).tolist()
    [0.0, 1.0, -709.783, 0.0]
    """
    value = np.nan_to_num(value, nan=0.0)
    squashed: FloatArray = np.sign(value) * np.log1p(np.abs(value))
    return squashed


def ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """``top / bottom``; 0 for 0 / 0, and a large number of top's sign for x / 0.

    >>> ratio(np.array([1.0, 0.0, -3.0]), np.array([2.0, 0.0, 0.0])).round(1).tolist()
    [0.5, 0.0, -1000000.0]
    """
    safe = bottom > 0
    with np.errstate(over="ignore", invalid="ignore"):
        value = np.where(safe, top / np.where(safe, bottom, 1.0), np.sign(top) * 1e6)
    bounded: FloatArray = np.clip(np.nan_to_num(value, nan=0.0), -1e6, 1e6)
    return bounded


def log_ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """``log(top / bottom)``, 0 where either is not a positive finite number.

    >>> log_ratio(np.array([2.0, 0.0]), np.array([1.0, 1.0])).round(3).tolist()
    [0.693, 0.0]
    """
    known = (top > 0) & (bottom > 0) & np.isfinite(top) & np.isfinite(bottom)
    logs: FloatArray = np.log(np.where(known, top, 1.0)) - np.log(np.where(known, bottom, 1.0))
    return logs


class FeatureEncoder:
    """Turns interval statistics into observations; holds each run's memory over intervals.

    Args:
        num_runs: how many runs are encoded.
        adaptive: whether the base optimizer divides by a second moment, as Adam does.
    """

    def __init__(self, num_runs: int, *, adaptive: bool) -> None:
        self.adaptive = adaptive
        # NaN means "not seen yet" throughout.
        self._memory = {name: np.full(num_runs, np.nan) for name in _MEMORY}
        self._memory["lr_trend"][:] = 0.0
        self._validation = np.full(num_runs, np.nan)

    def observe_validation(self, losses: FloatArray) -> None:
        """Takes in validation losses, shape (num_runs,), for the next observation.

        Where a loss is not finite, or absurdly large, there is none.
        """
        known = np.abs(losses) < ABSURD
        self._validation = np.where(known, losses, self._validation)

    @property
    def overfitting(self) -> NDArray[np.bool_]:
        """(num_runs,), whether a recent validation loss says that further training does harm.

        It lies above its best by more than `OVERFIT_SHARE` of its fall from the first to the best.
        The one answer that helps is a lower learning rate: what is memorised stays so.
        """
        m = self._memory
        rise, fall = m["valid"] - m["valid_best"], m["valid_first"] - m["valid_best"]
        recent = m["valid_age"] <= OVERFIT_AGE  # NaN, none yet, is not
        overfits: NDArray[np.bool_] = recent & (rise > OVERFIT_SHARE * fall)
        return overfits

    def encode(self, stats: IntervalStatistics, codec: ActionCodec, *, interval: int) -> FloatArray:
        """The observation after interval `interval`, from 1: (num_runs, NUM_FEATURES), float64."""
        horizon = float(np.clip(codec.total_steps, *HORIZON_RANGE))
        past = self._memory["lr_trend"]
        self._memory["lr_trend"] = SMOOTHING * past + (1 - SMOOTHING) * codec.last_action[:, 0]
        columns: dict[str, FloatArray | float] = {
            "progress": codec.ends[interval - 1] / codec.total_steps,
            "log_horizon": math.log(horizon),
            "lr_offset": codec.lr_offset,
            "log_one_minus_momentum": codec.log_one_minus_momentum,
            "log_clip_ratio": codec.log_clip_ratio,
            "last_lr_action": codec.last_action[:, 0],
            "lr_trend": self._memory["lr_trend"],
            "clipped_share": stats.clipped_share,
            "nonfinite_share": stats.nonfinite_share,
            "adaptive": float(self.adaptive),
            **self._loss_features(stats),
            **self._gradient_features(stats),
        }
        columns.update(self._validation_features())
        raw = np.empty((codec.num_runs, NUM_FEATURES))
        for i, name in enumerate(FEATURE_NAMES):
            raw[:, i] = columns[name]
        features: FloatArray = np.clip((raw - _CENTRE) / _SCALE, -FEATURE_BOUND, FEATURE_BOUND)
        return features

    def _loss_features(self, stats: IntervalStatistics) -> dict[str, FloatArray]:
        m = self._memory
        # An interval in which nothing was finite teaches nothing: hold the last mean.
        mean = np.where(np.isnan(stats.loss_mean), m["loss"], stats.loss_mean)
        spread = np.where(np.isnan(stats.loss_std), m["spread"], stats.loss_std)
        previous, slow, old_spread = _known(m["loss"], mean), _known(m["slow"], mean), m["spread"]
        m["first"] = _known(m["first"], mean)
        m["best"] = np.fmin(m["best"], mean)
        m["worst"] = np.fmax(m["worst"], mean)
        m["spread"] = _smooth(m["spread"], spread)
        m["slow"] = _smooth(m["slow"], mean)
        m["loss"] = mean
        noise, seen = m["spread"], m["worst"] - m["best"]
        return {
            "loss_drop": squash(ratio(previous - mean, noise)),
            "loss_drop_slow": squash(ratio(slow - mean, noise)),
            "loss_drop_total": squash(ratio(m["first"] - mean, noise)),
            "loss_above_best": squash(ratio(mean - m["best"], noise)),
            "loss_drop_share": np.clip(ratio(previous - mean, seen), -1, 1),
            "loss_regret_share": np.clip(ratio(mean - m["best"], seen), 0, 1),
            "log_loss_spread": log_ratio(noise, seen),
            "loss_spread_change": log_ratio(spread, old_spread),
        }

    def _gradient_features(self, stats: IntervalStatistics) -> dict[str, FloatArray]:
        m = self._memory
        norm = _known(stats.norm_mean, m["norm"])
        m["first_norm"] = _known(m["first_norm"], norm)
        m["first_param"] = _known(m["first_param"], stats.param_norm)
        m["cos_momentum"] = _smooth(m["cos_momentum"], stats.cos_momentum)
        m["cos_update"] = _smooth(m["cos_update"], stats.cos_update)
        features = {
            "norm_spread": log_ratio(stats.norm_std, norm),
            "norm_total": log_ratio(norm, m["first_norm"]),
            "norm_change": log_ratio(norm, m["norm"]),
            "cos_momentum": np.nan_to_num(stats.cos_momentum),
            "cos_momentum_slow": np.nan_to_num(m["cos_momentum"]),
            "cos_update": np.nan_to_num(stats.cos_update),
            "cos_update_slow": np.nan_to_num(m["cos_update"]),
            "log_update_size": log_ratio(stats.update_norm, stats.param_norm),
            "log_param_growth": log_ratio(stats.param_norm, m["first_param"]),
        }
        m["norm"] = norm
        return features

    def _validation_features(self) -> dict[str, FloatArray]:
        m = self._memory
        fresh = ~np.isnan(self._validation)
        m["valid"] = np.where(fresh, self._validation, m["valid"])
        m["valid_train"] = np.where(fresh, m["loss"], m["valid_train"])
        m["valid_first"] = _known(m["valid_first"], m["valid"])
        m["valid_best"] = np.fmin(m["valid_best"], m["valid"])
        m["valid_age"] = np.where(fresh, 0.0, m["valid_age"] + 1)
        self._validation = np.full_like(self._validation, np.nan)
        known, noise = ~np.isnan(m["valid"]), m["spread"]

        def relative(value: FloatArray) -> FloatArray:
            return np.where(known, squash(ratio(value, noise)), 0.0)

        return {
            "valid_known": known.astype(np.float64),
            "valid_age": np.where(known, np.log1p(m["valid_age"]), 0.0),
            "valid_above_best": relative(m["valid"] - m["valid_best"]),
            "valid_drop_total": relative(m["valid_first"] - m["valid"]),
            "valid_gap": relative(m["valid"] - m["valid_train"]),
        }

    def state_dict(self) -> dict[str, Any]:
        memory = {name: value.tolist() for name, value in self._memory.items()}
        return {"memory": memory, "validation": self._validation.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory = {n: np.asarray(v, dtype=np.float64) for n, v in state["memory"].items()}
        self._validation = np.asarray(state["validation"], dtype=np.float64)


_MEMORY = (
    *("loss", "first", "best", "worst", "slow", "spread"),
    *("norm", "first_norm", "first_param", "cos_momentum", "cos_update", "lr_trend"),
    *("valid", "valid_train", "valid_first", "valid_best", "valid_age"),
)


def _known(value: FloatArray, otherwise: FloatArray) -> FloatArray:
    return np.where(np.isnan(value), otherwise, value)


def _smooth(past: FloatArray, now: FloatArray) -> FloatArray:
    """Average over intervals; an unknown value on either side leaves the other."""
    mixed = SMOOTHING * past + (1 - SMOOTHING) * now
    return np.where(np.isnan(past), now, np.where(np.isnan(now), past, mixed))
