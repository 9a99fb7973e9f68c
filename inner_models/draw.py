"""Random numbers by the name of their distribution, and ranges that are checked once."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch

Option = TypeVar("Option")

Range = tuple[float, float]
"""Lowest and highest value, both included."""
IntRange = tuple[int, int]
"""The same of integers."""


class Draw:
    """Draws from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self.unit() < share

    def integer(self, low: int, high: int) -> int:
        """Uniform over low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def uniform(self, low: float, high: float) -> float:
        """Uniform between the two."""
        return low + (high - low) * self.unit()

    def log_uniform(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return float(low * (high / low) ** self.unit())

    def log_integer(self, low: int, high: int) -> int:
        """Log-uniform, rounded."""
        return min(high, max(low, round(self.log_uniform(low, high))))

    def power_of_two(self, low: int, high: int) -> int:
        """A power of two from low to high, each as likely."""
        return int(2 ** self.integer(math.ceil(math.log2(low)), math.floor(math.log2(high))))

    def equal_cost(self, low: float, high: float) -> float:
        """Density proportional to 1 / x^2: every factor of x takes the same total."""
        u = self.unit()
        return 1.0 / ((1 - u) / low + u / high)

    def choice(self, options: Sequence[Option]) -> Option:
        """One of the options, each as likely."""
        return options[self.integer(0, len(options) - 1)]

    def weighted(self, options: dict[Option, float]) -> Option:
        """One of the options, with probability proportional to its weight."""
        names = list(options)
        bounds = list(accumulate(options.values()))
        return names[min(bisect_right(bounds, self.unit() * bounds[-1]), len(names) - 1)]

    def seed(self) -> int:
        """A fresh seed."""
        return int(torch.randint(2**62, (), generator=self.generator))


def check_ranges(ranges: Any) -> None:
    """Checks a dataclass of ranges: pairs are ordered, shares are probabilities, sizes positive.

    Args:
        ranges: its tuples are pairs (low, high), its fields called ``..._share`` probabilities.

    Raises:
        ValueError: a pair is empty or reversed, or a number is out of its range.
    """
    for name, value in vars(ranges).items():
        if isinstance(value, tuple):
            numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in value)
            if len(value) != 2 or not numbers or not 0 <= value[0] <= value[1]:
                raise ValueError(
                    f"range {name} of {type(ranges).__name__} must be a pair (low, high) of finite "
                    f"numbers with 0 <= low <= high, but got {value}"
                )
        elif name.endswith("_share") and not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but got {value}")
        elif isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be zero or positive and finite, but got {value}")
