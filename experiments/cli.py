"""The command line: `pacesetter train | compare | inspect | export | demo`.

What a command needs is imported when it runs, so that help and errors are quick and a missing
extra is named by the command that misses it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pacesetter.experiments import cli_policy

_EXAMPLES = {
    "train": """\
Meta-train an agent. The folder then holds policy.safetensors (the best on the validation tasks),
checkpoints, validation.csv and TensorBoard logs.

examples:
  pacesetter train --preset smoke --out runs/smoke      see that it works, in seconds
  pacesetter train --preset laptop --out runs/laptop    about a quarter of an hour
  pacesetter train --preset laptop --out runs/laptop --resume
""",
    "compare": """\
Hold a policy against AdamW and its rivals: same tasks, same seeds, same initial weights and
batches; rivals tuned on outer-valid; all reported on test. Prints a table and writes results.csv,
table.txt and report.html.

examples:
  pacesetter compare --out runs/compare                 the shipped policy
  pacesetter compare --policy runs/laptop/policy.safetensors --out runs/mine \\
      --start-lr 3e-4 1e-3 1e-2
  pacesetter compare --out runs/quick --quick
  pacesetter compare --out runs/mnist --tasks mnist-convnet --data ~/datasets
  pacesetter compare --out runs/compare --resume        go on after a stop
""",
    **cli_policy.EXAMPLES,
    "demo": """\
Meta-train a small agent (two to three minutes on two cores), put it and the shipped policy into an
ordinary PyTorch job on handwritten digits, and compare both with AdamW. Prints a table and writes
results.csv, table.txt and report.html.

examples:
  pacesetter demo --out runs/demo
  pacesetter demo --out runs/demo --force               once more
""",
}


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples as they are, and says every default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="pacesetter",
        description="An RL agent that sets learning rate, momentum and gradient clipping while a "
        "neural network trains.",
        epilog="`pacesetter COMMAND --help` tells all about a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=_EXAMPLES[name], formatter_class=_Formatter
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    def long_running(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
        sub.add_argument("--device", default="cpu", help="where inner runs live, such as cuda")
        sub.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
        sub.add_argument("--quiet", action="store_true", help="no progress bar")

    train = command("train", "meta-train an agent")
    train.add_argument("--preset", default="laptop", help="smoke, demo, laptop or mixed")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    long_running(train)

    compare = command("compare", "hold a policy against AdamW and its rivals")
    compare.add_argument(
        "--policy",
        default="default",
        metavar="FILE",
        help="policy file; the word default means the shipped one",
    )
    compare.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks such as digits-mlp/0, or families (default: all validation families)",
    )
    compare.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with files of MNIST, Fashion-MNIST or CIFAR-10, for tasks such as mnist-mlp; "
        "without --tasks, all that it has are added (default: $PACESETTER_DATA, without adding)",
    )
    compare.add_argument("--arms", nargs="+", metavar="ARM", help="names of arms (default: all)")
    compare.add_argument("--seeds", type=int, help="runs per task and arm (default: 5; quick: 3)")
    compare.add_argument(
        "--start-lr",
        type=float,
        nargs="+",
        action="extend",
        metavar="LR",
        help="learning rates from which the policy starts (default: 0.001)",
    )
    compare.add_argument("--quick", action="store_true", help="fewer tasks and seeds")
    compare.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    long_running(compare)

    cli_policy.add_parsers(command)

    demo = command("demo", "see all of it at work, in a few minutes")
    demo.add_argument("--force", action="store_true", help="replace an earlier demonstration")
    long_running(demo)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        Exit code: 0; 2 after an error that the user can mend; 130 after Ctrl-C.
    """
    # OpenMP's threads otherwise spin while they wait, and another busy process on the same cores
    # slows inner training down several times. It is read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(argv)
    line = shlex.join(["pacesetter", *argv])
    try:
        _COMMANDS[args.command](args, line)
    except KeyboardInterrupt:
        print(f"\npacesetter: {_after_stop(args, line)}", file=sys.stderr)
        return 130
    # Those are the types that name a mistake of the user's; anything else is one of ours.
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"pacesetter: error: {error}", file=sys.stderr)
        return 2
    return 0


def _after_stop(args: argparse.Namespace, line: str) -> str:
    if not (getattr(args, "out", None) and (args.out / "run.json").is_file()):
        return "stopped"
    if args.command == "demo":
        return f"stopped; begin anew with: {line}" + ("" if args.force else " --force")
    return f"stopped; go on with: {line}" + ("" if args.resume else " --resume")


def _train(args: argparse.Namespace, line: str) -> None:
    from pacesetter.inner_models.extras import require

    for module in ("gymnasium", "stable_baselines3", "tensorboard", "tqdm", "sklearn", "PIL"):
        require(module, extra="train")
    from pacesetter.agent.ppo import train
    from pacesetter.experiments.environment import check_device
    from pacesetter.experiments.presets import get_preset

    config = get_preset(args.preset)
    path = train(
        config,
        args.out,
        seed=args.seed,
        device=check_device(args.device),
        resume=args.resume,
        progress=not args.quiet,
        preset=args.preset,
    )
    print(f"policy: {path}")
    print(f"next:   pacesetter compare --policy {path} --out {args.out / 'compare'}")


def _compare(args: argparse.Namespace, line: str) -> None:
    from pacesetter.inner_models.extras import require

    for module in ("matplotlib", "tqdm", "sklearn", "PIL"):
        require(module, extra="compare")
    from pacesetter.experiments.compare import CompareConfig, compare
    from pacesetter.experiments.tasks import (
        QUICK_TASKS_PER_FAMILY,
        TASKS_PER_FAMILY,
        families_in,
        task_names,
    )
    from pacesetter.inner_models.registry import VALIDATION

    given: dict[str, Any] = {"num_seeds": 3, "replay_tasks": 16} if args.quick else {}
    if args.seeds is not None:
        given["num_seeds"] = args.seeds
    if args.arms:
        given["arms"] = tuple(args.arms)
    if args.start_lr:
        given["start_lrs"] = tuple(args.start_lr)
    names = args.tasks or (*VALIDATION, *families_in(args.data))
    per_family = QUICK_TASKS_PER_FAMILY if args.quick else TASKS_PER_FAMILY
    config = CompareConfig(
        policy=args.policy,
        tasks=task_names(names, per_family=per_family),
        seed=args.seed,
        device=args.device,
        data=args.data and str(args.data.resolve()),
        **given,
    )
    progress = not args.quiet
    found = compare(config, args.out, resume=args.resume, progress=progress, command=line)
    print(found.table)
    print(f"\nreport: {args.out / 'report.html'}")


def _demo(args: argparse.Namespace, line: str) -> None:
    from pacesetter.experiments.demo import DemoConfig, run_demo
    from pacesetter.experiments.environment import check_device

    check_device(args.device)
    table = run_demo(
        DemoConfig(seed=args.seed, device=args.device),
        args.out,
        say=lambda text: print(text, flush=True),
        force=args.force,
        progress=not args.quiet,
        command=line,
    )
    print(table)
    print(f"\nreport: {args.out / 'report.html'}")


_COMMANDS = {
    "train": _train,
    "compare": _compare,
    "inspect": cli_policy.run_inspect,
    "export": cli_policy.run_export,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
