"""The command `completion`: a script that teaches a shell the options and names of all others."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from pacesetter.experiments.cli.answer import Answer

SHELLS = ("bash", "zsh", "fish", "tcsh")
EXAMPLE = """\
Print a script that lets a shell complete commands, options, files and names.

examples:
  eval "$(pacesetter completion bash)"                  for this bash
  pacesetter completion bash > ~/.local/share/bash-completion/completions/pacesetter
  pacesetter completion zsh > "${fpath[1]}/_pacesetter"
  pacesetter completion fish > ~/.config/fish/completions/pacesetter.fish

The names of presets, arms and task families are those of this version: make the
script anew after an upgrade.
"""
_FOLDERS = {"DIR"}
_FILES = {"FILE", "CSV", "PNG", "OUT", "RUN_DIR_OR_FILE"}


def add_parser(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Adds the command.

    Args:
        command: makes a parser from a name and a summary.
    """
    parser = command("completion", "print a script for the shell's completion")
    parser.add_argument("shell", choices=SHELLS, help="whose script to print")


def run_completion(parser: argparse.ArgumentParser, shell: str) -> Answer:
    """`pacesetter completion`.

    Args:
        parser: of the whole command line; it is changed, and not to be used again.
        shell: one of `SHELLS`.

    Raises:
        MissingExtraError: shtab, which writes the scripts, is not installed.
    """
    from pacesetter.inner_models.lookup import require

    shtab = require("shtab", extra="completion")
    words = _words()
    for action in _actions(parser):
        if action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in words:
            action.complete = shtab.cmd(  # type: ignore[attr-defined]
                f"echo {' '.join(words[action.dest])}"
            )
    script: str = shtab.complete(parser, shell=shell)
    return Answer(script, {"shell": shell, "script": script})


def _words() -> dict[str, Sequence[str]]:
    """Names to complete, by the option that takes them."""
    from pacesetter.experiments.presets import PRESETS
    from pacesetter.experiments.rivals.baselines import arm_names
    from pacesetter.inner_models.registry import SETS, family_names

    return {
        "preset": tuple(PRESETS),
        "families": (*SETS, *family_names()),
        "validation_families": (*SETS, *family_names()),
        "tasks": (*SETS, *family_names()),
        "arms": arm_names(),
        "device": ("cpu", "cuda"),
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
