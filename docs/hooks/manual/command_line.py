"""The page of the command line: what the parsers themselves say, command by command."""

from __future__ import annotations

import argparse
import re

from pacesetter.experiments.cli.main import make_parser

WIDTH = 88
"""Columns of usage lines."""


def command_line() -> str:
    """The whole command line in Markdown: one section per command."""
    parser = make_parser()
    parts = [_section(parser, heading="")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts += [_section(p, heading=f"## {p.prog}") for p in _unique(action)]
    return "\n\n".join(parts)


def _unique(
    action: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """Parsers of all commands, each once: aliases share one."""
    return list(dict.fromkeys(action.choices.values()))


def _section(parser: argparse.ArgumentParser, *, heading: str) -> str:
    """One command: usage, what is said about it, its arguments.

    Args:
        parser: of the command.
        heading: Markdown; empty: none.
    """
    formatter = argparse.HelpFormatter(parser.prog, width=WIDTH)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    usage = formatter.format_help().removeprefix("usage: ").rstrip()
    usage = re.sub(r"\n {7}", "\n", usage)
    parts = [heading, f"```\n{usage}\n```", prose(parser.description or "")]
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if _told(action)]
        if rows:
            parts += [f"**{group.title}**", group.description or "", "\n\n".join(rows)]
    parts.append(prose(parser.epilog or ""))
    return "\n\n".join(part for part in parts if part)


def prose(text: str) -> str:
    """Text of a help page in Markdown: what is indented there is code here.

    Args:
        text: paragraphs and indented examples.
    """
    text = text.replace("%(prog)s", "pacesetter").replace("%%", "%")
    blocks: list[tuple[bool, list[str]]] = []
    for line in text.strip().splitlines():
        code = line.startswith("  ") if line else bool(blocks) and blocks[-1][0]
        if blocks and blocks[-1][0] == code:
            blocks[-1][1].append(line)
        else:
            blocks.append((code, [line]))
    parts = []
    for code, lines in blocks:
        body = "\n".join(line[2:] if code else line for line in lines).strip("\n")
        parts.append(f"```\n{body}\n```" if code else _escaped(body))
    return "\n\n".join(parts)


def _told(action: argparse.Action) -> bool:
    """Whether an argument is worth a line: --help has every command."""
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One argument as an entry of a definition list."""
    formatter = parser.formatter_class(prog=parser.prog)
    if isinstance(action, argparse._SubParsersAction):
        rows = [
            f"[`{parser.prog} {choice.dest}`](#{parser.prog}-{choice.dest})\n:   {choice.help}"
            for choice in action._choices_actions
        ]
        return "\n\n".join(rows)
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        metavar = formatter._get_default_metavar_for_optional(action)
        names += f" {formatter._format_args(action, metavar)}"
    help_text = formatter._expand_help(action) if action.help else ""
    return f"`{names}`\n:   {_escaped(help_text)}"


def _escaped(text: str) -> str:
    """Plain text as Markdown: signs that mean something there stand for themselves."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
