"""What a policy does: its schedules, its answer to wrong starts, and what its actions depend on.

    OMP_NUM_THREADS=1 python benchmarks/portrait.py --policy default --out docs/figures

Draws the figures of docs/learned-policy.md and prints its tables. Starts and rates are given over
the rate of the task's best AdamW cosine, of a grid and in hindsight. Responses are partial
dependence (Friedman 2001): one feature is moved, the others stay as runs on the meta-train families
met them. Importance is the mean change of an action when the feature is shuffled over these states
(Breiman 2001). No held-out family is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy, load_policy
from pacesetter.envs.features import FEATURES
from pacesetter.experiments.analysis.statistics import comparable
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.agents import ClosedLoop, adamw_groups, run_agents
from pacesetter.experiments.runs.batched import train_batch
from pacesetter.inner_models.registry import META_TRAIN, VALIDATION, fixed_task, make_family

FloatArray = NDArray[np.float64]

DRAWN = (
    *("teacher-mlp", "quadratic", "ratings", "image-convnet", "language-transformer"),
    *("sequence-rnn", *VALIDATION),
)
"""Families whose schedules are drawn: unlike each other, and few enough for one figure."""
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Starts over the best cosine's rate."""
SHOWN = {0.1: "#d1495b", 1.0: "#00798c", 10.0: "#b8a100"}
"""Starts whose schedules are drawn, with their colours."""
LRS = tuple(float(f"{10**k:.3g}") for k in np.arange(-4.0, 0.1, 0.5))
ACTIONS = ("learning rate", "1 − momentum", "clip ratio")
STEMS = ("policy-response-lr", "policy-response-momentum", "policy-response-clip")
PROGRESS: FloatArray = (np.arange(40) + 0.5) / 40
QUARTILES = (0.25, 0.75)
NUM_POINTS, NUM_STATES, NUM_SHOWN = 21, 600, 12


@dataclass(frozen=True)
class Recorder(ClosedLoop):
    """The policy, and the features that it has seen."""

    states: list[FloatArray] = field(default_factory=list)

    def act(self, features: FloatArray, *, interval: int, num_intervals: int) -> FloatArray:
        self.states.append(features)
        return self.policy.act(features)


def run_task(policy: Policy, name: str, seeds: Sequence[int]) -> dict[str, FloatArray]:
    """Runs a task from all of `FACTORS`.

    Returns:
        ``best``: the best cosine's rate; ``lr`` over it, ``momentum`` and ``clip``: (F, S, 40)
        over `PROGRESS`; ``score``: (F,), mean log ratio of the outer-valid loss to the cosine's.
    """
    family, _, index = name.rpartition("/")
    task = fixed_task(family, int(index))
    row = next(b for b in BASELINES if b.name == "adamw-cosine")
    grid = [Configured(row, {"lr": lr}) for lr in LRS]
    cosines = train_batch(task, grid, seeds=seeds, num_intervals=1)
    theirs = cosines.losses("outer_valid").reshape(len(seeds), len(LRS)).T
    untrained = cosines.untrained.max(keepdims=True)
    best = int(comparable(theirs[:, None], untrained=untrained).mean(axis=(1, 2)).argmin())
    starts = [(factor, seed) for factor in FACTORS for seed in seeds]
    tasks = [task.with_optimizer(lr=LRS[best] * f).with_seed(seed) for f, seed in starts]
    runs = run_agents(tasks, [ClosedLoop(policy)], control=policy.control)
    ours = runs.losses("outer_valid").reshape(len(FACTORS), len(seeds))
    values = comparable(np.concatenate((ours, theirs))[:, None], untrained=untrained)[:, 0]
    ends = np.array(runs.steps) / task.horizon
    middles = (np.concatenate(([0.0], ends[:-1])) + ends) / 2

    def curve(rows: Sequence[FloatArray]) -> FloatArray:
        columns = [np.interp(PROGRESS, middles, column) for column in np.stack(rows).T]
        return np.reshape(columns, (len(FACTORS), len(seeds), -1))

    clips = np.stack(runs.trajectory)[:, :, 2] + np.log(policy.control.clip_ratio_start)
    return {
        "best": np.array(LRS[best]),
        "lr": np.exp(curve(np.log(np.stack(runs.lrs) / LRS[best]))),
        "momentum": curve(runs.momenta),
        "clip": np.exp(curve(clips)),
        "score": (values[: len(FACTORS)] - values[len(FACTORS) + best]).mean(axis=1),
    }


def panels(count: int, columns: int, height: float, **shared: Any) -> tuple[Figure, list[Any]]:
    """A figure with so many panels."""
    rows = -(-count // columns)
    figure = Figure(figsize=(7.2, height * rows + 0.45), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False, sharey=True, **shared).flat)
    for axes in found:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.tick_params(labelsize=7, length=0)
    for axes in found[count:]:
        axes.set_visible(False)
    return figure, found


