"""Tables that are read off the code when the manual is built, so that they cannot fall behind it.

A page asks for one by a comment of its own line, ``<!-- from the code: features -->``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import griffe
import numpy as np
from mkdocs.exceptions import PluginError

from manual.command_line import command_line
from manual.drawings import schedule
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.training.config import TrainConfig
from pacesetter.envs import rewards
from pacesetter.envs.actions import ACTION_NAMES, ControlConfig, base_decay, interval_ends
from pacesetter.envs.features import FEATURE_BOUND, FEATURES
from pacesetter.experiments.compare_config import CompareConfig
from pacesetter.experiments.presets import PRESETS
from pacesetter.experiments.rivals.baselines import AGENT_ARMS, BASELINES
from pacesetter.experiments.rivals.space import Choice, Dimension
from pacesetter.inner_models.families.base import JobRanges

_PLACE = re.compile(r"^<!-- from the code: (.*) -->$", re.MULTILINE)


def fill(markdown: str) -> str:
    """Puts the tables in their places.

    Args:
        markdown: of a page.

    Raises:
        PluginError: a page asks for a table that nobody makes.
    """

    def made(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise PluginError(f"there is no table {name!r}; there are: {', '.join(TABLES)}")
        return TABLES[name]()

    return _PLACE.sub(made, markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""A table in Markdown.

    Args:
        head: names of the columns.
        rows: cells, as many in each as there are columns.

    >>> print(table(["a", "b"], [[1, "x|y"]]))
    | a | b |
    |---|---|
    | 1 | x\|y |
    """
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    drawn = ["| " + " | ".join(line) + " |" for line in cells]
    drawn[1] = "|" + "---|" * len(head)
    return "\n".join(drawn)


def features() -> str:
    """What the agent sees."""
    rows = [
        (i, f"`{f.name}`", f.meaning, f"{f.centre:g}", f"{f.scale:g}")
        for i, f in enumerate(FEATURES)
    ]
    bound = f"Every entry is (raw − centre) / scale, held within ±{FEATURE_BOUND:g}."
    return f"{bound}\n\n" + table(["", "name", "raw value", "centre", "scale"], rows)


_ACTIONS: dict[str, tuple[str, Callable[[ControlConfig], float], str, str]] = {
    "log_lr": ("change of log learning rate", lambda c: c.lr_step, "lr_bounds", "of the start"),
    "log_one_minus_momentum": (
        "change of log(1 − momentum)",
        lambda c: c.momentum_step,
        "one_minus_momentum_bounds",
        "1 − momentum",
    ),
    "log_clip_ratio": (
        "change of log clip ratio: threshold over running gradient norm",
        lambda c: c.clip_step,
        "clip_ratio_bounds",
        "clip ratio",
    ),
}


def actions() -> str:
    """What the agent may do; an action without a row here is an error."""
    config, rows = ControlConfig(), []
    for i, name in enumerate(ACTION_NAMES):
        meaning, step, bounds, what = _ACTIONS[name]
        low, high = getattr(config, bounds)
        change = f"±{step(config):g}, a factor of {math.exp(step(config)):.2f}"
        rows.append((i, f"`{name}`", meaning, change, f"{low:g} to {high:g} ({what})"))
    return table(["", "name", "what +1 and −1 mean", "largest change per decision", "range"], rows)


def reward_table() -> str:
    """All rewards, from the functions that compute them; a form without a meaning is an error."""
    said = _summary(rewards.sibling_scores)
    meanings = dict(
        re.findall(r'^- ``"(.+?)"``: (.+?)(?=^- |\n\n)', said, re.MULTILINE | re.DOTALL)
    )
    rows: list[Sequence[object]] = []
    for form in rewards.REWARD_FORMS:
        users = ", ".join(f"`{name}`" for name, c in PRESETS.items() if c.reward == form)
        where = f"meta-training, siblings; presets: {users or 'none'}"
        rows.append((f"`{form}`", where, meanings[form], f"±{rewards.CLIP:g}"))
    one = _summary(rewards.improvement)
    rows.append(("`improvement`", "`ScheduleEnv`, one run", one, f"±{rewards.CLIP:g}"))
    head, _, tail = said.partition("\n\n- ")
    tail = tail.rpartition("\n\n")[2]
    return f"{head} {tail}\n\n" + table(["reward", "where", "what it is", "bounds"], rows)


