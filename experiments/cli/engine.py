"""Options that say where the work of a command is done: in this process, or on a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pacesetter.agent.training.config import TrainConfig
    from pacesetter.agent.training.engines import MakeEnv, RayEngine

_ONLY_RAY = ("workers", "threads_per_worker", "gpus_per_worker", "address", "patience")


def add_engine_options(parser: argparse.ArgumentParser, *, episodes: bool = False) -> None:
    """Adds ``--engine`` and what belongs to it, in a group of their own.

    Args:
        parser: of the command.
        episodes: whether workers hold groups of runs, which others can take over.
    """
    group = parser.add_argument_group("where the work is done")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: in this process; ray: in workers on one machine or many, with the same "
        "result but for rounding (docs/scale-out.md)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="Ray workers (default: one for each core, as far as there is work)",
    )
    group.add_argument(
        "--threads-per-worker",
        type=int,
        metavar="N",
        help="threads, and CPUs, of each (default: 1; of a single worker, those of this process)",
    )
    group.add_argument(
        "--gpus-per-worker",
        type=float,
        metavar="F",
        help="share of a GPU of each, such as 0.25, for --device cuda (default: none)",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster to connect to (default: $RAY_ADDRESS, or else one of this machine alone)",
    )
    if episodes:
        group.add_argument(
            "--patience",
            type=float,
            metavar="SECONDS",
            help="how long a worker that is lost or stuck is waited for before others take its "
            "runs over (default: 60)",
        )


def engine_of(args: argparse.Namespace) -> RayEngine | None:
    """The engine that the arguments stand for; None: this process.

    Raises:
        ImportError: Ray is asked for and not installed.
        ValueError: an option of Ray's without Ray, or a number out of range.
    """
    given = [name for name in _ONLY_RAY if getattr(args, name, None) is not None]
    if args.engine == "local":
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is of use with --engine ray only")
        return None
    from pacesetter.inner_models.lookup import require

    require("ray", extra="ray")
    from pacesetter.agent.training.engines import RayEngine

    engine = RayEngine(
        workers=args.workers,
        threads=args.threads_per_worker,
        gpus_per_worker=args.gpus_per_worker or 0.0,
        address=args.address,
    )
    patience = getattr(args, "patience", None)
    return engine if patience is None else replace(engine, patience=patience)


@contextmanager
def environments(
    args: argparse.Namespace, config: TrainConfig
) -> Iterator[tuple[MakeEnv, torch.device]]:
    """What makes the environment of a meta-training, and the device of all the rest of it.

    That is the device asked for where this machine has it. Where only the workers have, policies
    are validated on the CPU.

    Args:
        args: as parsed.
        config: of the training.

    Raises:
        ImportError: Ray is asked for and not installed.
        ValueError: an option is out of range, or the device cannot be used.
    """
    from pacesetter.envs.vec_env import ScheduleVecEnv
    from pacesetter.experiments.runs.execution import check_device

    engine = engine_of(args)
    if engine is None:
        yield ScheduleVecEnv, check_device(args.device)
        return
    engine.check_device(args.device)
    try:
        home = check_device(args.device)
    except ValueError:
        home = check_device("cpu")
    with engine.environments(config, device=args.device) as make:
        yield make, home
