"""Execution of runs: in this process, in worker processes of joblib's, or on a Ray cluster.

All that is decided and written is decided and written by this process; workers only compute. Where
a worker dies, what it did is run once more by itself, in ever smaller parts; only what kills its
worker again counts as crashed.
"""

from __future__ import annotations

import os
import platform
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pacesetter.agent.policy.policy import library_versions
from pacesetter.agent.runs.interruption import safe_point, stop_requested
from pacesetter.agent.training.engines import RayEngine
from pacesetter.envs.ray.cluster import rounding_environment
from pacesetter.envs.ray.workers import Workers
from pacesetter.inner_models.engine.host import prepare_process
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.task import Task

RETRIES = 3
"""How often Ray runs a job again whose worker, or whose machine, was lost."""
DIED = "its worker process died, for want of memory or because something in it crashes"


class Work(Protocol):
    """What a job does, and what counts where it kills its worker; see `matrix.RunGroup`."""

    def run(self, task: Any) -> Any:
        """Does it; may be called in another process, and more than once."""

    def halves(self) -> Sequence[Work]:
        """Parts to run by themselves, which return lists; none where it cannot be divided."""

    def crashed(self, task: Any, reason: str) -> Any:
        """The result where it cannot be done."""


@dataclass(frozen=True)
class Job:
    """A piece of work on a task that any process can do; a cluster gets each task once."""

    name: str
    work: Work
    task: Task | None


class Execution:
    """Runs jobs one after another, in this process."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Runs jobs; yields number and result of each as soon as it is over.

        A signal to stop is heeded, by `Stopped`, when all that has begun is over and yielded.
        """
        for number, job in enumerate(jobs):
            yield number, job.work.run(job.task)
            safe_point()

    def close(self, *, kill: bool = False) -> None:
        """Lets go of all workers; `kill`: whatever they are doing."""


class Spread(Execution):
    """Runs jobs in workers, `count` at a time."""

    lost: tuple[type[Exception], ...] = (BrokenExecutor,)
    """Errors that say that a worker died."""

    def __init__(self, count: int) -> None:
        self._count = count

    def submit(self, job: Job) -> Future[Any]:
        raise NotImplementedError

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        waiting, failed = deque(range(len(jobs))), list[int]()
        running: dict[Future[Any], int] = {}
        while running or (waiting and not stop_requested()):
            while waiting and not failed and len(running) < self._count and not stop_requested():
                number = waiting.popleft()
                try:
                    running[self.submit(jobs[number])] = number
                except Exception:  # it cannot be sent, or a worker has just died
                    failed.append(number)
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                number = running.pop(future)
                if future.exception() is None:
                    yield number, future.result()
                else:
                    failed.append(number)
            while failed and not running and not stop_requested():
                number = failed.pop()
                yield number, self._alone(jobs[number])
        safe_point()

    def _alone(self, job: Job) -> Any:
        """Runs a job with no other beside it: one of them has killed its worker."""
        try:
            return self.submit(job).result()
        except self.lost:
            halves = job.work.halves()
            if not halves:
                return job.work.crashed(job.task, DIED)
            return [r for half in halves for r in self._alone(replace(job, work=half))]
        except Exception:  # it cannot be sent to another process, or be loaded there
            return job.work.run(job.task)


class LocalSpread(Spread):
    """Runs jobs in processes of this machine, one thread each."""

    _pool: Any = None

    def submit(self, job: Job) -> Future[Any]:
        """The workers are started at the first job, and after a death."""
        loky = require("joblib.externals.loky", extra="compare")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._pool = loky.get_reusable_executor(
            self._count,
            timeout=300,
            # A terminal sends Ctrl-C to all processes; this one says when to stop.
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
            env={"OMP_WAIT_POLICY": "PASSIVE", **threads},
        )
        future: Future[Any] = self._pool.submit(_run, job.work, job.task, 1, {})
        return future

    def close(self, *, kill: bool = False) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=kill)


class RaySpread(Spread):
    """Runs jobs on a cluster; not by joblib's backend, which gives results when all are over."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers.count)
        self._ray = require("ray", extra="ray")
        errors = self._ray.exceptions
        self.lost = (
            *(errors.WorkerCrashedError, errors.NodeDiedError),
            *(errors.OutOfMemoryError, errors.ObjectLostError),
        )
        self._threads, self._tasks = workers.threads, dict[int, Any]()
        self._run = self._ray.remote(_run).options(
            num_cpus=workers.threads or 1,
            num_gpus=workers.gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )

    def submit(self, job: Job) -> Future[Any]:
        if id(job.task) not in self._tasks:
            self._tasks[id(job.task)] = self._ray.put(job.task), job.task
        task = self._tasks[id(job.task)][0]
        given = (job.work, task, self._threads, rounding_environment())
        future: Future[Any] = self._run.remote(*given).future()
        return future


def _run(work: Work, task: Task | None, threads: int | None, environment: Mapping[str, str]) -> Any:
    os.environ.update(environment)
    prepare_process()
    if threads is not None:
        torch.set_num_threads(threads)
    return work.run(task)


@contextmanager
def opened(*, jobs: int = 1, engine: RayEngine | None = None) -> Iterator[Execution]:
    """The execution on a cluster or by `jobs` processes, here; its workers end with the block."""
    if engine is not None:
        with engine.opened() as workers:
            yield RaySpread(workers)
        return
    execution = Execution() if jobs == 1 else LocalSpread(jobs)
    try:
        yield execution
    except BaseException:
        execution.close(kill=True)
        raise
    execution.close()


def describe_environment(device: str = "cpu") -> dict[str, str]:
    """Versions and machine, by name, as reports print them."""
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    where = device
    # Not here, perhaps, but where the workers are.
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "libraries": f"Python {platform.python_version()}, {versions}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads",
        "device": where,
    }


def check_device(name: str) -> torch.device:
    """A device by its name, such as ``"cuda:1"``; ValueError where it cannot be used here.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        # The one test that holds for every kind of device: put something there.
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0][:120]
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}); 'cpu' always can"
        ) from error
    return device