def save(figure: Figure, path: Path, legend_of: Any = None) -> None:
    """Writes an SVG whose bytes depend on nothing but what is drawn."""
    if legend_of is not None:
        handles, labels = legend_of.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pacesetter"}):
        figure.savefig(path, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def draw_runs(runs: dict[str, dict[str, FloatArray]], out: Path) -> None:
    """The schedules by family, and rates against the start."""
    families = list(dict.fromkeys(name.rpartition("/")[0] for name in runs))
    for what, stem in (("lr", "learning-rate"), ("momentum", "momentum"), ("clip", "clipping")):
        figure, axes_of = panels(len(families), 3, 1.55, sharex=True)
        for axes, family in zip(axes_of, families, strict=False):
            mine = [r for name, r in runs.items() if name.rpartition("/")[0] == family]
            for factor, colour in SHOWN.items():
                rows = np.concatenate([r[what][FACTORS.index(factor)] for r in mine])
                mean = rows.mean(axis=0)
                if what != "momentum":
                    axes.set_yscale("log")
                    mean = np.exp(np.log(rows).mean(axis=0))
                label = f"from {factor:g} × the best cosine's rate"
                axes.plot(PROGRESS, mean, color=colour, linewidth=1.2, label=label)
                low, high = np.quantile(rows, QUARTILES, axis=0)
                axes.fill_between(PROGRESS, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.set_title(family, loc="left", fontsize=8.5)
        save(figure, out / f"policy-{stem}.svg", axes_of[0])
    figure, axes_of = panels(2, 2, 2.7)
    for axes, name in zip(axes_of, ("peak rate", "mean rate over the run"), strict=True):
        logs = np.array([np.log(r["lr"]) for r in runs.values()])  # (tasks, F, S, P)
        each = (logs.max(axis=-1) if name == "peak rate" else logs.mean(axis=-1)).mean(axis=-1)
        axes.loglog(FACTORS, np.exp(each).T, color="#c8c8c8", linewidth=0.7)
        axes.loglog(FACTORS, np.exp(np.median(each, axis=0)), color="#00798c", marker="o")
        axes.loglog(FACTORS, FACTORS, color="#666666", linestyle="--", linewidth=1)
        axes.set_title(f"{name}, over the best cosine's", loc="left", fontsize=8.5)
        axes.set_xlabel("start over the best cosine's rate", fontsize=8.5)
    save(figure, out / "policy-starts.svg")


def responses(policy: Policy, states: FloatArray) -> list[dict[str, Any]]:
    """Partial dependence on each feature that varied, and its importance to each action."""
    generator = np.random.default_rng(0)
    chosen, before = states[generator.permutation(len(states))[:NUM_STATES]], policy.act(states)
    found = []
    for i, feature in enumerate(FEATURES):
        shuffled = states.copy()
        shuffled[:, i] = generator.permutation(states[:, i])
        low, high = np.quantile(states[:, i], (0.02, 0.98))
        if low == high:
            low, high = states[:, i].min(), states[:, i].max()
        if low == high:
            continue
        tried = np.linspace(low, high, NUM_POINTS)
        rows = np.tile(chosen, (NUM_POINTS, 1))
        rows[:, i] = np.repeat(tried, len(chosen))
        actions = policy.act(rows).reshape(NUM_POINTS, len(chosen), -1)
        found.append(
            {
                "name": feature.name,
                "values": tried * feature.scale + feature.centre,
                "mean": actions.mean(axis=1),
                "band": np.quantile(actions, QUARTILES, axis=1),
                "importance": np.abs(policy.act(shuffled) - before).mean(axis=0),
            }
        )
    return sorted(found, key=lambda r: -float(r["importance"].sum()))


def draw_responses(found: Sequence[dict[str, Any]], out: Path) -> None:
    """A figure for each action with the features that matter most to it, and one of all."""
    for action, stem in enumerate((*STEMS, "policy-response-all")):
        drawn: Sequence[int] = (0, 1, 2) if action == 3 else (action,)
        kept = sorted(found, key=lambda r: -float(r["importance"][list(drawn)].sum()))
        kept = kept if action == 3 else kept[:NUM_SHOWN]
        figure, axes_of = panels(len(kept), 4, 1.4)
        for axes, r in zip(axes_of, kept, strict=False):
            for j in drawn:
                colour = tuple(SHOWN.values())[j]
                axes.plot(r["values"], r["mean"][:, j], color=colour, label=ACTIONS[j])
                if action < 3:
                    low, high = r["band"][:, :, j]
                    axes.fill_between(r["values"], low, high, color=colour, alpha=0.16)
            axes.set_title(r["name"], loc="left", fontsize=6.8)
        save(figure, out / f"{stem}.svg", axes_of[0])


def main() -> None:
    """Draws the figures and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="default", help="file; default: the shipped one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--families", nargs="+", default=DRAWN, choices=(*META_TRAIN, *VALIDATION))
    parser.add_argument("--tasks-per-family", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each task and start")
    parser.add_argument("--state-tasks", type=int, default=84, help="tasks that give the states")
    args = parser.parse_args()
    policy, recorder = load_policy(args.policy), Recorder(load_policy(args.policy))
    drawn = adamw_groups(
        [make_family(name) for name in META_TRAIN],
        num_tasks=args.state_tasks,
        generator=torch.Generator().manual_seed(0),
    )
    for tasks in drawn:
        run_agents(tasks, [recorder], control=policy.control)
    found = responses(policy, np.concatenate(recorder.states))
    draw_responses(found, args.out)
    print(f"| feature | {' | '.join(ACTIONS)} |\n| :-- | --: | --: | --: |")
    for r in found:
        print(f"| `{r['name']}` | {' | '.join(f'{v:.2f}' for v in r['importance'])} |")
    seeds = range(1000, 1000 + args.seeds)
    names = [f"{family}/{i}" for family in args.families for i in range(args.tasks_per_family)]
    runs = {name: run_task(policy, name, seeds) for name in names}
    draw_runs(runs, args.out)
    heads = [f"from {factor:g}×" for factor in SHOWN]
    print(f"\n| task | best cosine | {' | '.join(heads)} |\n| :-- | --: | --: | --: | --: |")
    for name, r in runs.items():
        scores = [f"{r['score'][FACTORS.index(factor)]:+.2f}" for factor in SHOWN]
        print(f"| {name} | {r['best']:g} | {' | '.join(scores)} |")


if __name__ == "__main__":
    main()
