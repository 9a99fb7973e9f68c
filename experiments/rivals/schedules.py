"""Schedules of the learning rate, each a function of progress and of the setting's own numbers.

Progress is the share of steps already taken, so that one function serves every horizon; factors
multiply the learning rate of the setting. `Plateau` is the one that looks at the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.rivals.space import Setting

Schedule = Callable[[FloatArray, Setting], FloatArray]
"""From progress, (n,) in [0, 1), and the setting to factors of the learning rate, (n,)."""

WARM_UP = 0.05
"""Share of the steps in which a warm-up rises, where the setting does not say."""
WARM_UP_START = 0.01
"""Where it begins, over the peak."""


class Feedback(Protocol):
    """A schedule that looks at the run: asked at regular checks."""

    def factor(self, valid_loss: float) -> float:
        """The factor of the learning rate from now on; the loss may not be finite."""


def number(setting: Setting, name: str, default: float) -> float:
    """A number of a setting, or its default where the setting does not name it."""
    return float(setting.get(name, default))


def constant(progress: FloatArray, setting: Setting) -> FloatArray:
    """The learning rate stays as it is."""
    return np.ones_like(progress)


def cosine(progress: FloatArray, setting: Setting) -> FloatArray:
    """Cosine to zero, as `torch.optim.lr_scheduler.CosineAnnealingLR` with ``T_max`` all steps.

    >>> cosine(np.array([0.0, 0.5]), {}).round(6).tolist()
    [1.0, 0.5]
    """
    return np.asarray(0.5 * (1 + np.cos(np.pi * progress)))


def linear(progress: FloatArray, setting: Setting) -> FloatArray:
    """Straight to zero.

    >>> linear(np.array([0.0, 0.25]), {}).tolist()
    [1.0, 0.75]
    """
    return 1 - progress


def warm_up_cosine(progress: FloatArray, setting: Setting) -> FloatArray:
    """Linear rise over a share ``warm_up`` of the steps, then a cosine to zero over the rest.

    >>> warm_up_cosine(np.array([0.0, WARM_UP]), {}).tolist()
    [0.01, 1.0]
    """
    share = number(setting, "warm_up", WARM_UP)
    fall = cosine((progress - share) / (1 - share), setting)
    return np.where(progress < share, _rise(progress, share), fall)


def warm_up_stable_decay(progress: FloatArray, setting: Setting) -> FloatArray:
    """Linear rise, then constant, then down to zero over the last share ``decay``.

    The setting's ``shape`` of the decay: ``"linear"``, or ``"sqrt"``, one minus the square root.

    >>> warm_up_stable_decay(np.array([0.5, 0.9]), {"decay": 0.2, "shape": "linear"}).round(6)
    array([1. , 0.5])
    """
    decay = number(setting, "decay", 0.2)
    left = np.clip((progress - (1 - decay)) / decay, 0, 1)
    fall = 1 - (left if setting.get("shape", "sqrt") == "linear" else np.sqrt(left))
    return np.where(progress < WARM_UP, _rise(progress, WARM_UP), fall)


def one_cycle(progress: FloatArray, setting: Setting) -> FloatArray:
    """Cosine up from 1/25 until the share ``peak``, cosine down to nothing after it.

    `torch.optim.lr_scheduler.OneCycleLR` in the limit of many steps; the momentum stays.

    >>> one_cycle(np.array([0.0, 0.3]), {}).round(6).tolist()
    [0.04, 1.0]
    """
    peak, low, end = number(setting, "peak", 0.3), 1 / 25, 1 / 25e4
    up = low + (1 - low) * 0.5 * (1 - np.cos(np.pi * np.minimum(progress / peak, 1)))
    down = end + (1 - end) * cosine(np.clip((progress - peak) / (1 - peak), 0, 1), setting)
    return np.where(progress < peak, up, down)


def step_decay(progress: FloatArray, setting: Setting) -> FloatArray:
    """Multiplied by ``gamma`` after a half and after three quarters of the steps.

    >>> step_decay(np.array([0.4, 0.5, 0.75]), {"gamma": 0.1}).round(6).tolist()
    [1.0, 0.1, 0.01]
    """
    drops = (progress >= 0.5).astype(float) + (progress >= 0.75)
    return np.asarray(number(setting, "gamma", 0.1) ** drops)


def exponential(progress: FloatArray, setting: Setting) -> FloatArray:
    """Exponential decay to the factor ``final`` at the horizon.

    >>> exponential(np.array([0.0, 0.5]), {"final": 0.01}).round(6).tolist()
    [1.0, 0.1]
    """
    return np.asarray(number(setting, "final", 0.01) ** progress)


def cosine_restarts(progress: FloatArray, setting: Setting) -> FloatArray:
    """Cosines to zero, one after another, each twice as long as the one before; ``cycles`` of them.

    >>> cosine_restarts(np.array([0.0, 1 / 3, 2 / 3]), {"cycles": "2"}).round(6).tolist()
    [1.0, 1.0, 0.5]
    """
    cycles = int(setting.get("cycles", "3"))
    units = progress * (2**cycles - 1)
    # Rounding must not put the first step of a cycle at the end of the one before.
    index = np.floor(np.log2(units + 1) + 1e-9)
    length = 2.0**index
    return cosine(np.maximum(units - (length - 1), 0) / length, setting)


def _rise(progress: FloatArray, share: float) -> FloatArray:
    return WARM_UP_START + (1 - WARM_UP_START) * progress / share


class Plateau:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau` on the validation losses of a run."""

    def __init__(self, setting: Setting) -> None:
        import torch  # late, so that the names of arms can be listed at once
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = ReduceLROnPlateau(
            self._optimizer,
            factor=number(setting, "factor", 0.1),
            patience=int(setting.get("patience", "2")),
            # The default tolerance is a share of the loss, which makes no sense of a negative one.
            threshold=0.0,
            eps=0.0,
        )

    def factor(self, valid_loss: float) -> float:
        """A loss that is not finite is no improvement."""
        self._scheduler.step(valid_loss if math.isfinite(valid_loss) else math.inf)
        return float(self._optimizer.param_groups[0]["lr"])
