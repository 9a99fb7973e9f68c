"""Units of work on a Ray cluster: flows hand them out, and take back what came of each.

All that is decided and written is decided and written here, by one process, in one thread; workers
compute. Ray runs a unit again where its worker or its machine was lost.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pacesetter.agent.runs.interruption import safe_point, stop_requested
from pacesetter.envs.ray.cluster import rounding_environment
from pacesetter.envs.ray.groups import Workers
from pacesetter.inner_models.engine.host import prepare_process
from pacesetter.inner_models.lookup import require

RETRIES = 3
"""How often a unit is run again whose worker died."""
SECONDS_BETWEEN_LOOKS = 0.5
"""At signals, while workers work."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Unit:
    """A call that can be made in any process, and made again.

    Attributes:
        name: for messages.
        function: of a module.
        args: what it is called with; what `RayPool.share` returned stands for what was shared.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]


Flow = Generator[Sequence[Unit], tuple[int, Any], Result]
"""Yields units to start, and is sent the number and the result of one that is over; see `each`."""


def each(units: Sequence[Unit], keep: Callable[[int, Any], None]) -> Flow[None]:
    """A flow that starts units side by side.

    Args:
        units: what to do.
        keep: is called with the number and the result of each as soon as it is over.
    """
    fresh = units
    for _ in units:
        number, result = yield fresh
        fresh = ()
        keep(number, result)


class RayPool:
    """Runs flows, all of them at a time, on the workers of a cluster.

    Args:
        workers: how many units at a time, and what each has to itself.
    """

    def __init__(self, workers: Workers) -> None:
        self._ray = require("ray", extra="ray")
        self._most = workers.count
        self._work = self._ray.remote(_work).options(
            num_cpus=workers.threads or 1,
            num_gpus=workers.gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )
        self._how = (workers.threads, rounding_environment())

    def share(self, value: object) -> Any:
        """Sends a value to the cluster once, for all units that have it among their `args`."""
        return self._ray.put(value)

    def run(self, flows: Sequence[Flow[Any]]) -> list[Any]:
        """Runs flows to their ends; returns what each returned.

        A signal to stop is heeded when the units that are under way are over and kept.

        Raises:
            ChildProcessError: the worker of a unit died again and again.
        """
        ends: list[Any] = [None] * len(flows)
        queue: deque[tuple[int, int, Unit]] = deque()
        running: dict[Any, tuple[int, int, Unit]] = {}

        def go_on(flow: int, sent: tuple[int, Any] | None) -> None:
            try:
                units = next(flows[flow]) if sent is None else flows[flow].send(sent)
            except StopIteration as end:
                ends[flow] = end.value
            else:
                queue.extend((flow, number, unit) for number, unit in enumerate(units))

        for flow in range(len(flows)):
            go_on(flow, None)
        while queue or running:
            if stop_requested():
                queue.clear()
            while queue and len(running) < self._most:
                entry = queue.popleft()
                unit = entry[2]
                running[self._work.remote(self._how, unit.function, *unit.args)] = entry
            if not running:
                break
            for ref in self._ray.wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)[0]:
                flow, number, unit = running.pop(ref)
                go_on(flow, (number, self._result(ref, unit)))
        safe_point()
        return ends

    def _result(self, ref: Any, unit: Unit) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from error
        except (
            *(errors.WorkerCrashedError, errors.NodeDiedError),
            *(errors.OutOfMemoryError, errors.ObjectLostError),
        ) as error:
            raise ChildProcessError(
                f"the worker of {unit.name!r} died {RETRIES + 1} times, for want of memory or "
                "because something in it crashes. Take fewer workers, or leave the arm out; what "
                "is over is kept"
            ) from error


def _work(
    how: tuple[int | None, Mapping[str, str]], function: Callable[..., Result], *args: Any
) -> Result:
    """Makes a call in a worker."""
    threads, environment = how
    os.environ.update(environment)
    prepare_process()
    if threads is not None:
        torch.set_num_threads(threads)
    return function(*args)
