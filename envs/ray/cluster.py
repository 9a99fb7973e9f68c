"""The connection to a Ray cluster: one of this machine's own, or one that is there already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pacesetter.inner_models.lookup import require

LOCAL, AUTO = "local", "auto"
"""Addresses: a cluster of this machine that ends with this process; one that is found here."""
SECONDS_TO_CONNECT = 10.0
"""Ray itself tries for minutes to reach a machine that is not there."""
ENVIRONMENT = ("MKL_CBWR",)
"""Variables that decide how numbers round: workers on other machines take the driver's."""

_SETTINGS = {
    # Nobody is told of a run unless its user asks for it.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker without a GPU sees those of its machine, as will be Ray's own default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What Ray reads from the environment when it is imported and started."""


@contextmanager
def connected(
    address: str | None = None,
    *,
    cpus: int = 1,
    gpus: float = 0.0,
    store: int | None = None,
) -> Iterator[Any]:
    """Connects to a cluster, and lets go of it afterwards.

    Where this process is connected already, that connection is used and stays.

    Args:
        address: ``host:port`` of its head, or ``"auto"`` for the one on this machine; None: what
            the environment variable ``RAY_ADDRESS`` names, or else `LOCAL`.
        cpus: that are needed; a cluster of this machine alone has as many as there are cores, and
            more where that is not enough, as its user wishes.
        gpus: that are needed.
        store: bytes of shared memory of a cluster of this machine alone; None: what Ray takes.

    Yields:
        The module ``ray``.

    Raises:
        ImportError: Ray is not installed.
        TimeoutError: a cluster of this machine alone has not started in time.
        ValueError: that is no address, there is no cluster, or this machine has too few GPUs.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    with _own_signals():
        _start(ray, address, cpus=cpus, store=store)
    try:
        have = ray.cluster_resources().get("GPU", 0)
        if address == LOCAL and gpus > have + 1e-9:
            raise ValueError(
                f"workers need {gpus:g} GPUs in all, but Ray has found {have:g} on this machine"
            )
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, address: str, *, cpus: int, store: int | None) -> None:
    if address == LOCAL:
        try:
            ray.init(
                LOCAL,
                num_cpus=max(available_cores(), cpus),
                object_store_memory=store,
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray's own type for it is just that
            if "timed out" not in str(error):
                raise
            raise TimeoutError(
                "Ray has not started within half a minute: this machine is too busy. Try again, or "
                "start it once with `ray start --head` and give its address"
            ) from error
        return
    try:
        if address != AUTO:
            _check_reachable(address)
        ray.init(address, logging_level=logging.ERROR)
    except OSError as error:
        raise ValueError(
            f"there is no Ray cluster at {address}: {str(error).rstrip('.')}. Start one with "
            "`ray start --head`"
        ) from error


def _check_reachable(address: str) -> None:
    """Refuses an address where nothing listens (OSError), or that is none (ValueError)."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
        raise ValueError(
            f"expected the address of a Ray cluster, host:port such as 10.0.0.1:6379, {AUTO} or "
            f"{LOCAL}, but got {address!r}"
        )
    socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces by one of its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def rounding_environment() -> dict[str, str]:
    """Those of `ENVIRONMENT` that are set here."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
