"""What all commands share: pages of help, options, the engine that they name, and answers."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

    from pacesetter.agent.training.config import TrainConfig
    from pacesetter.agent.training.engines import MakeEnv, RayEngine
    from pacesetter.experiments.comparison import Comparison

EXIT_CODES = """\
exit codes:
  0    done
  1    failed: a fault of ours or of the machine, with a traceback
  2    wrong arguments or input, or a full disk: the message says how to fix it
  3    a package is missing: the message has the line that installs it
  130  stopped by Ctrl-C; 143 by SIGTERM
"""
STOPPING = """\
stopping:
  Ctrl-C or SIGTERM stops where nothing is lost by it, within a minute or two as
  a rule, and prints the command that goes on. A second one stops at once; what
  was under way is then done anew. After kill -9, --resume goes on as well.
"""


_ONLY_RAY = ("workers", "threads_per_worker", "gpus_per_worker", "address", "patience")


class WrongUsage(SystemExit):
    """The end of a program that was called wrongly, with exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps pages as they are written, and says every default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """A parser whose help begins with what matters, and whose errors say where help is."""

    def format_help(self) -> str:
        """The page: examples, what the command is about, then the options of every command."""
        self._action_groups.sort(key=lambda group: group.title == "options")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}\n`{self.prog} --help` tells more", file=sys.stderr)
        raise WrongUsage(message)


def add_command(
    commands: argparse._SubParsersAction[CommandParser],
    name: str,
    summary: str,
    page: str,
    *,
    long: bool = False,
) -> CommandParser:
    """Adds a command and common options; `page` begins its help, `long` explains how to stop it."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=page,
        epilog=STOPPING + "\n" + EXIT_CODES if long else EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object on standard output, and all else on standard "
        "error; also for errors (with the keys error and exit_code)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of any error")
    return parser


def add_run_options(
    parser: argparse.ArgumentParser, *, out_required: bool = True, resume: str | None = None
) -> None:
    """Adds the options that all long commands have; `resume` is the help of ``--resume``."""
    group = parser.add_argument_group("output and machine")
    group.add_argument(
        "--out",
        type=Path,
        required=out_required,
        metavar="DIR",
        help="folder to write; it has to be new or empty, except to go on",
    )
    if resume is not None:
        group.add_argument("--resume", action="store_true", help=resume)
    group.add_argument(
        "--device", default="cpu", metavar="NAME", help="where inner runs live: cpu, cuda, cuda:1"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn")
    group.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def split_names(values: Sequence[str]) -> list[str]:
    """Names that were given with blanks or commas between them.

    >>> split_names(["a,b", "c"])
    ['a', 'b', 'c']
    """
    return [part for value in values for part in value.split(",") if part]


def add_engine_options(parser: argparse.ArgumentParser, *, episodes: bool = False) -> None:
    """Adds ``--engine`` and what belongs to it; `episodes`: workers hold groups of runs."""
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
    """The engine that the arguments stand for; None: this machine, without Ray."""
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

    That is the CPU where only the workers have the device that was asked for.
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


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        text: for standard output.
        data: the same for ``--json``: names to numbers, texts, paths, lists and mappings of them.
    """

    text: str
    data: Mapping[str, Any]


def to_json(data: Mapping[str, Any]) -> str:
    """Data as one JSON object that every parser reads: numbers without a value become null.

    >>> print(to_json({"loss": float("nan"), "out": Path("runs"), "steps": (1, 2)}))
    {
      "loss": null,
      "out": "runs",
      "steps": [
        1,
        2
      ]
    }
    """
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def comparison_answer(found: Comparison, out: Path) -> Answer:
    """What a comparison found; for ``--json``, the columns of its table, the best arm first."""
    summary, report = found.summary, out / "report.html"
    arms = [
        {
            "arm": e.entry.arm,
            "label": e.label,
            "start_lr": e.entry.start_lr,
            "budget": e.entry.budget,
            "scores": {split: asdict(score) for split, score in e.scores.items()},
            "finding": e.finding(),
            "normalised": {split: asdict(score) for split, score in e.normalised.items()},
            "trials": e.trials,
            "inner_steps": e.inner_steps,
            "diverged": e.diverged,
            "runs": e.num_runs,
        }
        for e in sorted(summary.entries, key=lambda e: e.scores["test"].estimate)
    ]
    data = {
        "report": report,
        "results": out / "results.csv",
        "tasks": summary.tasks,
        "seeds": summary.seeds,
        "reference": summary.labels[summary.reference],
        "arms": arms,
    }
    return Answer(f"{found.table}\n\nreport: {report}", data)


def columns(rows: Sequence[Sequence[str]], *, ruled: bool = True) -> str:
    """Rows of cells in columns, flush left; with a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], *([["-" * width for width in widths]] if ruled else []), *rows[1:]]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if hasattr(value, "tolist"):  # of NumPy
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
