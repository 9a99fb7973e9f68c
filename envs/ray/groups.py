"""Groups of inner runs in Ray actors: sent out, collected, and replayed where a worker fails.

What a group is depends on its seed and the actions taken in it alone. So a group whose worker is
lost, or stuck, costs time and changes nothing, and it does not matter which worker holds it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pacesetter.envs.ray.cluster import rounding_environment
from pacesetter.envs.ray.workers import ForgottenError, GroupWorker
from pacesetter.inner_models.lookup import require

if TYPE_CHECKING:
    from pacesetter.envs.turns import GroupSource

MOST_LOSSES = 3
"""A worker that is lost more often within one episode is no accident."""
LATE = 10.0
"""A worker is late that takes so many times as long as the slowest other, or as it did last."""
SECONDS_BETWEEN_TRIES = 0.2
"""While Ray is restarting a worker."""
SECONDS_BETWEEN_WARNINGS = 30.0
"""While workers that nobody can replace are waited for."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers there are, and what each has to itself.

    Attributes:
        count: how many.
        threads: of torch, and CPUs, of each; None: one CPU, and torch as it is.
        gpus: share of a GPU of each, such as 0.25; or several.
        patience: seconds that a lost worker, or one that is late by all that is known (`LATE`), is
            waited for before the others take its groups over.
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


