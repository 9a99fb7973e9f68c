"""Draws the portrait of a policy: what it has learned, as a page with figures, from its file alone.

    python -m pacesetter.experiments.portrait --policy default --out docs

Meta-train and validation families only; about two minutes on one core.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import DEFAULT_POLICY, Policy, load_policy
from pacesetter.agent.runs.folder import write_text
from pacesetter.agent.training.feature_runs import collect_features
from pacesetter.experiments.portrait_blocks import (
    ALL_RESPONSES_STEM,
    RESPONSE_STEMS,
    FileFacts,
    facts_block,
    importance_block,
    probe_block,
    ranked,
    responses_block,
    schedules_block,
)
from pacesetter.experiments.portrait_figures import draw_probe, draw_responses, draw_schedules
from pacesetter.experiments.portrait_page import FIGURES, PAGE, fill_page, read_page
from pacesetter.experiments.portrait_responses import (
    Response,
    kind_importances,
    measure_responses,
)
from pacesetter.experiments.portrait_runs import (
    TaskRuns,
    by_family,
    run_task,
    schedule_bands,
)
from pacesetter.experiments.runs.progress import Progress
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.registry import META_TRAIN, VALIDATION, fixed_task

FloatArray = NDArray[np.float64]

DRAWN = (
    *("teacher-mlp", "quadratic", "ratings", "image-convnet", "language-transformer"),
    *("sequence-rnn", *VALIDATION),
)
"""Families whose schedules are drawn: unlike each other, and few enough for one figure."""
FIRST_SEED = 1000
"""Of the runs; meta-training draws its own."""
NUM_LOADS = 20
SHOWN = 12
"""Features in the figure of an action."""


@dataclass(frozen=True, kw_only=True)
class PortraitConfig:
    """How much is run.

    Attributes:
        families: whose schedules are drawn; meta-train or validation.
        tasks_per_family: fixed tasks of each.
        num_seeds: runs of each task from each start.
        feature_families: meta-train families whose runs the states come from.
        feature_runs: how many such runs, rounded up to whole groups.
        seed: of the states, the shuffles and the bootstrap.

    Raises:
        ValueError: a family is held out or unknown, or a number is not positive.
    """

    families: tuple[str, ...] = DRAWN
    tasks_per_family: int = 3
    num_seeds: int = 2
    feature_families: tuple[str, ...] = META_TRAIN
    feature_runs: int = 84
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("families", (*META_TRAIN, *VALIDATION)),
            ("feature_families", META_TRAIN),
        ):
            others = [family for family in getattr(self, name) if family not in allowed]
            if others or not getattr(self, name):
                raise ValueError(
                    f"{name} must be some of {', '.join(allowed)}, but got "
                    f"{', '.join(others) or 'none'}"
                )
        for name in ("tasks_per_family", "num_seeds", "feature_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Portrait:
    """What was found of a policy.

    Attributes:
        policy: of whom.
        facts: size and load time of its file.
        states: (n, NUM_FEATURES), features that runs met.
        responses: of all features, in their order.
        kinds: importance by kind of feature, (3,) each.
        runs: of the tasks, family by family.
    """

    policy: Policy
    facts: FileFacts
    states: FloatArray
    responses: list[Response]
    kinds: dict[str, FloatArray]
    runs: list[TaskRuns]


def measure_file(policy: str, *, num_loads: int = NUM_LOADS) -> FileFacts:
    """Measures the size of a policy's file and how long loading takes in this process.

    Args:
        policy: path, or ``"default"``.
        num_loads: how often it is loaded.
    """
    times = []
    for _ in range(num_loads):
        begun = time.perf_counter()
        loaded = load_policy(policy)
        times.append(time.perf_counter() - begun)
    return FileFacts(
        num_bytes=len(loaded.to_bytes()),
        load_ms=1e3 * float(np.median(times)),
        num_loads=num_loads,
    )


def take_portrait(
    policy: str,
    config: PortraitConfig,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Portrait:
    """Runs what a portrait needs.

    Args:
        policy: path of the file, or ``"default"``.
        config: how much is run.
        device: where the runs live.
        progress: say how far it is, on standard error.
    """
    require("matplotlib", extra="compare")  # better missed now than in two minutes
    loaded, facts = load_policy(policy), measure_file(policy)
    names = [f"{f}/{i}" for f in config.families for i in range(config.tasks_per_family)]
    seeds = range(FIRST_SEED, FIRST_SEED + config.num_seeds)
    runs = []
    with Progress(len(names) + 1, shown=progress) as stages:
        stages.begin("states")
        states = collect_features(
            loaded,
            config.feature_families,
            num_runs=config.feature_runs,
            seed=config.seed,
            device=device,
        ).features
        generator = np.random.default_rng(config.seed)
        responses = measure_responses(loaded, states, generator=generator)
        kinds = kind_importances(loaded, states, generator=generator)
        stages.done()
        for name in names:
            stages.begin(name)
            family, _, index = name.rpartition("/")
            task = fixed_task(family, int(index))
            runs.append(run_task(loaded, task, seeds=seeds, device=device))
            stages.done()
    return Portrait(
        policy=loaded, facts=facts, states=states, responses=responses, kinds=kinds, runs=runs
    )


def write_portrait(portrait: Portrait, out: Path, *, command: str, seed: int = 0) -> Path:
    """Writes the figures and the page; what is written around its generated blocks is kept.

    Args:
        portrait: what was found.
        out: folder of the page.
        command: that made it, to be told on the page.
        seed: of the bootstrap.

    Returns:
        The page.

    Raises:
        ValueError: the page that is there lacks the marks of a block.
    """
    page, figures, runs = out / PAGE, out / FIGURES, portrait.runs
    size = np.abs(portrait.policy.act(portrait.states)).mean(axis=0)
    text = fill_page(
        read_page(page),
        {
            "facts": facts_block(
                portrait.policy,
                portrait.facts,
                command=command,
                runs=runs,
                num_states=len(portrait.states),
            ),
            "schedules": schedules_block(runs),
            "probe": probe_block(runs, generator=np.random.default_rng(seed)),
            "importance": importance_block(portrait.responses, portrait.kinds, policy_size=size),
            "responses": responses_block(min(SHOWN, len(portrait.responses))),
        },
    )
    families = by_family(runs)
    lrs = {family: schedule_bands(mine, "lrs") for family, mine in families.items()}
    momenta = {family: schedule_bands(mine, "momenta") for family, mine in families.items()}
    clips = {family: schedule_bands(mine, "clip_ratios") for family, mine in families.items()}
    draw_schedules(lrs, figures / "policy-learning-rate.svg", log=True, yardstick=True)
    draw_schedules(momenta, figures / "policy-momentum.svg", log=False)
    draw_schedules(clips, figures / "policy-clipping.svg", log=True)
    draw_probe(runs, figures / "policy-starts.svg")
    for action, stem in enumerate(RESPONSE_STEMS):
        strongest = ranked(portrait.responses, action)[:SHOWN]
        draw_responses(strongest, figures / f"{stem}.svg", action=action)
    draw_responses(ranked(portrait.responses), figures / f"{ALL_RESPONSES_STEM}.svg", columns=5)
    write_text(page, text)
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the portrait of a policy file."""
    default = PortraitConfig()
    parser = argparse.ArgumentParser(
        prog="python -m pacesetter.experiments.portrait",
        description="Say and draw what a policy has learned: a page with figures, from its file. "
        "What is written by hand around the generated blocks of the page is kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="policy file; default: shipped")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page")
    parser.add_argument("--families", nargs="+", default=default.families, help="to draw runs of")
    parser.add_argument(
        "--tasks-per-family", type=int, default=default.tasks_per_family, help="tasks of each"
    )
    parser.add_argument(
        "--num-seeds", type=int, default=default.num_seeds, help="runs of each task and start"
    )
    parser.add_argument(
        "--feature-runs", type=int, default=default.feature_runs, help="runs that states come from"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of all that is drawn")
    parser.add_argument("--device", default="cpu", help="where the runs live")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    config = PortraitConfig(
        families=tuple(args.families),
        tasks_per_family=args.tasks_per_family,
        num_seeds=args.num_seeds,
        feature_runs=args.feature_runs,
        seed=args.seed,
    )
    read_page(args.out / PAGE)  # a mistake in it is better found now than in two minutes
    portrait = take_portrait(args.policy, config, device=args.device, progress=not args.quiet)
    command = command_line(args.policy, config)
    page = write_portrait(portrait, args.out, command=command, seed=config.seed)
    sys.stdout.write(f"policy file: {portrait.facts}\npage: {page}\n")


def command_line(policy: str, config: PortraitConfig) -> str:
    """The command that makes such a portrait, without the folders of whoever made it.

    >>> command_line("runs/a/policy.safetensors", PortraitConfig(seed=1))
    'python -m pacesetter.experiments.portrait --policy policy.safetensors --out docs --seed 1'
    """
    words = ["--policy", Path(policy).name, "--out", "docs"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "feature_families":
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return f"python -m pacesetter.experiments.portrait {shlex.join(words)}"


if __name__ == "__main__":
    main()
