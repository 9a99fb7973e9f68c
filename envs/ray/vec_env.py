"""The vectorised environment for meta-training, its groups spread over the workers of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacesetter.envs.actions import FloatArray
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.ray.workers import RemoteGroups, Workers
from pacesetter.envs.runs import GroupStep, draw_group
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.task import Task, TaskFamily


class RayScheduleVecEnv(ScheduleVecEnv):
    """A `ScheduleVecEnv` whose groups live in Ray actors, with the same episodes.

    Workers train side by side; all wait for the slowest once per decision. One that is lost is
    restarted, and its groups are replayed. Rows are the same numbers as in `ScheduleVecEnv`
    wherever torch rounds alike: on the same kind of CPU with the same number of threads, for any
    number of workers.

    With ``prefetch``, the step that ends an episode returns at once with observations that are
    still zero, and workers draw the next groups and train their first intervals while the learner
    learns. `await_reset` fills the very array in; it has to be called before the learner looks.

    Args:
        families: as in `ScheduleVecEnv`.
        config: as there; its device is that of the workers.
        workers: to spread groups over.
        prefetch: whether to return before the next episode has begun.
        **settings: the other arguments of `ScheduleVecEnv`.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: this process is not connected to a cluster.
        ValueError: as in `ScheduleVecEnv`, or there are more workers than groups.
    """

    def __init__(
        self,
        families: Sequence[str | TaskFamily],
        config: EnvConfig | None = None,
        *,
        workers: Workers,
        prefetch: bool = False,
        **settings: Any,
    ) -> None:
        ray = require("ray", extra="ray")
        if not ray.is_initialized():
            raise RuntimeError(
                "not connected to a Ray cluster: call ray.init(), or use "
                "pacesetter.envs.ray.cluster.connected()"
            )
        super().__init__(families, config, **settings)
        self._workers, self._prefetch = workers, prefetch
        self._remote: RemoteGroups | None = None
        self._promised: NDArray[np.float32] | None = None

    @property
    def tasks(self) -> list[Task]:
        """The task of each row, drawn once more."""
        config, episode = replace(self.config, device="cpu"), self.next_episode - 1
        groups = range(config.num_groups if self._over else 0)
        drawn = [draw_group(self.families, config, self._seed, episode, g) for g in groups]
        return [task for group in drawn for task in group.tasks]

    def _draw(self, episode: int) -> None:
        if self._remote is None:
            self._remote = RemoteGroups(
                self._draw_group, self.config.num_groups, workers=self._workers
            )
        self._promised = None
        self._remote.begin(self._seed, episode)

    def _begin(self) -> list[FloatArray]:
        assert self._remote is not None
        return self._remote.collect()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Sends the actions, (num_envs, 3), to the workers.

        Raises:
            RuntimeError: they answer observations that were promised and have not come.
        """
        super().step_async(actions)
        if self._promised is not None:
            raise RuntimeError("call await_reset() before acting on the first observations")
        if self._remote is not None and self._over:
            self._remote.step(np.split(self._actions, self.config.num_groups))

    def _step_groups(self, parts: Sequence[NDArray[Any]]) -> list[GroupStep]:
        assert self._remote is not None
        return self._remote.collect()

    def _next_reset(self) -> NDArray[np.float32]:
        if not self._prefetch:
            return self.reset()
        self._start_episode()
        shape = self.observation_space.shape
        assert shape is not None
        self._promised = np.zeros((self.num_envs, *shape), dtype=np.float32)
        return self._promised

    def await_reset(self) -> None:
        """Waits for the next episode to begin, and fills in the observations that were promised."""
        if self._promised is not None:
            self._promised[:] = np.concatenate(self._begin())
            self._promised = None

    def close(self) -> None:
        super().close()
        if self._remote is not None:
            self._remote.close()
        self._remote = self._promised = None
