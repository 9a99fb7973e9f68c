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

from pacesetter.experiments import cli_compare, cli_policy

_EXAMPLES = {
    "train": """\
Meta-train an agent. The folder then holds policy.safetensors (the best on the validation tasks),
checkpoints, validation.csv and TensorBoard logs.

examples:
  pacesetter train --preset smoke --out runs/smoke      see that it works, in seconds
  pacesetter train --preset laptop --out runs/laptop    about a quarter of an hour
  pacesetter train --preset laptop --out runs/laptop --resume
""",
    "compare": cli_compare.EXAMPLE,
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
    train.add_argument("--preset", default="laptop", help="smoke, demo, laptop or workstation")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    long_running(train)

    cli_compare.add_parser(command, long_running)
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
    "compare": cli_compare.run_compare,
    "inspect": cli_policy.run_inspect,
    "export": cli_policy.run_export,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
