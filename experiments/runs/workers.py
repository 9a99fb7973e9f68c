"""Worker processes for runs that cannot be batched: one run each at a time, one thread each.

What travels is what `multiprocessing` makes of it, from memory to memory. A task that cannot be
sent to another process, such as one made of lambdas, is trained in this one instead. A worker that
dies takes no other run along.
"""

from __future__ import annotations

import copyreg
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, lru_cache
from io import BytesIO
from multiprocessing import get_context, resource_tracker
from multiprocessing.reduction import ForkingPickler
from typing import Any
from weakref import WeakSet

import torch

from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.runs.outcomes import RunOutcome, crashed, why
from pacesetter.experiments.runs.plain import run_plain
from pacesetter.experiments.rivals.schedules import number
from pacesetter.inner_models.engine.host import prepare_process
from pacesetter.inner_models.task import SplitName, Task

Job = tuple[Configured, int]
"""A setting and a seed."""


def run_plain_safely(
    task: Task,
    configured: Configured,
    *,
    seed: int,
    num_intervals: int,
    evaluate: Sequence[SplitName],
    device: torch.device | str = "cpu",
) -> RunOutcome:
    """`run_plain`, with the outcome of a crashed run where it raises."""
    try:
        return run_plain(
            task,
            configured,
            seed=seed,
            num_intervals=num_intervals,
            evaluate=evaluate,
            device=device,
        )
    except Exception as error:
        return _crashed(task, (configured, seed), why(error), evaluate)


def run_jobs(
    task: Task,
    jobs: Sequence[Job],
    *,
    workers: int,
    num_intervals: int,
    evaluate: Sequence[SplitName],
    device: torch.device | str = "cpu",
) -> PendingRuns:
    """Starts runs in worker processes.

    Args:
        task: what all of them train.
        jobs: what to run.
        workers: processes; 1: none, all runs in this process.
        num_intervals: see `run_plain`.
        evaluate: see `run_plain`.
        device: where the runs live.

    Returns:
        What to ask for the outcomes, once this process has done what it has to do itself.
    """
    options = {"num_intervals": num_intervals, "evaluate": tuple(evaluate), "device": device}
    return PendingRuns(task, jobs, workers=workers, options=options)


class PendingRuns:
    """Runs that are under way; see `run_jobs`."""

    def __init__(
        self, task: Task, jobs: Sequence[Job], *, workers: int, options: dict[str, Any]
    ) -> None:
        self._task, self._jobs, self._options = task, list(jobs), options
        self._broken = False
        self._parcels = [None] * len(jobs) if workers < 2 else _parcels(task, jobs, options)
        self._futures: list[Future[RunOutcome | None] | None] = [
            None if parcel is None else _submit(workers, parcel) for parcel in self._parcels
        ]

    def outcomes(self) -> list[RunOutcome]:
        """Waits; outcomes in the order of the jobs."""
        try:
            return [self._outcome(i) for i in range(len(self._jobs))]
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Takes back what has not begun; where Ctrl-C is the reason, ends all of it at once."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            _abandon()
            return
        for future in self._futures:
            if future is not None:
                future.cancel()

    def _outcome(self, i: int) -> RunOutcome:
        future, (configured, seed) = self._futures[i], self._jobs[i]
        found = None
        if future is not None:
            try:
                found = future.result()
            except BrokenProcessPool:
                if not self._broken:
                    self._broken = True
                    _pool.cache_clear()
                found = self._alone(i)
        if found is None:
            found = run_plain_safely(self._task, configured, seed=seed, **self._options)
        return found

    def _alone(self, i: int) -> RunOutcome | None:
        """Runs a job with no other beside it: a worker died, and maybe not of this one."""
        parcel = self._parcels[i]
        assert parcel is not None
        try:
            return _submit(1, parcel).result()
        except BrokenProcessPool:
            _pool.cache_clear()
            reason = "its worker process died, killed for want of memory or crashed"
            return _crashed(self._task, self._jobs[i], reason, self._options["evaluate"])


def _parcels(
    task: Task, jobs: Sequence[Job], options: dict[str, Any]
) -> list[tuple[bytes, bytes] | None]:
    """What all jobs share and what they do not, as bytes; None: it cannot leave the process."""
    whole = _packed((task, options))
    parts = [_packed(job) for job in jobs]
    return [None if whole is None or part is None else (whole, part) for part in parts]


def _packed(value: object) -> bytes | None:
    buffer = BytesIO()
    pickler = ForkingPickler(buffer)
    # Not torch's ways of sharing memory, which hold an open file per tensor of every job.
    pickler.dispatch_table = copyreg.dispatch_table
    try:
        pickler.dump(value)
    except Exception:  # which error says so depends on what is in the way
        return None
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _unpacked(whole: bytes) -> Any:
    return ForkingPickler.loads(whole)


def _work(whole: bytes, part: bytes) -> RunOutcome | None:
    """Runs a job in a worker; None: it cannot be loaded here, where other modules are known."""
    try:
        task, options = _unpacked(whole)
        configured, seed = ForkingPickler.loads(part)
    except Exception:
        return None
    return run_plain_safely(task, configured, seed=seed, **options)


def _submit(workers: int, parcel: tuple[bytes, bytes]) -> Future[RunOutcome | None]:
    """Hands a job to the pool, which starts its workers when it has one."""
    # A terminal sends Ctrl-C to all processes; it is for the first one to say when to stop.
    # Workers inherit what is blocked, from their first instruction on. The tracker comes before
    # them: starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return _pool(workers).submit(_work, *parcel)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    prepare_process()
    torch.set_num_threads(1)


_pools: WeakSet[ProcessPoolExecutor] = WeakSet()


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """Workers start slowly, so that they are kept from one call to the next."""
    # Not forked: a copy of a process with threads may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    _pools.add(pool)
    return pool


def _abandon() -> None:
    """Ends all workers, whatever they are doing: this process is about to end.

    It would otherwise wait for them, and for jobs to be read that nobody reads any more.
    """
    for pool in list(_pools):
        for process in list((pool._processes or {}).values()):
            process.kill()
        queue = getattr(pool, "_call_queue", None)
        if queue is not None:
            queue.cancel_join_thread()
    _pool.cache_clear()


def _crashed(task: Task, job: Job, reason: str, evaluate: Sequence[SplitName]) -> RunOutcome:
    configured, seed = job
    hyper = configured.baseline.hyperparameters(configured.setting, task)
    return crashed(
        configured.baseline.name,
        dict(configured.setting),
        seed=seed,
        lr=number(hyper, "lr", float("nan")),
        reason=reason,
        evaluate=evaluate,
    )
