"""The commands that meta-train: `pacesetter train` and `pacesetter demo`."""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacesetter.experiments.cli.parser import (
    Answer,
    add_engine_options,
    comparison_answer,
    environments,
    split_names,
)

if TYPE_CHECKING:
    from pacesetter.agent.policy.policy import Policy
    from pacesetter.agent.training.config import TrainConfig

EXAMPLES = {
    "train": """\
Meta-train an agent, or fine-tune one on your own jobs.

examples:
  pacesetter train --preset smoke --out runs/smoke      see that it works, in seconds
  pacesetter train --preset laptop --out runs/laptop    a quarter of an hour
  pacesetter train --preset laptop --out runs/laptop --resume
  pacesetter train --init default --families my_module:my_family --out runs/mine
  pacesetter train --init default --families meta-train,my_module:my_family \\
      --decisions 500000 --out runs/both
  pacesetter train --engine ray --workers 8 --groups 16 --preset workstation \\
      --out runs/wide                                   spread over Ray workers

The folder then holds policy.safetensors (the best on the validation tasks),
checkpoint.pt, validation.csv, TensorBoard logs and run.json. A run that was
stopped and resumed ends in the same policy as one that ran through, bit for bit
on the CPU.

Sizes are counted in decisions; one decision sets learning rate, momentum and
clipping of one inner run. Times are for two cores.
""",
    "demo": """\
See all of it at work, in a few minutes.

examples:
  pacesetter demo --out runs/demo
  pacesetter demo --out runs/demo --force               once more

Lets the shipped agent learn on for a while (two to three minutes on two cores),
puts it, before and after, into an ordinary PyTorch job on handwritten digits,
and compares both with AdamW. Prints a table and writes results.csv, table.txt and
report.html. It cannot be resumed.
""",
}
DEFAULT_PRESET, FINE_TUNING_PRESET = "laptop", "fine-tune"
FRESH_TASKS = 4
"""Tasks that the next command compares on, where the policy was chosen by tasks of that family."""


def add_parsers(
    command: Callable[[str, str], argparse.ArgumentParser], long_running: Callable[..., None]
) -> None:
    train = command("train", "meta-train an agent, or fine-tune one on jobs of your own")
    what = train.add_argument_group("what to learn")
    what.add_argument(
        "--preset",
        metavar="NAME",
        help="size of the training: smoke (seconds), laptop (a quarter of an hour), workstation "
        "(3 hours), gpu (not timed yet); with --init, demo (2 minutes), fine-tune (some minutes), "
        "second-stage (10 minutes) "
        f"(default: {DEFAULT_PRESET}; with --init: {FINE_TUNING_PRESET})",
    )
    what.add_argument(
        "--decisions",
        type=int,
        metavar="N",
        help="decisions to learn from, rounded up to whole rollouts (default: the preset's)",
    )
    what.add_argument(
        "--families",
        nargs="+",
        action="extend",
        metavar="FAMILY",
        help="task families to learn from and no others, with blanks or commas between them: names "
        "of bundled ones, module:attribute for your own (a TaskFamily, or a class or function that "
        "gives one; the working directory is looked into), or sets: meta-train, from which the "
        "shipped policy learned, validation or held-out (default: the preset's)",
    )
    what.add_argument(
        "--validation-families",
        nargs="+",
        action="extend",
        metavar="FAMILY",
        help="task families to choose the policy by, named likewise (default: your own of "
        "--families, on tasks of their own, and the preset's if there are bundled ones)",
    )
    what.add_argument(
        "--groups",
        type=int,
        metavar="N",
        help="groups of runs per rollout, which workers share: a rollout grows with them "
        "(default: the preset's, 4 as a rule)",
    )
    tuning = train.add_argument_group("fine-tuning")
    tuning.add_argument(
        "--init",
        metavar="FILE",
        help="policy file to go on learning from, or default: the shipped one; it is validated "
        "first, and what comes out is never worse on the validation tasks",
    )
    add_engine_options(train, episodes=True)
    long_running(train, resume="go on with the run in DIR; give the other options as before")

    demo = command("demo", "see all of it at work, in a few minutes")
    long_running(demo)
    demo.add_argument("--force", action="store_true", help="replace an earlier demonstration")


def run_train(args: argparse.Namespace, line: str) -> Answer:
    from pacesetter.inner_models.lookup import require

    for module in ("gymnasium", "stable_baselines3", "tensorboard", "tqdm", "sklearn", "PIL"):
        require(module, extra="train")
    from pacesetter.agent.policy.policy import load_policy
    from pacesetter.agent.runs.interruption import deferring
    from pacesetter.agent.training.train import train

    init = None if args.init is None else load_policy(args.init)
    preset = preset_of(args)
    config = config_of(args, init)
    if not args.quiet:
        for remark in remarks(args, config):
            print(f"pacesetter: {remark}", file=sys.stderr)
    with deferring(), environments(args, config) as (make_env, device):
        path = train(
            config,
            args.out,
            seed=args.seed,
            device=device,
            make_env=make_env,
            resume=args.resume,
            progress=not args.quiet,
            preset=preset,
            init=init,
        )
    return _trained(path, config, init)


