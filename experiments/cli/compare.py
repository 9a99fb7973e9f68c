"""The command `compare`: its arguments, and what they stand for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacesetter.experiments.cli.parser import (
    Answer,
    add_engine_options,
    columns,
    comparison_answer,
    engine_of,
    split_names,
)

if TYPE_CHECKING:
    from pacesetter.experiments.compare_config import CompareConfig

EXAMPLE = """\
Hold a policy against AdamW and its rivals.

examples:
  pacesetter compare --out runs/compare                 the shipped policy
  pacesetter compare --out runs/quick --quick           a first look, in minutes
  pacesetter compare --policy runs/laptop/policy.safetensors --out runs/mine \\
      --start-lrs 3e-4,1e-3,1e-2                        from several starts
  pacesetter compare --task my_module:make_task --out runs/job
                                                        a job of your own
  pacesetter compare --tasks my_module:my_family/8 --out runs/mine
                                                        a task of your own family
  pacesetter compare --out runs/few --arms policy,adamw-cosine --trials 5
  pacesetter compare --out runs/mnist --tasks mnist-convnet --data ~/datasets
  pacesetter compare --out runs/wide --engine ray       spread over Ray workers
  pacesetter compare --out runs/compare --resume        go on after a stop
  pacesetter compare --list                             names of arms and tasks

