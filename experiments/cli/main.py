"""The command line: `pacesetter train | compare | inspect | export | demo | completion`.

What a command needs is imported when it runs, so that help and errors are quick and a missing
extra is named by the command that misses it. Results go to standard output, all else to standard
error.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import metadata
from typing import Any

from pacesetter.experiments.cli import compare as cli_compare
from pacesetter.experiments.cli import policy as cli_policy
from pacesetter.experiments.cli import train as cli_train
from pacesetter.experiments.cli.parser import (
    EXIT_CODES,
    Answer,
    CommandParser,
    HelpFormatter,
    WrongUsage,
    add_command,
    add_run_options,
    to_json,
)
from pacesetter.inner_models.engine.host import prepare_process
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.registry import SETS, family_names

DONE, FAILED, WRONG_INPUT, MISSING_PACKAGE = 0, 1, 2, 3
SHELLS = ("bash", "zsh", "fish", "tcsh")
STOPPED = 128
"""Plus the number of the signal: 130 after Ctrl-C, 143 after SIGTERM."""

_USERS_FAULTS = (
    *(ValueError, FileNotFoundError, FileExistsError),
    *(IsADirectoryError, NotADirectoryError, PermissionError),
)
"""Types that name a mistake of the user's; anything else is one of ours, or of the machine."""

_ROOM, _PLACE = "make room there", "change its permissions or give another place"
_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), _ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG), _PLACE),
}
"""Errors of a disk, and what to do about them."""

_PAGE = """\
An RL agent that sets learning rate, momentum and gradient clipping while a
neural network trains.

examples:
  pacesetter demo --out runs/demo                       see all of it at work
  pacesetter train --preset laptop --out runs/laptop    meta-train an agent
  pacesetter train --init default --families my_module:my_family --out runs/mine
                                                        fine-tune it on your jobs
  pacesetter compare --out runs/compare                 hold it against AdamW
  pacesetter compare --task my_module:make_task --out runs/job
  pacesetter inspect                                    what the shipped policy is

`pacesetter COMMAND --help` tells all about a command.
"""
_ENVIRONMENT = """\
environment:
  OMP_NUM_THREADS  threads of every process; equal numbers give equal results
  PACESETTER_DATA  folder with files of MNIST, Fashion-MNIST or CIFAR-10

"""
_EXAMPLES = {
    **cli_train.EXAMPLES,
    "compare": cli_compare.EXAMPLE,
    **cli_policy.EXAMPLES,
    "completion": """\
Print a script that lets a shell complete commands, options, files and names.

examples:
  eval "$(pacesetter completion bash)"                  for this bash
  pacesetter completion bash > ~/.local/share/bash-completion/completions/pacesetter
  pacesetter completion zsh > "${fpath[1]}/_pacesetter"
  pacesetter completion fish > ~/.config/fish/completions/pacesetter.fish

The names of presets, arms and task families are those of this version: make the
script anew after an upgrade.
""",
}
_LONG = {"train", "compare"}
"""Commands that stop where nothing is lost, and go on."""


