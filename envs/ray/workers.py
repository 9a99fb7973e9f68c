"""What runs in a Ray actor: groups of inner runs, drawn, trained and, where need be, replayed.

A plain class that knows nothing of Ray, so that tests can call it in their own process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pacesetter.inner_models.engine.host import prepare_process

if TYPE_CHECKING:
    from pacesetter.envs.turns import FloatArray, Group, GroupSource, Turn


class ForgottenError(LookupError):
    """A worker was asked to go on with groups that it does not have: it has been restarted."""


class GroupWorker:
    """Holds the groups that it was given of one episode.

    Args:
        source: draws groups.
        threads: of torch; None: as they are.
        environment: variables that torch reads late enough.
    """

    def __init__(
        self,
        source: GroupSource,
        *,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        os.environ.update(environment or {})
        prepare_process()
        if threads is not None:
            # Not at the top: a worker that trains nothing starts without it.
            import torch

            torch.set_num_threads(threads)
        self._source = source
        self._groups: dict[int, Group] = {}

    def ready(self) -> int:
        """Says that it is there, by the number of its process."""
        return os.getpid()

    def begin(self, seed: int, episode: int, groups: Sequence[int]) -> dict[int, FloatArray]:
        """Draws groups of an episode, forgets all others, and trains their first intervals.

        Args:
            seed: of all episodes.
            episode: its number.
            groups: their numbers.

        Returns:
            Features, (rows, NUM_FEATURES), by group.
        """
        self._groups.clear()  # the memory of the old ones is needed for the new
        for group in groups:
            self._groups[group] = self._source.draw(seed, episode, group)
        return {group: runs.begin() for group, runs in self._groups.items()}

    def take(self, actions: Mapping[int, NDArray[Any]]) -> dict[int, Turn]:
        """Takes one decision in some groups.

        Args:
            actions: (rows, 3), by group.

        Raises:
            ForgottenError: a group is not here.
        """
        missing = [group for group in actions if group not in self._groups]
        if missing:
            raise ForgottenError(f"it was restarted and no longer has groups {missing}")
        return {group: self._groups[group].turn(part) for group, part in actions.items()}

    def replay(
        self, seed: int, episode: int, past: Mapping[int, Sequence[NDArray[Any]]]
    ) -> dict[int, FloatArray | Turn]:
        """Brings groups that were lost elsewhere to where they were, next to those held here.

        Args:
            seed: of all episodes.
            episode: its number.
            past: the actions of every decision taken, by group.

        Returns:
            What came of the last decision; where there was none, what `begin` returns.
        """
        latest: dict[int, FloatArray | Turn] = {}
        for group, decisions in past.items():
            runs = self._groups[group] = self._source.draw(seed, episode, group)
            latest[group] = runs.begin()
            for actions in decisions:
                latest[group] = runs.turn(actions)
        return latest

    def tasks(self) -> dict[int, list[Any]]:
        """The task of each row, by group."""
        return {group: runs.tasks for group, runs in self._groups.items()}