def preset_of(args: argparse.Namespace) -> str:
    return str(args.preset or (DEFAULT_PRESET if args.init is None else FINE_TUNING_PRESET))


def config_of(args: argparse.Namespace, init: Policy | None) -> TrainConfig:
    """The settings that the arguments stand for, and the policy to start from, if any."""
    from pacesetter.agent.training.config import fine_tuning_config, validation_families
    from pacesetter.experiments.presets import get_preset, weights_by_cost
    from pacesetter.inner_models.registry import family_names

    config = get_preset(preset_of(args))
    changes: dict[str, Any] = {}
    if args.decisions is not None:
        changes["decisions"] = args.decisions
    if args.groups is not None:
        changes["env"] = replace(config.env, num_groups=args.groups)
    if args.families:
        families = family_names(*split_names(args.families))
        changes["families"] = families
        weights = weights_by_cost(families) if config.env.family_weights else ()
        changes["env"] = replace(changes.get("env", config.env), family_weights=weights)
        changes["validation_families"] = validation_families(families, config.validation_families)
    if args.validation_families:
        changes["validation_families"] = family_names(*split_names(args.validation_families))
    config = replace(config, **changes)
    return config if init is None else fine_tuning_config(config, init)


def remarks(args: argparse.Namespace, config: TrainConfig) -> list[str]:
    """What a user should know of the settings, a sentence each."""
    from pacesetter.inner_models.registry import HELD_OUT, is_own

    found = []
    own = [name for name in config.validation_families if is_own(name)]
    if own and not args.validation_families:
        found.append(
            f"validating on fixed tasks of {' and '.join(own)}, {config.validation_tasks} of each, "
            "with seeds of their own; --validation-families names others"
        )
    spent = [n for n in (*config.families, *config.validation_families) if n in HELD_OUT]
    if spent:
        found.append(
            f"{', '.join(dict.fromkeys(spent))}: held out for reports, which will say nothing new "
            "of a policy that has learned there or was chosen by it"
        )
    return found


def _trained(path: Path, config: TrainConfig, init: Policy | None) -> Answer:
    from pacesetter.agent.policy.policy import load_policy

    policy = load_policy(path)
    scores = _scores(path.with_name("validation.csv"))
    best = min(scores) if scores else None
    following = _next_command(path, config)
    data: dict[str, Any] = {
        "policy": path,
        "sha256": policy.digest,
        "decisions": policy.info.decisions,
        "families": config.families,
        "validation": {"families": config.validation_families, "scores": scores, "best": best},
        "init": None if init is None else init.digest,
        "next": following,
    }
    lines = [f"policy: {path}"]
    if init is not None and best is not None:
        lines.append(
            f"score:  {best:+.3f} on the validation tasks, {scores[0]:+.3f} before"
            if best < scores[0]
            else f"score:  {best:+.3f} on the validation tasks, as before: nothing better was "
            "found, and the file holds the weights that it started from"
        )
    return Answer("\n".join([*lines, f"next:   {following}"]), data)


def _scores(path: Path) -> list[float]:
    """Scores of all validations, the first one first; below zero beats AdamW at 1e-3."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [float(row["mean_log_ratio"]) for row in csv.DictReader(file)]


def _next_command(path: Path, config: TrainConfig) -> str:
    """A comparison, on tasks that the policy was not chosen by where those are of one's own."""
    from pacesetter.inner_models.registry import is_own

    own = [name for name in (*config.families, *config.validation_families) if is_own(name)]
    tasks: Sequence[str] = [
        f"{name}/{config.validation_tasks + i}"
        for name in dict.fromkeys(own)
        for i in range(FRESH_TASKS)
    ]
    words = ["pacesetter", "compare", "--policy", str(path)]
    words += ["--tasks", ",".join(tasks)] if tasks else []
    return shlex.join([*words, "--out", str(path.with_name("compare"))])


def run_demo(args: argparse.Namespace, line: str) -> Answer:
    from pacesetter.experiments import demo
    from pacesetter.experiments.runs.execution import check_device

    check_device(args.device)
    found = demo.run_demo(
        demo.DemoConfig(seed=args.seed, device=args.device),
        args.out,
        say=lambda text: print(text, flush=True),
        force=args.force,
        progress=not args.quiet,
        command=line,
    )
    return comparison_answer(found, args.out)
