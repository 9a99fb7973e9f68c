"""How all commands look: pages of help that begin with examples, and the options that all share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXIT_CODES = """\
exit codes:
  0    done
  1    failed: a fault of ours or of the machine, with a traceback
  2    wrong arguments or input: the message says what to mend
  3    a package is missing: the message has the line that installs it
  130  stopped by Ctrl-C; 143 by SIGTERM
"""
STOPPING = """\
stopping:
  Ctrl-C or SIGTERM stops where nothing is lost by it, within a minute or two as
  a rule, and prints the command that goes on. A second one stops at once; what
  was under way is then done anew. After kill -9, --resume goes on as well.
"""


class WrongUsage(SystemExit):
    """The end of a program that was called wrongly, with exit code 2.

    Args:
        message: what is wrong.
    """

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
        """Ends the program as one that was called wrongly."""
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
    """Adds a command with the options that all of them have.

    Args:
        commands: of the program.
        name: of the command.
        summary: a phrase for the list of commands.
        page: what help begins with: a sentence, examples, more.
        long: whether it may take long, so that stopping it has to be explained.
    """
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
    """Adds the options that all long commands have.

    Args:
        parser: of the command.
        out_required: whether there is nothing to do without ``--out``.
        resume: help of ``--resume``; None: the command has its own, or none.
    """
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