class RemoteGroups:
    """The groups of one episode after another, spread over workers.

    Calls of `begin` and `take` return at once; `collect` waits for what they set going.

    Args:
        source: draws groups.
        num_groups: of every episode.
        workers: to spread them over; no more than there are groups.
    """

    def __init__(self, source: GroupSource, num_groups: int, *, workers: Workers) -> None:
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
            scheduling_strategy="SPREAD",
        )
        self._actors = [
            actor.remote(source, threads=workers.threads, environment=rounding_environment())
            for _ in range(workers.count)
        ]
        self._away: dict[int, Any] = {}  # workers, each with what it answers once it is back
        self._losses: Counter[int] = Counter()
        self._took: dict[int, float] = {}  # seconds, of a worker's latest answer in this episode
        self._seed = self._episode = 0
        self._since = self._asked = 0.0  # when the episode began, and when work was last asked for
        self._owner: list[int] = []
        self._past: list[list[NDArray[Any]]] = []
        self._waiting: dict[Any, int] = {}
        self._call_it_ready(range(workers.count))

    def begin(self, seed: int, episode: int) -> None:
        """Has the workers draw an episode's groups and train their first intervals."""
        self._welcome()
        self._seed, self._episode, self._past = seed, episode, []
        self._since = self._asked = time.monotonic()
        self._losses.clear()
        self._took.clear()
        here = self._here()
        self._owner = [here[g * len(here) // self._num_groups] for g in range(self._num_groups)]
        self._waiting = {
            self._actors[w].begin.remote(seed, episode, self._groups_of(w)): w for w in here
        }

    def take(self, actions: Sequence[NDArray[Any]]) -> None:
        """Has the workers take one decision in every group.

        Args:
            actions: (rows, 3), one for each group.
        """
        self._past.append(list(actions))
        self._asked = time.monotonic()
        self._waiting = {
            self._actors[w].take.remote({g: actions[g] for g in self._groups_of(w)}): w
            for w in dict.fromkeys(self._owner)
        }

    def collect(self) -> list[Any]:
        """Waits; returns what the workers' methods return, one for each group."""
        found: dict[int, Any] = {}
        slowest = 0.0
        while self._waiting:
            # Where nobody has answered yet, nobody is late.
            left = self._asked + self._limit(slowest) - time.monotonic() if found else None
            timeout = None if left is None else max(0.0, left)
            done, _ = self._ray.wait(list(self._waiting), timeout=timeout)
            if not done:
                self._relieve(time.monotonic() - self._asked)
                continue
            worker = self._waiting.pop(done[0])
            try:
                found |= self._get(done[0])
            except self._lost as error:
                self._replay(worker, error)
            else:
                self._took[worker] = slowest = time.monotonic() - self._asked
        return [found[g] for g in range(self._num_groups)]

    def tasks(self) -> list[Any]:
        """The task of each row; not while something is to be collected."""
        held: dict[int, list[Any]] = {}
        for w in dict.fromkeys(self._owner):
            held |= self._get(self._actors[w].tasks.remote())
        return [task for g in range(self._num_groups) for task in held[g]]

    def close(self) -> None:
        """Ends the workers."""
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
        self._actors, self._waiting, self._away, self._owner = [], {}, {}, []

    # -- workers that come and go ------------------------------------------------------------

    @property
    def _lost(self) -> tuple[type[Exception], ...]:
        """What is raised for a call whose worker, or whose result, is gone."""
        errors = self._ray.exceptions
        return (
            *(errors.RayActorError, errors.NodeDiedError),
            *(errors.OutOfMemoryError, errors.ObjectLostError, ForgottenError),
        )

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            # What the group itself raised, as if it had been trained here.
            raise error.cause from error

    def _here(self) -> list[int]:
        return [w for w in range(len(self._actors)) if w not in self._away]

    def _groups_of(self, worker: int) -> list[int]:
        return [g for g, owner in enumerate(self._owner) if owner == worker]

    def _replay(self, worker: int, error: Exception) -> None:
        """Has the groups of a lost worker brought to where they were: there, or by the others."""
        # Whatever else it was asked for is lost as well, and what it had answered is forgotten.
        self._waiting = {ref: w for ref, w in self._waiting.items() if w != worker}
        self._losses[worker] += 1
        reason = type(error).__name__
        where = f"episode {self._episode}, decision {len(self._past)}"
        if self._losses[worker] > MOST_LOSSES:
            raise ChildProcessError(
                f"worker {worker} was lost {self._losses[worker]} times in {where} ({reason}). "
                "If its machine had too little memory, take fewer workers on it or fewer siblings"
            )
        warnings.warn(
            f"worker {worker} was lost in {where} ({reason}); its runs are replayed from their "
            "seeds and the actions taken",
            RuntimeWarning,
            stacklevel=3,
        )
        if self._is_back(worker):
            self._hand_over(worker, [worker])
            return
        warnings.warn(
            f"worker {worker} has not come back within {self._workers.patience:g} seconds; "
            "the others take its runs over until it does",
            RuntimeWarning,
            stacklevel=3,
        )
        self._hand_over(worker, self._here())

    def _limit(self, slowest: float) -> float:
        """Seconds after which those that have not answered are late.

        Args:
            slowest: seconds that the slowest answer took so far.
        """
        before = [self._took.get(worker, 0.0) for worker in self._waiting.values()]
        return self._workers.patience + LATE * max(slowest, *before)

    def _relieve(self, seconds: float) -> None:
        """Has the others do the work of those that are late; what these answer is not needed."""
        late = sorted(set(self._waiting.values()))
        heirs = [worker for worker in self._here() if worker not in late]
        if not heirs:
            self._asked = time.monotonic()
            return
        warnings.warn(
            f"workers {', '.join(map(str, late))} have not answered for {seconds:.0f} seconds in "
            f"episode {self._episode}, decision {len(self._past)}; the others take their runs over "
            "until they do",
            RuntimeWarning,
            stacklevel=3,
        )
        self._waiting.clear()
        for worker in late:
            self._away[worker] = self._actors[worker].ready.remote()
            self._hand_over(worker, heirs)

    def _hand_over(self, worker: int, heirs: Sequence[int]) -> None:
        """Has the groups of a worker brought to where they were, by others or by itself."""
        groups, self._asked = self._groups_of(worker), time.monotonic()
        for i, group in enumerate(groups):
            self._owner[group] = heirs[i % len(heirs)]
        for heir in heirs:
            past = {g: [p[g] for p in self._past] for g in groups if self._owner[g] == heir}
            if past:
                call = self._actors[heir].replay.remote(self._seed, self._episode, past)
                self._waiting[call] = heir
                self._took[heir] = self._asked - self._since  # a replay takes as long again

    def _is_back(self, worker: int) -> bool:
        """Whether Ray has restarted a worker in time; where it was the last one, it has to."""
        end = time.monotonic() + self._workers.patience
        while True:
            answer = self._actors[worker].ready.remote()
            done, _ = self._ray.wait([answer], timeout=max(0.0, end - time.monotonic()))
            if not done:
                break
            try:
                self._ray.get(answer)
                return True
            except self._lost:
                time.sleep(SECONDS_BETWEEN_TRIES)
        self._away[worker] = answer
        if self._here():
            return False
        self._call_it_ready([worker])
        return True

    def _welcome(self) -> None:
        """Takes those back that have been restarted since the last episode."""
        for worker, answer in list(self._away.items()):
            if self._ray.wait([answer], timeout=0)[0]:
                try:
                    self._ray.get(answer)
                except self._lost:
                    self._away[worker] = self._actors[worker].ready.remote()
                else:
                    del self._away[worker]

    def _call_it_ready(self, workers: Iterable[int]) -> None:
        """Waits for workers however long it takes, and says so."""
        pending = {self._actors[w].ready.remote(): w for w in workers}
        while pending:
            done, _ = self._ray.wait(list(pending), timeout=SECONDS_BETWEEN_WARNINGS)
            for answer in done:
                worker = pending.pop(answer)
                try:
                    self._ray.get(answer)
                except self._lost:
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    pending[self._actors[worker].ready.remote()] = worker
                else:
                    self._away.pop(worker, None)
            if not done:
                have = self._ray.cluster_resources()
                warnings.warn(
                    f"waiting for {len(pending)} of {len(self._actors)} workers, each with "
                    f"{self._workers.threads or 1} CPUs and {self._workers.gpus:g} GPUs; the "
                    f"cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g} in all",
                    RuntimeWarning,
                    stacklevel=4,
                )
