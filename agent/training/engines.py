"""Where the inner runs of meta-training live: in this process, or in the workers of Ray.

Either way the learner stays in one place and sees one `ScheduleVecEnv`, with the same episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from pacesetter.envs.ray.cluster import connected
from pacesetter.envs.ray.workers import Workers

if TYPE_CHECKING:
    from pacesetter.agent.training.config import TrainConfig
    from pacesetter.envs.config import EnvConfig
    from pacesetter.envs.vec_env import ScheduleVecEnv
    from pacesetter.inner_models.task import TaskFamily

MakeEnv: TypeAlias = "Callable[..., ScheduleVecEnv]"
"""Makes an environment of families, an `EnvConfig` and ``seed=``: `ScheduleVecEnv` is one."""

STORE = 2**28
"""Bytes of shared memory on a machine of one's own: what travels is small."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """How work is spread over a Ray cluster. It changes no result but by rounding.

    Attributes:
        workers: how many; None: as many as the cluster has cores or shares of GPUs for, and as
            there is work for.
        gpus_per_worker: share of a GPU that each has to itself, such as 0.25.
        threads: of each worker; None: for a single one as many as in this process, with which it
            computes the same numbers as this process would; else 1.
        address: of the cluster; see `pacesetter.envs.ray.cluster.connected`.
        patience: seconds that a lost or stuck worker is waited for before the others take its
            groups over; of no use to comparisons, whose lost units Ray runs again.

    Raises:
        ValueError: a number is out of range.
    """

    workers: int | None = None
    gpus_per_worker: float = 0.0
    threads: int | None = None
    address: str | None = None
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be a positive number, but got {self.workers}")
        self._each(1)

    def _each(self, count: int) -> Workers:
        threads = self.threads
        if threads is None:
            threads = torch.get_num_threads() if self.workers == 1 else 1
        return Workers(
            count=count, threads=threads, gpus=self.gpus_per_worker, patience=self.patience
        )

    @contextmanager
    def opened(self, *, most: int | None = None, store: int | None = None) -> Iterator[Workers]:
        """Connects to the cluster.

        Args:
            most: pieces of work at a time; no more workers are of use.
            store: see `connected`.

        Yields:
            The workers that there are to be.

        Raises:
            ImportError: Ray is not installed.
            ValueError: there is no cluster at the address, or this machine has too few GPUs.
        """
        if self.workers is not None and most is not None and self.workers > most:
            raise ValueError(
                f"{most} groups of runs cannot be spread over {self.workers} workers: take fewer, "
                "or more groups (--groups)"
            )
        each = self._each(1)
        cpus = (self.workers or 1) * (each.threads or 1)
        gpus = (self.workers or 1) * each.gpus
        with connected(self.address, cpus=cpus, gpus=gpus, store=store) as ray:
            count = self.workers
            if count is None:
                have = ray.cluster_resources()
                count = int(have.get("CPU", 1) // (each.threads or 1))
                if each.gpus:
                    count = min(count, int(have.get("GPU", 0) / each.gpus + 1e-9))
                count = max(1, count if most is None else min(count, most))
            yield self._each(count)

    @contextmanager
    def environments(
        self, config: TrainConfig, *, device: torch.device | str = "cpu"
    ) -> Iterator[MakeEnv]:
        """Connects to the cluster, and gives what makes the environment of a meta-training.

        Args:
            config: of the training.
            device: where inner runs live in the workers; their share of a GPU is ``"cuda"``.

        Raises:
            ImportError: Ray is not installed.
            ValueError: see `opened`; more workers than groups; or the device and the share of a
                GPU do not go together.
        """
        # Not at the top: comparisons are spread too, and need neither gymnasium nor SB3.
        from pacesetter.envs.ray.vec_env import RayScheduleVecEnv

        self.check_device(device)
        with self.opened(most=config.env.num_groups, store=STORE) as workers:
            made: list[ScheduleVecEnv] = []

            def make(
                families: Sequence[str | TaskFamily], env: EnvConfig, *, seed: int
            ) -> ScheduleVecEnv:
                env = replace(env, device=device)
                made.append(
                    RayScheduleVecEnv(families, env, seed=seed, workers=workers, prefetch=True)
                )
                return made[-1]

            try:
                yield make
            finally:
                for env in made:
                    env.close()

    def check_device(self, device: torch.device | str) -> None:
        """Refuses a device that workers cannot have.

        Raises:
            ValueError: a GPU without a share of one, a share without a GPU, or a numbered GPU.
        """
        kind = torch.device(device)
        if kind.type == "cuda" and kind.index is not None:
            raise ValueError(f"Ray chooses the GPU of a worker: give cuda, not {device}")
        if (kind.type == "cuda") != (self.gpus_per_worker > 0):
            raise ValueError(
                f"workers have {self.gpus_per_worker:g} GPUs each and are to use {device}: a GPU "
                "needs both --device cuda and --gpus-per-worker, such as 0.5"
            )