def make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="pacesetter",
        usage="%(prog)s COMMAND [options]",
        description=_PAGE,
        epilog=_ENVIRONMENT + EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    version = f"%(prog)s {metadata.version('pacesetter')}"
    parser.add_argument(
        "-V", "--version", action="version", version=version, help="print it and exit"
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", prog="pacesetter"
    )

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return add_command(commands, name, summary, _EXAMPLES[name], long=name in _LONG)

    cli_train.add_parsers(command, add_run_options)
    cli_compare.add_parser(command, add_run_options)
    cli_policy.add_parsers(command)
    completion = command("completion", "print a script for the shell's completion")
    completion.add_argument("shell", choices=SHELLS, help="whose script to print")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        Exit code: 0; 1 after a failure; 2 after an error that the user can fix; 3 where a package
        is missing; 130 after Ctrl-C, 143 after SIGTERM.
    """
    # OpenMP's threads otherwise spin while they wait, and another busy process on the same cores
    # slows inner training down several times. It is read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_process()
    from pacesetter.agent.runs.interruption import heeding_signals

    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = make_parser().parse_args(argv)
    except WrongUsage as wrong:
        if "--json" in argv:
            data = {"command": None, "exit_code": WRONG_INPUT, "error": wrong.message}
            _print(to_json(data))
        raise
    line = shlex.join(["pacesetter", *argv])
    # Whatever prints, a user's own module too: standard output is for one JSON object. Ray repeats
    # there what its workers print, and remarks of its own.
    crowded = args.json or getattr(args, "engine", None) == "ray"
    elsewhere = redirect_stdout(sys.stderr) if crowded else nullcontext()
    with heeding_signals(), elsewhere:
        code, answer = _run(args, line)
    if args.json:
        code = _print(to_json({"command": args.command, "exit_code": code, **answer.data})) or code
    elif answer.text:
        code = _print(answer.text) or code
    return code


def _run(args: argparse.Namespace, line: str) -> tuple[int, Answer]:
    """Runs a command; its exit code, and what goes to standard output."""
    try:
        return DONE, _COMMANDS[args.command](args, line) or Answer("", {})
    except KeyboardInterrupt as stop:
        return _stopped(args, line, stop)
    except Exception as error:
        what, data = str(error) or type(error).__name__, {}
        if isinstance(error, ImportError):
            code = MISSING_PACKAGE
        elif isinstance(error, OSError) and error.errno in _DISK:
            code, (how, following) = WRONG_INPUT, _going_on(args, line)
            where = error.filename or getattr(args, "out", None) or "the disk"
            again = how[2:] if "with:" in how else "try again"
            what = f"{error.strerror}: {where}; {_DISK[error.errno]}, then {again}"
            data = {"resume": following}
        else:
            code = WRONG_INPUT if isinstance(error, _USERS_FAULTS) else FAILED
        if args.debug or code == FAILED:
            traceback.print_exc()
        print(f"pacesetter: error: {what}", file=sys.stderr)
        return code, Answer("", {"error": what, **data})


def _stopped(args: argparse.Namespace, line: str, stop: KeyboardInterrupt) -> tuple[int, Answer]:
    number = getattr(stop, "number", signal.SIGINT)
    how, following = _going_on(args, line)
    print(f"\npacesetter: stopped{how}", file=sys.stderr)
    data = {"stopped": signal.Signals(number).name, "resume": following}
    return STOPPED + number, Answer("", data)


def _going_on(args: argparse.Namespace, line: str) -> tuple[str, str | None]:
    """What to say after a stop, and the command that goes on, if there is one."""
    out = getattr(args, "out", None)
    if out is None or not os.path.isfile(out / "run.json"):
        return "; nothing had begun", None
    if args.command == "demo":
        again = line + ("" if args.force else " --force")
        return f"; begin anew with: {again}", None
    again = line + ("" if args.resume else " --resume")
    return f"; go on with: {again}", again


def _print(text: str) -> int:
    """Prints a result; whoever reads it may have seen enough already. Returns an exit code."""
    try:
        print(text)
        sys.stdout.flush()
    except OSError as error:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"pacesetter: error: {error.strerror}: standard output", file=sys.stderr)
            return WRONG_INPUT
    return DONE


def _completion(args: argparse.Namespace, line: str) -> Answer:
    shtab = require("shtab", extra="completion")
    from pacesetter.experiments.presets import PRESETS
    from pacesetter.experiments.rivals.baselines import arm_names

    families = (*SETS, *family_names())
    words = {"preset": tuple(PRESETS), "arms": arm_names(), "device": ("cpu", "cuda")}
    words |= dict.fromkeys(("families", "validation_families", "tasks"), families)
    complete: dict[Any, Any] = {name: shtab.cmd(f"echo {' '.join(w)}") for name, w in words.items()}
    complete |= dict.fromkeys(("FILE", "CSV", "PNG", "OUT", "RUN_DIR_OR_FILE"), shtab.FILE)
    complete["DIR"] = shtab.DIRECTORY
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for action in [a for p in (parser, *commands.choices.values()) for a in p._actions]:
        known = complete.get(action.metavar) or complete.get(action.dest)
        if known is not None:
            action.complete = known
    script: str = shtab.complete(parser, shell=args.shell)
    return Answer(script, {"shell": args.shell, "script": script})


_COMMANDS: dict[str, Callable[[argparse.Namespace, str], Any]] = {
    "train": cli_train.run_train,
    "compare": cli_compare.run_compare,
    "inspect": cli_policy.run_inspect,
    "export": cli_policy.run_export,
    "demo": cli_train.run_demo,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
