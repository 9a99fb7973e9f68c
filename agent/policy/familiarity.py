"""How familiar a job is: the density of its features among those of meta-training.

A policy is only right where it has learned. The features of meta-training are described by a
mixture of Gaussians, and unfamiliar is what has much less density than they usually have: the
distance is 1 in the median, and rises with minus the log density. A single Gaussian tells real jobs
from nonsense far worse: training has phases, and what is usual in one is absurd in another.

What a user decides (horizon, optimizer, momentum, how often there is a validation loss and how far
it is from the training loss) makes no job unfamiliar: those features are left out of the density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pacesetter.envs.actions import FloatArray
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES

Float32Array = NDArray[np.float32]

PATIENCE = 0.8
"""Weight of the past in the smoothed distance, per decision."""
STALLED = 5
"""A loss whose features are equal to the last digit this often in a row is not a training loss."""

LEFT_OUT = (
    *("log_horizon", "adaptive", "log_one_minus_momentum"),
    *("valid_known", "valid_age", "valid_above_best", "valid_drop_total", "valid_gap"),
)
"""Features that make no job unfamiliar."""
_LOSS = [i for i, name in enumerate(FEATURE_NAMES) if "loss_" in name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Familiarity:
    """A density of features, and the distance beyond which a job is unfamiliar.

    Attributes:
        mean: (F,), mean of every feature in meta-training.
        means: (C, F), of each component.
        whitening: (C, F, F); a component's ``(x - mean) @ whitening`` has unit covariance. Rows of
            features that are left out are zero.
        log_weights: (C,), log of weight and of the whitening's determinant.
        typical: median of minus the log density in meta-training, constants aside.
        scale: from there to the 90th percentile.
        threshold: of the smoothed distance.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite or out of range.
    """

    mean: Float32Array
    means: Float32Array
    whitening: Float32Array
    log_weights: Float32Array
    typical: float
    scale: float
    threshold: float

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.log_weights))
        shapes = {
            "mean": (NUM_FEATURES,),
            "means": (count, NUM_FEATURES),
            "whitening": (count, NUM_FEATURES, NUM_FEATURES),
            "log_weights": (count,),
        }
        for name, shape in shapes.items():
            array = np.array(getattr(self, name), dtype=np.float32)
            if array.shape != shape or not count:
                raise ValueError(f"familiarity {name} needs shape {shape}, but got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"familiarity {name} holds numbers that are not finite")
            object.__setattr__(self, name, array)
        for name in ("typical", "scale", "threshold"):
            value = getattr(self, name)
            if type(value) is not float or not math.isfinite(value):
                raise ValueError(f"familiarity {name} must be a finite float, but got {value!r}")
        if self.scale <= 0 or self.threshold <= 0:
            raise ValueError(
                "familiarity scale and threshold must be positive, but got "
                f"{self.scale} and {self.threshold}"
            )

    def distance(self, features: ArrayLike) -> FloatArray:
        """How unfamiliar features (n, F) are: (n,), never negative.

        It is 1 in the median of meta-training, and below 2 for nine in ten.

        Raises:
            ValueError: the features have another shape.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != NUM_FEATURES:
            raise ValueError(f"features must have shape (n, {NUM_FEATURES}), but got {x.shape}")
        far = (self.surprise(x) - self.typical) / self.scale
        return np.maximum(0.0, 1.0 + far)

    def surprise(self, x: FloatArray) -> FloatArray:
        """Minus the log density, constants aside: (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            logs = np.stack(
                [
                    weight - 0.5 * np.square((x - mean) @ whitening).sum(axis=1)
                    for mean, whitening, weight in zip(
                        self.means.astype(np.float64),
                        self.whitening.astype(np.float64),
                        self.log_weights.astype(np.float64),
                        strict=True,
                    )
                ]
            )
        # Whatever has no value, for weights near the end of float32's range, is far away.
        logs = np.nan_to_num(logs, nan=-1e300, neginf=-1e300, posinf=-1e300)
        top = logs.max(axis=0)
        surprise: FloatArray = -top - np.log(np.exp(logs - top).sum(axis=0))
        return surprise

    def tensors(self) -> dict[str, Float32Array]:
        """The arrays by name, as a policy file holds them."""
        return {f"familiarity.{name}": getattr(self, name) for name in _ARRAYS}

    def header(self) -> dict[str, float]:
        """The numbers by name, as a policy file's header holds them."""
        return {name: getattr(self, name) for name in _NUMBERS}

    @classmethod
    def read(cls, tensors: dict[str, NDArray[Any]], header: Any) -> Familiarity:
        """Takes its arrays out of a policy file's; the header may hold anything.

        Raises:
            KeyError: an array is missing.
            TypeError: the header has other entries.
            ValueError: as for the class, or an array is not of float32.
        """
        if not isinstance(header, Mapping) or header.keys() != set(_NUMBERS):
            raise TypeError(f"familiarity must hold {sorted(_NUMBERS)}, but got {header!r}")
        arrays = {name: tensors.pop(f"familiarity.{name}") for name in _ARRAYS}
        for name, array in arrays.items():
            if array.dtype != np.float32:
                raise ValueError(f"familiarity {name} must be of float32, but is of {array.dtype}")
        values: dict[str, Any] = {**arrays, **header}
        return cls(**values)


_ARRAYS = ("mean", "means", "whitening", "log_weights")
_NUMBERS = ("typical", "scale", "threshold")


class FamiliarityMeter:
    """Watches some runs, decision by decision; without a `Familiarity` all is familiar.

    A single unfamiliar interval happens in the best of runs, so the distance, (num_runs,), is
    smoothed over decisions, beginning from the typical 1. A loss that never changes is found out
    on its own.
    """

    def __init__(self, familiarity: Familiarity | None, *, num_runs: int = 1) -> None:
        self.familiarity = familiarity
        self.distance = np.ones(num_runs)
        self._loss = np.full((num_runs, len(_LOSS)), np.nan)
        self._equal = np.zeros(num_runs, dtype=np.int64)

    def update(self, features: ArrayLike) -> NDArray[np.bool_]:
        """Takes in finite features (num_runs, F); returns which runs are unfamiliar now.

        Raises:
            ValueError: the features have another shape.
        """
        x = np.asarray(features, dtype=np.float64)
        expected = (len(self.distance), NUM_FEATURES)
        if x.shape != expected:
            raise ValueError(f"features must have shape {expected}, but got {x.shape}")
        if self.familiarity is None:
            return np.zeros(len(x), dtype=bool)
        now = self.familiarity.distance(x)
        self.distance = PATIENCE * self.distance + (1 - PATIENCE) * now
        same = (x[:, _LOSS] == self._loss).all(axis=1)
        self._loss = x[:, _LOSS].copy()
        self._equal = np.where(same, self._equal + 1, 0)
        strange: NDArray[np.bool_] = self.distance > self.familiarity.threshold
        return strange | (self._equal >= STALLED)

    def state_dict(self) -> dict[str, Any]:
        arrays = {"distance": self.distance, "loss": self._loss, "equal": self._equal}
        return {name: array.tolist() for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.distance = np.asarray(state["distance"], dtype=np.float64)
        self._loss = np.asarray(state["loss"], dtype=np.float64).reshape(-1, len(_LOSS))
        self._equal = np.asarray(state["equal"], dtype=np.int64)
