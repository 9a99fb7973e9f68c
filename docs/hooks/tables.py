"""Tables of the manual that are read from the code.

A page asks for one by a comment on a line of its own: ``<!-- from the code: features -->``.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

import griffe
import numpy as np
from mkdocs.exceptions import PluginError

from pacesetter.agent import LearnedScheduler, TrainConfig
from pacesetter.envs import EnvConfig, rewards
from pacesetter.envs.actions import ACTION_NAMES, ControlConfig, base_decay, interval_ends
from pacesetter.envs.features import FEATURE_BOUND, FEATURES
from pacesetter.experiments import CompareConfig
from pacesetter.experiments.cli.main import make_parser
from pacesetter.experiments.presets import PRESETS
from pacesetter.experiments.rivals.baselines import AGENT_ARMS, BASELINES
from pacesetter.experiments.rivals.space import Choice, Dimension
from pacesetter.inner_models import JobRanges


def fill(markdown: str) -> str:
    """Inserts the tables that a page asks for."""

    def made(match: re.Match[str]) -> str:
        if match.group(1) not in TABLES:
            raise PluginError(f"no table {match.group(1)!r}; known: {', '.join(TABLES)}")
        return TABLES[match.group(1)]()

    return re.sub(r"^<!-- from the code: (.*) -->$", made, markdown, flags=re.MULTILINE)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    cells = [[" ".join(str(c).replace("|", "\\|").split()) for c in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def command_line() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "88"
    parser = make_parser()
    parts = [f"```text\n{parser.format_help()}```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            subs = dict.fromkeys(action.choices.values())
            parts += [f"## {sub.prog}\n\n```text\n{sub.format_help()}```" for sub in subs]
    return "\n\n".join(parts)


def features() -> str:
    """What the agent sees."""
    rows = (
        (i, f"`{f.name}`", f.meaning, f"{f.centre:g}", f"{f.scale:g}")
        for i, f in enumerate(FEATURES)
    )
    bound = f"Every entry is (raw − centre) / scale, held within ±{FEATURE_BOUND:g}."
    return f"{bound}\n\n" + table(["", "name", "raw value", "centre", "scale"], rows)


def actions() -> str:
    """What the agent may do."""
    c, rows = ControlConfig(), []
    meanings = (
        ("change of log learning rate", c.lr_step, c.lr_bounds, "of the start"),
        ("change of log(1 − momentum)", c.momentum_step, c.one_minus_momentum_bounds, "1 − mom."),
        (
            *("change of log clip ratio: threshold over running gradient norm", c.clip_step),
            *(c.clip_ratio_bounds, "clip ratio"),
        ),
    )
    for name, (meaning, step, (low, high), what) in zip(ACTION_NAMES, meanings, strict=True):
        change = f"±{step:g}, a factor of {math.exp(step):.2f}"
        rows.append((f"`{name}`", meaning, change, f"{low:g} to {high:g} ({what})"))
    return table(["name", "what +1 and −1 mean", "largest change per decision", "range"], rows)


def reward_table() -> str:
    """All rewards, from the docstrings of the functions that compute them."""
    said = _sections(rewards.sibling_scores)[0].value
    form = re.compile(r'^- ``"(.+?)"``: (.+?)(?=^- |\n\n)', re.MULTILINE | re.DOTALL)
    meanings = dict(form.findall(said))
    rows = []
    for name in rewards.REWARD_FORMS:
        users = ", ".join(f"`{key}`" for key, c in PRESETS.items() if c.env.reward == name)
        where = f"meta-training, siblings; presets: {users or 'none'}"
        rows.append((f"`{name}`", where, meanings[name], f"±{rewards.CLIP:g}"))
    one = _sections(rewards.improvement)[0].value
    rows.append(("`improvement`", "`ScheduleEnv`, one run", one, f"±{rewards.CLIP:g}"))
    head, _, tail = said.partition("\n\n- ")
    text = f"{head} {tail.rpartition(chr(10) * 2)[2]}"
    return f"{text}\n\n" + table(["reward", "where", "what it is", "bounds"], rows)


def reward_example() -> str:
    """The rewards of five siblings, computed when the manual is built."""
    losses = np.array([[0.60, 0.90, 1.00, 1.60, np.nan]])
    shown = ("diverged" if np.isnan(x) else f"{x:.2f}" for x in losses[0])
    rows: list[Sequence[object]] = [("outer-valid loss", *shown)]
    for form in rewards.REWARD_FORMS:
        floor = PRESETS["laptop"].env.spread_floor
        scores = rewards.sibling_scores(losses, spread_floor=floor, form=form)[0]
        rows.append((f"`{form}`", *(f"{score:+.2f}" for score in scores)))
    return table(["", "run 1", "run 2", "run 3", "run 4", "run 5"], rows)


def decisions() -> str:
    """When decisions fall, for some horizons."""
    config, rows = ControlConfig(), []
    for horizon in (7, 50, 80, 500, 5_000, 100_000):
        ends = interval_ends(horizon, config.num_intervals, config.decision_power)
        inner = [f"{end:,}" for end in ends[:-1]]
        shown = inner if len(inner) < 5 else [*inner[:3], "…", inner[-1]]
        rows.append((f"{horizon:,}", len(ends), len(inner), ", ".join(shown)))
    return table(["horizon, steps", "intervals", "decisions", "after steps"], rows)


def decay() -> str:
    """The schedule that the agent's changes modify, at tenths of a run."""
    tenths, final = [k / 10 for k in range(11)], ControlConfig().final_decay
    values = [f"{base_decay(t, final):.3f}" for t in tenths]
    return table(["share of the run", *(f"{t:g}" for t in tenths)], [("factor", *values)])