Same tasks, same seeds, same initial weights and batches; rivals are tuned on
outer-valid, with 1, 5 and 20 trials; all are reported on test. Prints a table
and writes results.csv, table.txt, table.md, report.html and figures. Every
piece of work is kept: after a stop, --resume goes on.
"""

QUICK_ARMS = (
    *("policy", "policy-open-loop", "do-nothing", "adamw-default", "adamw-constant"),
    *("adamw-cosine", "adamw-warmup-cosine", "adamw-wsd", "adamw-one-cycle", "adamw-plateau"),
    *("sgd-cosine", "schedule-free", "adamw-cosine-calibrated"),
)
"""Arms of a quick look: but for one, all of them run side by side."""
QUICK: dict[str, Any] = {"num_seeds": 3, "trials": 5, "replay_tasks": 8, "arms": QUICK_ARMS}
"""Settings of a quick look, where nothing else is asked for."""


def add_parser(
    command: Callable[[str, str], argparse.ArgumentParser], long_running: Callable[..., None]
) -> None:
    parser = command("compare", "hold a policy against AdamW and its rivals")
    arms = parser.add_argument_group("what is compared")
    arms.add_argument(
        "--policy",
        default="default",
        metavar="FILE",
        help="policy file; the word default means the shipped one",
    )
    tasks = parser.add_argument_group("on which tasks")
    tasks.add_argument(
        "--task",
        nargs="+",
        action="extend",
        metavar="MODULE:FUNCTION",
        help="your own job: a function that returns a ModuleTask or (model, loaders, loss), see "
        "docs/compare.md; without --tasks, nothing else is run",
    )
    tasks.add_argument(
        "--steps", type=int, metavar="N", help="inner steps of your own job (default: its own)"
    )
    tasks.add_argument(
        "--tasks",
        "--families",
        nargs="+",
        action="extend",
        metavar="TASK",
        help="tasks such as digits-mlp/0; or families, of which each stands for 8 tasks (quick: "
        "2); or sets of families: meta-train, validation or held-out; with blanks or commas "
        "between them; those of your own are module:attribute and module:attribute/0 (default: "
        "validation)",
    )
    tasks.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with files of MNIST, Fashion-MNIST or CIFAR-10, for tasks such as mnist-mlp; "
        "without --tasks, all that it has are added (default: $PACESETTER_DATA, without adding)",
    )
    arms.add_argument(
        "--arms",
        nargs="+",
        action="extend",
        metavar="ARM",
        help="names of arms, with blanks or commas between them (default: those that --list does "
        "not mark as optional)",
    )
    effort = parser.add_argument_group("how thoroughly")
    effort.add_argument(
        "--seeds", type=int, metavar="N", help="runs per task and arm (default: 5; quick: 3)"
    )
    effort.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="settings that a tuned arm tries per task, the best of the first one and five "
        "reported as well (default: 20; quick: 5)",
    )
    arms.add_argument(
        "--start-lrs",
        "--start-lr",
        nargs="+",
        action="extend",
        metavar="LR",
        help="learning rates from which the policy starts; of several, AdamW by hand starts from "
        "each too (default: 0.001)",
    )
    effort.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="worker processes, one thread each; changes no result but by rounding",
    )
    effort.add_argument(
        "--quick",
        action="store_true",
        help="a first look, under five minutes on two cores; says what it leaves out",
    )
    add_engine_options(parser)
    long_running(parser, out_required=False, resume="go on with the comparison in DIR")
    parser.add_argument("--latex", action="store_true", help="write table.tex for a paper too")
    parser.add_argument(
        "--list", action="store_true", help="print the names of all arms and tasks, and do no more"
    )


def run_compare(args: argparse.Namespace, line: str) -> Answer:
    if args.list:
        return listing()
    if args.out is None:
        raise ValueError("compare needs a folder to write: --out DIR")
    from pacesetter.inner_models.lookup import require

    for module in ("matplotlib", "optuna", "scipy", "tqdm", "sklearn", "PIL"):
        require(module, extra="compare")
    from pacesetter.agent.runs.interruption import deferring
    from pacesetter.experiments.comparison import compare

    config = config_of(args)
    if args.quick and not args.quiet:
        print(left_out(config), file=sys.stderr)
    with deferring():
        found = compare(
            config,
            args.out,
            resume=args.resume,
            progress=not args.quiet,
            latex=args.latex,
            command=line,
            engine=engine_of(args),
        )
    return comparison_answer(found, args.out)


def config_of(args: argparse.Namespace) -> CompareConfig:
    from pacesetter.experiments.compare_config import (
        QUICK_TASKS_PER_FAMILY,
        TASKS_PER_FAMILY,
        CompareConfig,
        families_in,
        task_names,
    )
    from pacesetter.inner_models.registry import VALIDATION

    asked: dict[str, Any] = {
        "num_seeds": args.seeds,
        "trials": args.trials,
        "arms": args.arms and tuple(split_names(args.arms)),
        "start_lrs": args.start_lrs and tuple(_numbers(args.start_lrs, "--start-lrs")),
    }
    given: dict[str, Any] = dict(QUICK) if args.quick else {}
    given |= {name: value for name, value in asked.items() if value is not None}
    names = split_names(args.tasks or ())
    if not names and not args.task:
        names = [*VALIDATION, *families_in(args.data)]
    per_family = QUICK_TASKS_PER_FAMILY if args.quick else TASKS_PER_FAMILY
    return CompareConfig(
        policy=args.policy,
        tasks=task_names(names, per_family=per_family),
        own_tasks=tuple(args.task or ()),
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        data=args.data and str(args.data.resolve()),
        jobs=args.jobs,
        quick=args.quick,
        **given,
    )


def left_out(config: CompareConfig) -> str:
    """What a quick look leaves out, in a sentence."""
    from pacesetter.experiments.compare_config import CompareConfig
    from pacesetter.experiments.rivals.baselines import default_arms

    whole = CompareConfig(tasks=config.tasks, own_tasks=config.own_tasks)
    missing = [name for name in default_arms() if name not in config.arms]
    parts = [
        f"{len(config.tasks) + len(config.own_tasks)} tasks",
        f"{config.num_seeds} seeds instead of {whole.num_seeds}",
        f"{config.trials} trials instead of {whole.trials}",
    ]
    arms = f"without {', '.join(missing)}" if missing else "with all arms"
    return f"A quick look: {', '.join(parts)}; {arms}."


def listing() -> Answer:
    """Names of all arms, with what is tuned in them, and of all task families."""
    from pacesetter.experiments.rivals.arms import Baseline
    from pacesetter.experiments.rivals.baselines import all_arms
    from pacesetter.inner_models.registry import FROM_FILES, HELD_OUT, META_TRAIN, VALIDATION

    families = {
        "validation": (VALIDATION, "validation: the default"),
        "held_out": (HELD_OUT, "held-out: for final reports"),
        "from_files": (FROM_FILES, "held out too, on files of your own (--data)"),
        "meta_train": (META_TRAIN, "meta-train: policies have learned on them"),
    }
    arms = [("arm", "tuned", "what it is")]
    for arm in all_arms():
        tuned = isinstance(arm, Baseline) and not arm.calibrated and ", ".join(arm.space.dimensions)
        optional = "" if arm.by_default else " (optional)"
        arms.append((arm.name, tuned or "-", arm.source + optional))
    rows = [("tasks (family/0, family/1, ...)", "set")]
    rows += [(name, purpose) for names, purpose in families.values() for name in names]
    data = {
        "arms": [arm.name for arm in all_arms()],
        "families": {name: names for name, (names, _) in families.items()},
    }
    return Answer(f"{columns(arms)}\n\n{columns(rows)}", data)


def _numbers(values: Sequence[str], option: str) -> list[float]:
    try:
        return [float(part) for part in split_names(values)]
    except ValueError as error:
        raise ValueError(f"{option} must be numbers, but got {' '.join(values)}") from error
