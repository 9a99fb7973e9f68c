"""Groups of inner runs in Ray actors, which Ray restarts where they fail.

What a group is depends on its seed and the actions taken in it alone. Every call says which groups
it means and what was decided in them so far: a worker that does not have a group, since it was
restarted or another one held it, draws it anew and replays its decisions. So a worker that is lost,
or stuck, costs time and changes nothing, and it does not matter which worker holds a group.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pacesetter.envs.ray.cluster import rounding_environment
from pacesetter.inner_models.lookup import require

DrawGroup = Callable[[int, int, int], Any]
"""Seed, episode and number to a group: what `pacesetter.envs.runs.draw_group` does."""
MOST_LOSSES = 3
"""A worker that is lost more often by the same piece of work is no accident."""
LATE = 10.0
"""A worker is late that takes so many times as long as the slowest other, or as it did last."""
SECONDS_BETWEEN_WARNINGS = 30.0
"""While workers are waited for that the cluster has not started."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers there are, and what each has to itself.

    Attributes:
        count: how many.
        threads: of torch, and CPUs, of each; None: one CPU, and torch as it is.
        gpus: share of a GPU of each, such as 0.25; or several.
        patience: seconds that a worker may be late by all that is known (see `LATE`, and that it
            may have been restarted) before the others take its groups over.
    """

    count: int
    threads: int | None = 1
    gpus: float = 0.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        for name in ("count", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of workers must be positive, but got {value}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(
                f"a worker has a share of a GPU, or whole ones, but gpus is {self.gpus}"
            )
        if not 0 < self.patience < math.inf:
            raise ValueError(
                "patience with workers must be a positive number of seconds, but got "
                f"{self.patience}"
            )


class GroupWorker:
    """What runs in an actor; a plain class that knows nothing of Ray.

    The environment consists of variables that torch reads late enough.
    """

    def __init__(
        self,
        draw: DrawGroup,
        *,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        os.environ.update(environment or {})
        if threads is not None:
            # Not at the top: a worker that trains nothing starts without it.
            import torch

            torch.set_num_threads(threads)
        self._draw = draw
        self._episode: tuple[int, int] | None = None
        self._groups: dict[int, Any] = {}
        self._taken: dict[int, int] = {}

    def advance(
        self, seed: int, episode: int, past: Mapping[int, Sequence[NDArray[Any]]]
    ) -> tuple[int, dict[int, Any]]:
        """Brings groups of an episode to where they are to be.

        Args:
            seed: of all episodes.
            episode: its number; groups of another one are forgotten.
            past: the actions of all decisions, (rows, 3) each, by group.

        Returns:
            The number of this process; and, by group, what came of the last decision, or the first
            features where there was none.
        """
        if self._episode != (seed, episode):
            self._groups.clear()  # the memory of the old ones is needed for the new
            self._episode = (seed, episode)
        latest: dict[int, Any] = {}
        for number, decisions in past.items():
            rest = decisions[-1:]
            if number not in self._groups or self._taken[number] != len(decisions) - 1:
                self._groups[number] = self._draw(seed, episode, number)
                latest[number] = self._groups[number].begin()
                rest = decisions
            for actions in rest:
                latest[number] = self._groups[number].step(actions)
            self._taken[number] = len(decisions)
        return os.getpid(), latest


class RemoteGroups:
    """The groups of one episode after another, spread over no more workers than groups.

    Calls of `begin` and `step` return at once; `collect` waits for what they set going.
    """

    def __init__(self, draw: DrawGroup, num_groups: int, *, workers: Workers) -> None:
        if workers.count > num_groups:
            raise ValueError(
                f"{num_groups} groups cannot be spread over {workers.count} workers: take fewer "
                "workers or more groups"
            )
        self._ray = require("ray", extra="ray")
        self._workers, self._num_groups = workers, num_groups
        actor = self._ray.remote(GroupWorker).options(
            num_cpus=workers.threads or 1,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=MOST_LOSSES,
            scheduling_strategy="SPREAD",
        )
        self._actors = [
            actor.remote(draw, threads=workers.threads, environment=rounding_environment())
            for _ in range(workers.count)
        ]
        self.processes: dict[int, int] = {}
        self._away: dict[int, Any] = {}  # late workers, each with the call that it has not answered
        self._took: dict[int, float] = {}  # seconds, of a worker's latest answer in this episode
        self._episode = (0, 0)
        self._since = self._asked = 0.0  # when the episode began, and when work was last asked for
        self._owner: list[int] = []
        self._past: list[list[NDArray[Any]]] = []
        self._calls: dict[Any, int] = {}

    @property
    def here(self) -> list[int]:
        """Workers that are not late."""
        return [worker for worker in range(len(self._actors)) if worker not in self._away]

    def begin(self, seed: int, episode: int) -> None:
        """Has the workers draw an episode's groups and train their first intervals."""
        self._away = {
            worker: call
            for worker, call in self._away.items()
            if not self._ray.wait([call], timeout=0)[0]
        }
        self._episode, self._past = (seed, episode), []
        self._since = time.monotonic()
        self._took.clear()
        here = self.here
        self._owner = [here[g * len(here) // self._num_groups] for g in range(self._num_groups)]
        self._ask(range(self._num_groups))

    def step(self, actions: Sequence[NDArray[Any]]) -> None:
        """Has the workers take one decision in every group; actions are (rows, 3) for each."""
        self._past.append(list(actions))
        self._ask(range(self._num_groups))

    def collect(self) -> list[Any]:
        """Waits; returns what the groups' methods return, one for each group.

        Raises:
            ChildProcessError: a worker was lost again and again.
        """
        found: dict[int, Any] = {}
        slowest = 0.0
        while self._calls:
            timeout = SECONDS_BETWEEN_WARNINGS
            if found:  # where nobody has answered yet, nobody is late
                timeout = max(0.0, self._asked + self._limit(slowest) - time.monotonic())
            done, _ = self._ray.wait(list(self._calls), timeout=timeout)
            if done:
                worker = self._calls.pop(done[0])
                found |= self._answer(done[0], worker)
                self._took[worker] = slowest = time.monotonic() - self._asked
            elif found:
                self._hand_over()
            else:
                self._warn_of_missing_workers()
        return [found[g] for g in range(self._num_groups)]

    def close(self) -> None:
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
        self._actors, self._calls, self._away, self._owner = [], {}, {}, []

    def _ask(self, groups: Sequence[int]) -> None:
        """Asks the owners of groups to bring them to where they are to be."""
        self._asked = time.monotonic()
        for worker in dict.fromkeys(self._owner[g] for g in groups):
            past = {g: [p[g] for p in self._past] for g in groups if self._owner[g] == worker}
            self._calls[self._actors[worker].advance.remote(*self._episode, past)] = worker

    def _answer(self, call: Any, worker: int) -> dict[int, Any]:
        errors = self._ray.exceptions
        where = f"episode {self._episode[1]}, decision {len(self._past)}"
        answer: dict[int, Any]
        try:
            process, answer = self._ray.get(call)
        except errors.RayTaskError as error:
            # What the group itself raised, as if it had been trained here.
            raise error.cause from error
        except (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError) as error:
            raise ChildProcessError(
                f"worker {worker} was lost {MOST_LOSSES + 1} times in {where} "
                f"({type(error).__name__}). If its machine had too little memory, take fewer "
                "workers on it or fewer siblings"
            ) from error
        if self.processes.setdefault(worker, process) != process:
            self.processes[worker] = process
            warnings.warn(
                f"worker {worker} was lost before the end of {where}; Ray has restarted it, and "
                "its runs were replayed from their seeds and the actions taken",
                RuntimeWarning,
                stacklevel=3,
            )
        return answer

    def _limit(self, slowest: float) -> float:
        """Seconds after which a silent worker is late; the slowest answer so far took `slowest`."""
        before = [self._took.get(worker, 0.0) for worker in self._calls.values()]
        replay = self._asked - self._since  # one that was restarted takes as long again
        return self._workers.patience + LATE * max(slowest, *before) + replay

    def _hand_over(self) -> None:
        """Has the others do the work of those that are late; what these answer is not needed."""
        late = set(self._calls.values())
        survivors = [worker for worker in self.here if worker not in late]
        if not survivors:
            self._asked = time.monotonic()
            return
        warnings.warn(
            f"workers {', '.join(map(str, sorted(late)))} have not answered for "
            f"{time.monotonic() - self._asked:.0f} seconds in episode {self._episode[1]}, decision "
            f"{len(self._past)}; the others take their runs over until they do",
            RuntimeWarning,
            stacklevel=3,
        )
        self._away |= {worker: call for call, worker in self._calls.items()}
        self._calls.clear()
        groups = [g for g, owner in enumerate(self._owner) if owner in late]
        for i, group in enumerate(groups):
            self._owner[group] = survivors[i % len(survivors)]
        self._ask(groups)

    def _warn_of_missing_workers(self) -> None:
        missing = [w for w in set(self._calls.values()) if w not in self.processes]
        if missing:
            have = self._ray.cluster_resources()
            warnings.warn(
                f"waiting for {len(missing)} of {len(self._actors)} workers, each with "
                f"{self._workers.threads or 1} CPUs and {self._workers.gpus:g} GPUs; the "
                f"cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g} in all",
                RuntimeWarning,
                stacklevel=3,
            )