def presets() -> str:
    """Sizes of meta-training."""
    head = ["preset", "decisions", "families", "parallel runs", "rollouts", "intervals"]
    rows = (
        (
            *(f"`{name}`", f"{c.decisions:,}", len(c.families), c.env.num_envs, c.rollouts),
            *(c.env.control.num_intervals, ", ".join(c.validation_families)),
        )
        for name, c in PRESETS.items()
    )
    return table([*head, "validation families"], rows)


def rivals() -> str:
    """All baselines of a comparison, with what is tuned."""
    head = ["arm", "what it is", "what is searched (default)", "source"]
    rows = []
    for arm in BASELINES:
        searched = {} if arm.calibrated else arm.space.dimensions
        tuned = ", ".join(_dimension(n, d) for n, d in searched.items())
        rows.append((f"`{arm.name}`", arm.label, tuned or "nothing", arm.source))
    return table(head, rows)


def agent_arms() -> str:
    """The ways in which a comparison uses the agent."""
    rows = ((f"`{arm.name}`", arm.label, arm.source) for arm in AGENT_ARMS)
    return table(["arm", "label", "what it is"], rows)


def _settings(thing: Any, section: str = "attributes") -> str:
    """Fields of a configuration or arguments of a class: names, defaults, meanings."""
    if section == "attributes":
        defaults = {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default
            for f in fields(thing)
        }
    else:
        defaults = thing.__init__.__kwdefaults__ or {}
    (found,) = (part for part in _sections(thing) if part.kind.value == section)
    rows = ((f"`{e.name}`", _value(defaults.get(e.name)), e.description) for e in found.value)
    return table(["name", "default", "meaning"], rows)


def _value(value: object) -> str:
    if isinstance(value, tuple | list) and len(value) > 4:
        return f"{len(value)} names, `{value[0]}` first"
    text = repr(value)
    short = f"`{text}`" if len(text) <= 40 else f"`{type(value).__name__}()`"
    return "required" if value is MISSING else short


def _dimension(name: str, dimension: Dimension | Choice) -> str:
    if isinstance(dimension, Choice):
        return f"{name} {'/'.join(dimension.options)} ({dimension.default})"
    return f"{name} {dimension.low:g} to {dimension.high:g} ({dimension.default:g})"


def _sections(thing: Any) -> list[Any]:
    return list(griffe.Docstring(thing.__doc__ or "").parse("google", warnings=False))


TABLES: dict[str, Callable[[], str]] = {
    "actions": actions,
    "agent arms": agent_arms,
    "command line": command_line,
    "control settings": lambda: _settings(ControlConfig),
    "compare settings": lambda: _settings(CompareConfig),
    "decay": decay,
    "decisions": decisions,
    "environment settings": lambda: _settings(EnvConfig),
    "features": features,
    "job settings": lambda: _settings(JobRanges),
    "presets": presets,
    "reward example": reward_example,
    "rewards": reward_table,
    "rivals": rivals,
    "scheduler arguments": lambda: _settings(LearnedScheduler, "parameters"),
    "train settings": lambda: _settings(TrainConfig),
}