def reward_example() -> str:
    """The rewards of five siblings, computed when the manual is built."""
    losses = np.array([[0.60, 0.90, 1.00, 1.60, np.nan]])
    trained = PRESETS["laptop"].spread_floor
    rows: list[Sequence[object]] = [
        ("outer-valid loss", *("diverged" if np.isnan(x) else f"{x:.2f}" for x in losses[0]))
    ]
    for form in rewards.REWARD_FORMS:
        scores = rewards.sibling_scores(losses, spread_floor=trained, form=form)[0]
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
    """The schedule that the agent's changes ride on, at tenths of a run."""
    tenths = [k / 10 for k in range(11)]
    final = ControlConfig().final_decay
    values = [f"{base_decay(t, final):.3f}" for t in tenths]
    return table(["share of the run", *(f"{t:g}" for t in tenths)], [("factor", *values)])


def presets() -> str:
    """Sizes of meta-training."""
    rows = [
        (
            f"`{name}`",
            f"{c.decisions:,}",
            len(c.families),
            c.num_envs,
            c.rollouts,
            c.control.num_intervals,
            ", ".join(c.validation_families),
        )
        for name, c in PRESETS.items()
    ]
    head = ["preset", "decisions", "families", "runs side by side", "rollouts", "intervals"]
    return table([*head, "chosen by"], rows)


def rivals() -> str:
    """All baselines of a comparison, with what is tuned."""
    rows = []
    for arm in BASELINES:
        searched = {} if arm.calibrated else arm.space.dimensions
        tuned = ", ".join(_dimension(n, d) for n, d in searched.items())
        rows.append((f"`{arm.name}`", arm.label, tuned or "nothing", arm.source))
    return table(["arm", "what it is", "what is searched (default)", "source"], rows)


def agent_arms() -> str:
    """The ways in which a comparison uses the agent."""
    rows = [(f"`{arm.name}`", arm.label, arm.source) for arm in AGENT_ARMS]
    return table(["arm", "label", "what it is"], rows)


def scheduler_arguments() -> str:
    """Arguments of the plug-in, with their defaults."""
    names = LearnedScheduler.__init__.__kwdefaults__ or {}
    return _described(LearnedScheduler, "parameters", {n: _value(v) for n, v in names.items()})


def settings_of(config: type[Any]) -> str:
    """A table of a configuration: fields, defaults, meanings.

    Args:
        config: a dataclass with a Google-style section of attributes.
    """
    return _described(config, "attributes", {f.name: _default(f) for f in fields(config)})


def _described(thing: type[Any], section: str, defaults: dict[str, str]) -> str:
    parsed = griffe.Docstring(thing.__doc__ or "", parent=None).parse("google", warnings=False)
    (found,) = (part for part in parsed if part.kind.value == section)
    rows = [(f"`{e.name}`", defaults.get(e.name, ""), e.description) for e in found.value]
    return table(["name", "default", "meaning"], rows)


def _default(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        return _value(entry.default)
    return "required" if entry.default_factory is MISSING else _value(entry.default_factory())


def _value(value: object) -> str:
    if isinstance(value, tuple | list) and len(value) > 4:
        return f"{len(value)} names, `{value[0]}` first"
    text = repr(value)
    return f"`{text}`" if len(text) <= 40 else f"`{type(value).__name__}()`"


def _dimension(name: str, dimension: Dimension | Choice) -> str:
    if isinstance(dimension, Choice):
        return f"{name} {'/'.join(dimension.options)} ({dimension.default})"
    return f"{name} {dimension.low:g} to {dimension.high:g} ({dimension.default:g})"


def _summary(function: Callable[..., Any]) -> str:
    """What a docstring says before its sections."""
    parsed = griffe.Docstring(function.__doc__ or "").parse("google", warnings=False)
    return str(parsed[0].value)


TABLES: dict[str, Callable[[], str]] = {
    "actions": actions,
    "agent arms": agent_arms,
    "command line": command_line,
    "control settings": lambda: settings_of(ControlConfig),
    "compare settings": lambda: settings_of(CompareConfig),
    "decay": decay,
    "decisions": decisions,
    "features": features,
    "job settings": lambda: settings_of(JobRanges),
    "presets": presets,
    "reward example": reward_example,
    "rewards": reward_table,
    "rivals": rivals,
    "schedule drawing": schedule,
    "scheduler arguments": scheduler_arguments,
    "train settings": lambda: settings_of(TrainConfig),
}
"""What pages may ask for."""
