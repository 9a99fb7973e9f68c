"""What an arm may choose from: named dimensions, each with a default that is tried first.

A *setting* is a point of a search space: a value for each name. Who samples settings (the tuner)
and who runs them (the arms) agree on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

Setting = Mapping[str, float | str]
"""A point of a search space: values by hyperparameter name, such as ``{"lr": 1e-3}``."""

WIDENING = 10.0
"""A widened dimension reaches further by this factor; a linear one by its own length."""


@dataclass(frozen=True)
class Dimension:
    """A number between two bounds.

    Attributes:
        default: the value of trial 0, within the bounds.
        log: whether to sample it log-uniformly; a linear one otherwise.
        least: it is never widened below this; None: below zero where it is linear.
        most: it is never widened beyond this.

    Raises:
        ValueError: bounds or default are not in order.
    """

    low: float
    high: float
    default: float
    log: bool = True
    least: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        ordered = self.least <= self.low < self.high <= self.most
        if not ordered or not self.low <= self.default <= self.high:
            raise ValueError(
                "a dimension needs least <= low <= default <= high <= most and low < high, "
                f"but got {self}"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic dimension needs a positive low, but got {self.low}")

    def sample(self, generator: np.random.Generator) -> float:
        if self.log:
            return float(np.exp(generator.uniform(np.log(self.low), np.log(self.high))))
        return float(generator.uniform(self.low, self.high))

    def widened(self, *, up: bool) -> Dimension:
        """The dimension with more room on one side, as far as it may go."""
        length = self.high - self.low
        if up:
            high = self.high * WIDENING if self.log else self.high + length
            return replace(self, high=min(high, self.most))
        low = self.low / WIDENING if self.log else self.low - length
        return replace(self, low=max(low, self.least))


@dataclass(frozen=True)
class Choice:
    """One of several names; ValueError where the default is not among them."""

    options: tuple[str, ...]
    default: str

    def __post_init__(self) -> None:
        if self.default not in self.options:
            raise ValueError(f"the default must be one of {self.options}, but got {self.default!r}")

    def sample(self, generator: np.random.Generator) -> str:
        return self.options[int(generator.integers(len(self.options)))]


@dataclass(frozen=True)
class Space:
    """A search space; empty where there is nothing to choose.

    >>> space = Space({"lr": Dimension(1e-4, 1e-1, default=1e-3)})
    >>> space.default
    {'lr': 0.001}
    >>> space.widened("lr", up=True).dimensions["lr"].high
    1.0
    """

    dimensions: Mapping[str, Dimension | Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", MappingProxyType(dict(self.dimensions)))

    def __reduce__(self) -> tuple[type[Space], tuple[dict[str, Dimension | Choice]]]:
        return Space, (dict(self.dimensions),)  # a read-only view cannot be sent to a worker

    @property
    def default(self) -> dict[str, float | str]:
        """The setting that is tried first."""
        return {name: d.default for name, d in self.dimensions.items()}

    def sample(self, generator: np.random.Generator) -> dict[str, float | str]:
        return {name: d.sample(generator) for name, d in self.dimensions.items()}

    def widened(self, name: str, *, up: bool) -> Space:
        """More room above or below the range of a `Dimension`; ValueError for another name."""
        dimension = self.dimensions.get(name)
        if not isinstance(dimension, Dimension):
            numbers = [n for n, d in self.dimensions.items() if isinstance(d, Dimension)]
            raise ValueError(f"only {', '.join(numbers) or 'nothing'} can be widened, not {name!r}")
        return Space({**self.dimensions, name: dimension.widened(up=up)})

    def check(self, setting: Setting) -> None:
        """Raises ValueError unless a setting has a value of the right kind for every name alone."""
        if set(setting) != set(self.dimensions):
            raise ValueError(
                f"a setting must name {sorted(self.dimensions)}, but got {sorted(setting)}"
            )
        for name, dimension in self.dimensions.items():
            value = setting[name]
            if isinstance(dimension, Choice):
                fits = value in dimension.options
            else:
                fits = isinstance(value, int | float) and math.isfinite(value)
            if not fits:
                raise ValueError(f"{name!r} must come from {dimension}, but got {value!r}")
