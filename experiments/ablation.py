"""What each part of the recipe is worth: short meta-trainings that differ in one thing.

``python -m pacesetter.experiments.ablation --decisions 100000 --out runs/ablation``

Each variant is trained from the same seed for the same number of decisions, and its last averaged
policy is held against AdamW at 1e-3 on the validation tasks, as `ValidationSuite` does. A variant
that is done is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pacesetter.agent.policy.policy import load_policy
from pacesetter.agent.runs.folder import write_text
from pacesetter.agent.training.callbacks import POLICY
from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.train import train
from pacesetter.agent.training.validation import FloatArray, ValidationSuite
from pacesetter.experiments.analysis.statistics import Interval, bootstrap_interval
from pacesetter.experiments.presets import get_preset
from pacesetter.inner_models.lookup import check_name

LOSS_FEATURES = (
    *("loss_drop", "loss_drop_slow", "loss_drop_total", "loss_above_best", "loss_drop_share"),
    *("loss_regret_share", "log_loss_spread", "loss_spread_change"),
)
GRADIENT_FEATURES = ("norm_spread", "norm_total", "norm_change")
COSINE_FEATURES = ("cos_momentum", "cos_momentum_slow", "cos_update", "cos_update_slow")
SIZE_FEATURES = ("log_update_size", "log_param_growth")
VALIDATION_FEATURES = (
    *("valid_known", "valid_age", "valid_above_best", "valid_drop_total", "valid_gap"),
)
SCORE_SEEDS = 4
"""Seeds per task and start of the final score."""


def variants(base: TrainConfig) -> dict[str, TrainConfig]:
    """The recipe, and what it is without one of its parts.

    Args:
        base: the recipe.
    """
    control = base.control

    def steered(**changes: Any) -> TrainConfig:
        return replace(base, control=replace(control, **changes))

    def without(features: tuple[str, ...]) -> TrainConfig:
        return replace(base, hidden_features=features)

    return {
        "recipe": base,
        "reward: z-score, floor 0.1": replace(base, reward="z-score", spread_floor=0.1),
        "reward: rank": replace(base, reward="rank"),
        "noise: independent": replace(base, exploration="independent", log_std=-0.7),
        "families drawn equally": replace(base, family_weights=()),
        "families: teacher-mlp alone": replace(base, families=("teacher-mlp",), family_weights=()),
        "no decay under the policy": steered(final_decay=1.0),
        "actions: learning rate": steered(momentum_step=0.0, clip_step=0.0),
        "actions: learning rate, momentum": steered(clip_step=0.0),
        "20 intervals": steered(num_intervals=20),
        "even intervals": steered(decision_power=1.0),
        "step of log lr 0.7": steered(lr_step=0.7),
        "features: no losses": without(LOSS_FEATURES),
        "features: no gradient norms": without(GRADIENT_FEATURES),
        "features: no cosines": without(COSINE_FEATURES),
        "features: no sizes of updates": without(SIZE_FEATURES),
        "features: no validation losses": without(VALIDATION_FEATURES),
    }


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """What came of one variant.

    Attributes:
        name: of the variant.
        score: mean log ratio to AdamW 1e-3 on the validation tasks, with its interval.
        change: the same less that of the recipe, paired.
        families: the score on each validation family.
    """

    name: str
    score: Interval
    change: Interval
    families: tuple[float, ...]


def run_variant(config: TrainConfig, out: Path, *, seed: int, progress: bool = False) -> FloatArray:
    """Trains a variant, or takes up where it stopped, and scores it.

    Args:
        config: of the variant.
        out: its folder.
        seed: of its training.
        progress: show a progress bar.

    Returns:
        (num_tasks, num_starts * SCORE_SEEDS), log ratios to AdamW at 1e-3.
    """
    scores = out / "scores.csv"
    if not scores.is_file():
        short = replace(config, validations=1)
        train(short, out, seed=seed, resume=out.exists(), progress=progress, meter=False)
        policy = load_policy(out / POLICY)
        suite = ValidationSuite(
            config.validation_families,
            tasks_per_family=config.validation_tasks,
            starts=config.validation_starts,
            seeds=SCORE_SEEDS,
            control=policy.control,
        )
        ratios = suite.score(policy.act).log_ratios
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(ratios.reshape(len(ratios), -1).tolist())
        write_text(scores, table.getvalue())
    with scores.open() as file:
        return np.array([[float(value) for value in row] for row in csv.reader(file)])


def summarise(
    scores: Mapping[str, FloatArray], *, families: Sequence[str], generator: np.random.Generator
) -> list[AblationRow]:
    """Scores with intervals over tasks and over starts and seeds within them.

    Args:
        scores: of each variant, (num_tasks, n); the first is the recipe. Tasks of a family lie
            together.
        families: the validation families, in order.
        generator: of the bootstrap.
    """
    recipe = next(iter(scores.values()))
    rows = []
    for name, values in scores.items():
        rows.append(
            AblationRow(
                name=name,
                score=bootstrap_interval(values, generator=generator, over_tasks=True),
                change=bootstrap_interval(values - recipe, generator=generator, over_tasks=True),
                families=tuple(values.reshape(len(families), -1).mean(axis=1).tolist()),
            )
        )
    return rows


def to_markdown(rows: Sequence[AblationRow], *, families: Sequence[str]) -> str:
    """The table as Markdown.

    Args:
        rows: of the table.
        families: names over the last columns.
    """
    head = ("variant", "score", "change", *families)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = (
            row.name,
            _cell(row.score),
            "" if row is rows[0] else _cell(row.change),
            *(f"{value:+.3f}" for value in row.families),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the ablation from the command line.

    Args:
        arguments: of the command line; None: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--preset", default="laptop", help="the recipe (default: laptop)")
    parser.add_argument("--decisions", type=int, default=100_000, help="of each variant")
    parser.add_argument("--seed", type=int, default=1, help="of each training (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder; what is done there stays")
    parser.add_argument(
        "--only", nargs="+", metavar="VARIANT", help="some of them; the recipe always"
    )
    given = parser.parse_args(arguments)
    base = replace(get_preset(given.preset), decisions=given.decisions)
    known = variants(base)
    for name in given.only or ():
        check_name(name, known, kind="variant")
    scores = {}
    for name, config in known.items():
        if given.only is None or name in ("recipe", *given.only):
            folder = given.out / "".join(c if c.isalnum() else "-" for c in name)
            scores[name] = run_variant(config, folder, seed=given.seed, progress=True)
    families = base.validation_families
    rows = summarise(scores, families=families, generator=np.random.default_rng(0))
    table = to_markdown(rows, families=families)
    write_text(given.out / "ablation.md", table)
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
