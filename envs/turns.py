"""What passes between groups of inner runs and whoever holds them; it needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pacesetter.inner_models.task import Task

FloatArray = NDArray[np.float64]


class Turn(NamedTuple):
    """What came of one decision of a group.

    Attributes:
        features: (rows, NUM_FEATURES) after it; zero where the group was over before.
        rewards: (rows,), zero before the horizon.
        over: whether the group's runs are at their end.
        infos: one for each row.
    """

    features: FloatArray
    rewards: FloatArray
    over: bool
    infos: list[dict[str, Any]]


class Group(Protocol):
    """Runs that are drawn together and decide together."""

    @property
    def tasks(self) -> list[Task]:
        """The task of each row."""

    def begin(self) -> FloatArray:
        """Trains the first interval; returns features of shape (rows, NUM_FEATURES)."""

    def turn(self, actions: NDArray[Any]) -> Turn:
        """Takes a decision in every row, (rows, 3) in [-1, 1], and trains the next interval."""


class GroupSource(Protocol):
    """Draws groups. It travels to other processes."""

    def draw(self, seed: int, episode: int, group: int) -> Group:
        """A group; equal arguments give equal groups, in every process."""
