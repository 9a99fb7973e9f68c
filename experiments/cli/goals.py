"""The command `goals`: its arguments, and what they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pacesetter.experiments.cli.answer import Answer
from pacesetter.experiments.cli.parser import split_names

EXAMPLE = """\
Measure what the project promises, with an interval and a goal for each number.

examples:
  pacesetter goals --out runs/goals                     the shipped policy
  pacesetter goals --policy my.safetensors --out runs/mine --cache runs/cache
                                                        another; see --cache
  pacesetter goals --tasks digits-mlp/0,tabular-mlp --seeds 2 --out runs/few
                                                        a first look
  pacesetter goals --out runs/goals --resume            go on after a stop

Final loss against AdamW's default and against the best of 21 trials of AdamW;
speed, with two thirds of the steps; robustness to the start of the learning
rate; and adaptivity, against the policy's own schedule played back. Prints
tables and writes table.txt, table.md, results.csv and summary.json. What does
not depend on the policy is kept in --cache, for the next policy. Every piece of
work is kept: after a stop, --resume goes on. docs/goals.md has the protocol.
"""


def add_parser(
    command: Callable[[str, str], argparse.ArgumentParser],
    long_running: Callable[..., None],
) -> None:
    """Adds the command.

    Args:
        command: makes a parser from a name and a summary.
        long_running: adds the options that all long commands have.
    """
    parser = command("goals", "measure what the project promises")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--policy",
        default="default",
        metavar="FILE",
        help="policy file; the word default means the shipped one",
    )
    measured.add_argument(
        "--tasks",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="validation, held-out, families, or tasks such as digits-mlp/0, with blanks or commas "
        "between them (default: validation)",
    )
    measured.add_argument(
        "--tasks-per-family", type=int, default=2, metavar="N", help="tasks of a family"
    )
    effort = parser.add_argument_group("how thoroughly")
    effort.add_argument("--seeds", type=int, default=5, metavar="N", help="runs per task and arm")
    effort.add_argument(
        "--trials", type=int, default=20, metavar="N", help="random settings that tuning tries"
    )
    effort.add_argument(
        "--habit-tasks",
        type=int,
        default=64,
        metavar="N",
        help="meta-train tasks on which the policy's mean schedule and multiple are found",
    )
    effort.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of the runs that do not depend on the policy (default: within that of --out)",
    )
    long_running(parser, resume="go on with the measurement in DIR")


def run_goals(args: argparse.Namespace, line: str) -> Answer:
    """Runs the command.

    Args:
        args: what was given.
        line: the command line.

    Returns:
        The tables, and the content of ``summary.json``.
    """
    from pacesetter.agent.runs.interruption import deferring
    from pacesetter.experiments.goals import GoalsConfig, measure_goals

    config = GoalsConfig(
        policy=args.policy,
        tasks=tuple(split_names(args.tasks or ["validation"])),
        tasks_per_family=args.tasks_per_family,
        num_seeds=args.seeds,
        trials=args.trials,
        habit_tasks=args.habit_tasks,
        seed=args.seed,
        device=args.device,
    )
    with deferring():
        found = measure_goals(
            config, args.out, cache=args.cache, resume=args.resume, progress=not args.quiet
        )
    return Answer(found.table, {"results": args.out / "results.csv", **found.summary})
