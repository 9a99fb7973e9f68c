"""What each part of the recipe is worth: short meta-trainings that differ in one thing.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py --decisions 100000 --out runs/ablation

Each variant is trained from the same seed for the same number of decisions; its last averaged
policy is compared with AdamW at 1e-3 on the validation tasks. Intervals are over tasks, and over
starts and seeds within them. A variant that is done is not repeated. Seeds differ by more than
variants do: see docs/results.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import load_policy
from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.train import train
from pacesetter.agent.training.validation import ValidationSuite
from pacesetter.experiments.analysis.statistics import Resamples
from pacesetter.experiments.presets import PRESETS, get_preset

HIDDEN = {
    "losses": (
        *("loss_drop", "loss_drop_slow", "loss_drop_total", "loss_above_best", "loss_drop_share"),
        *("loss_regret_share", "log_loss_spread", "loss_spread_change"),
    ),
    "gradient norms": ("norm_spread", "norm_total", "norm_change"),
    "cosines": ("cos_momentum", "cos_momentum_slow", "cos_update", "cos_update_slow"),
    "sizes of updates": ("log_update_size", "log_param_growth"),
    "validation losses": (
        *("valid_known", "valid_age", "valid_above_best", "valid_drop_total", "valid_gap"),
    ),
}
CONTROLS = {
    "no decay under the policy": {"final_decay": 1.0},
    "actions: learning rate": {"momentum_step": 0.0, "clip_step": 0.0},
    "actions: learning rate, momentum": {"clip_step": 0.0},
    "20 intervals": {"num_intervals": 20},
    "even intervals": {"decision_power": 1.0},
    "step of log lr 0.7": {"lr_step": 0.7},
}
SCORE_SEEDS = 4
"""Seeds per task and start of the final score."""


def variants(base: TrainConfig) -> dict[str, TrainConfig]:
    """The recipe, and what it is without one of its parts."""

    def with_env(**changes: Any) -> TrainConfig:
        return replace(base, env=replace(base.env, **changes))

    return {
        "recipe": base,
        "reward: z-score, floor 0.1": with_env(reward="z-score", spread_floor=0.1),
        "reward: rank": with_env(reward="rank"),
        "noise: independent": replace(base, exploration="independent", log_std=-0.7),
        "families drawn equally": with_env(family_weights=()),
        "families: teacher-mlp alone": replace(
            with_env(family_weights=()), families=("teacher-mlp",)
        ),
        **{
            name: with_env(control=replace(base.env.control, **changes))
            for name, changes in CONTROLS.items()
        },
        **{
            f"features: no {name}": with_env(hidden_features=features)
            for name, features in HIDDEN.items()
        },
    }


def run_variant(config: TrainConfig, out: Path, *, seed: int) -> NDArray[np.float64]:
    """Trains a variant, or goes on where it stopped: (num_tasks, n) log ratios to AdamW at 1e-3."""
    scores = out / "scores.csv"
    if not scores.is_file():
        short = replace(config, validations=1)
        train(short, out, seed=seed, resume=out.exists(), progress=True, meter=False)
        policy = load_policy(out / "policy.safetensors")
        suite = ValidationSuite(replace(config, validation_seeds=SCORE_SEEDS))
        ratios = suite.score(policy.act)
        np.savetxt(scores, ratios.reshape(len(ratios), -1), delimiter=",")
    return np.loadtxt(scores, delimiter=",", ndmin=2)


def main() -> None:
    """Trains the variants and prints their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="laptop", choices=tuple(PRESETS), help="the recipe")
    parser.add_argument("--decisions", type=int, default=100_000, help="of each variant")
    parser.add_argument("--seed", type=int, default=1, help="of each training")
    parser.add_argument("--out", type=Path, required=True, help="folder; what is done there stays")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="the recipe is always run")
    args = parser.parse_args()
    known = variants(replace(get_preset(args.preset), decisions=args.decisions))
    unknown = set(args.only or ()) - set(known)
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; known: {', '.join(known)}")
    families = known["recipe"].validation_families
    lines = [f"| variant | score | change | {' | '.join(families)} |"]
    lines += ["|---" * (3 + len(families)) + "|"]
    recipe = None
    for name in [n for n in known if n == "recipe" or args.only is None or n in args.only]:
        folder = args.out / "".join(c if c.isalnum() else "-" for c in name)
        values = run_variant(known[name], folder, seed=args.seed)
        recipe = values if recipe is None else recipe
        draws = Resamples.draw(*values.shape, generator=np.random.default_rng(0))
        found = [draws.interval(values), draws.interval(values - recipe)]
        cells = [f"{i.estimate:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for i in found]
        # Tasks of a family lie together.
        cells += [f"{v:+.3f}" for v in values.reshape(len(families), -1).mean(axis=1)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    (args.out / "ablation.md").write_text(table, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
