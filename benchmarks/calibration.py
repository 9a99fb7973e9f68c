"""One learning rate for all jobs: found once on the meta-train families, for `compare` to use.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --out benchmarks/results/calibration.json

An agent that is not adaptive has learned a constant, and this is the best constant that the same
families have to offer. The rate with the least mean log outer-valid loss over sampled tasks is the
default of the arm `adamw-cosine-calibrated` in `experiments/rivals/baselines.py`; what is stored
there was found with ``--num-tasks 224`` by the code at commit db8d08c, on two cores of an AMD EPYC.
The start of the learning rate that a task comes with is not used.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pacesetter.experiments.analysis.statistics import comparable
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.agents import adamw_groups
from pacesetter.experiments.runs.batched import train_batch
from pacesetter.inner_models.registry import META_TRAIN, make_family
from pacesetter.inner_models.task import TaskFamily

ARM = next(baseline for baseline in BASELINES if baseline.calibrated)
LRS = tuple(float(f"{10**k:.3g}") for k in np.linspace(-4, -1, 13))
"""Quarters of a decade from which the one learning rate is chosen."""


def calibrate(
    families: Sequence[TaskFamily],
    *,
    num_tasks: int,
    generator: torch.Generator,
    lrs: Sequence[float] = LRS,
) -> dict[float, float]:
    """Mean over tasks of the log outer-valid loss, relative to the best, by learning rate."""
    rows = []
    for tasks in adamw_groups(families, num_tasks=num_tasks, generator=generator):
        for task in tasks:
            settings = [Configured(ARM, {"lr": lr}) for lr in lrs]
            runs = train_batch(task, settings, seeds=[task.seed], num_intervals=1)
            losses = runs.losses("outer_valid").reshape(len(lrs), 1, 1)
            values = comparable(losses, untrained=runs.untrained[:1])
            rows.append(values.ravel())
    mean = np.mean(rows, axis=0)
    return {lr: float(value - mean.min()) for lr, value in zip(lrs, mean, strict=True)}


def main() -> None:
    """Finds the rate and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=META_TRAIN, help="to draw tasks from")
    parser.add_argument("--num-tasks", type=int, default=224, help="tasks to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    means = calibrate(
        [make_family(name) for name in args.families],
        num_tasks=args.num_tasks,
        generator=torch.Generator().manual_seed(args.seed),
    )
    best = min(means, key=means.__getitem__)
    entry = {
        "lr": best,
        "mean_log_loss_above_best": {f"{lr:g}": mean for lr, mean in means.items()},
        "num_tasks": args.num_tasks,
    }
    command = (
        f"python benchmarks/calibration.py --families {' '.join(args.families)} "
        f"--num-tasks {args.num_tasks} --seed {args.seed}"
    )
    found = {"baselines": {ARM.name: entry}, "command": command, "families": list(args.families)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{ARM.name}: {best:g}")


if __name__ == "__main__":
    main()
