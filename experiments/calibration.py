"""One learning rate for all jobs: found once on the meta-train families, kept in a file.

The rival that counts. An agent that is not adaptive has learned a constant, and this is the best
constant that the same families have to offer. `python -m pacesetter.experiments.calibration`
finds it anew; the comparison reads what is stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.agent.runs.folder import write_json
from pacesetter.experiments.analysis.statistics import comparable
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.batched import train_batch
from pacesetter.experiments.sampling import adamw_groups
from pacesetter.inner_models.registry import META_TRAIN, make_family
from pacesetter.inner_models.task import TaskFamily

FloatArray = NDArray[np.float64]

CALIBRATION_FILE = Path(__file__).with_name("calibration.json")
"""What the comparison reads."""
CALIBRATION_LRS = tuple(float(f"{10**k:.3g}") for k in np.linspace(-4, -1, 13))
"""Quarters of a decade from which the one learning rate is chosen."""


@dataclass(frozen=True)
class Calibration:
    """What was found for one baseline.

    Attributes:
        lr: the learning rate of least mean.
        means: mean over tasks of the log outer-valid loss, relative to the best, by learning rate.
        num_tasks: how many tasks it rests on.
    """

    lr: float
    means: dict[float, float]
    num_tasks: int


def calibrate(
    baseline: Baseline,
    families: Sequence[TaskFamily],
    *,
    num_tasks: int,
    generator: torch.Generator,
    lrs: Sequence[float] = CALIBRATION_LRS,
    device: torch.device | str = "cpu",
) -> Calibration:
    """Finds the learning rate with the least mean log outer-valid loss over sampled tasks.

    The start of the learning rate that a task comes with is not used: it is noise.

    Args:
        baseline: an AdamW schedule.
        families: to draw tasks from, in turn.
        num_tasks: how many, rounded up to whole groups.
        generator: of the tasks.
        lrs: to choose from.
        device: where the runs live.
    """
    rows: list[FloatArray] = []
    for tasks in adamw_groups(families, num_tasks=num_tasks, generator=generator):
        for task in tasks:
            assert task.seed is not None
            settings = [Configured(baseline, {"lr": lr}) for lr in lrs]
            runs = train_batch(task, settings, seeds=[task.seed], num_intervals=1, device=device)
            losses = runs.losses("outer_valid")[:, None, None]
            rows.append(comparable(losses, untrained=runs.untrained[:1])[:, 0, 0])
    mean = np.mean(rows, axis=0)
    means = {lr: float(value - mean.min()) for lr, value in zip(lrs, mean, strict=True)}
    return Calibration(lr=min(means, key=means.__getitem__), means=means, num_tasks=len(rows))


def calibrated_lrs(path: Path = CALIBRATION_FILE) -> dict[str, float]:
    """Learning rates by name of the baseline, as stored.

    Raises:
        FileNotFoundError: nothing is stored.
        ValueError: the file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make it with: python -m pacesetter.experiments.calibration"
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["baselines"]
        return {name: float(entry["lr"]) for name, entry in found.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold calibrated learning rates: {error!r}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrates every baseline that wants it and writes the file."""
    parser = argparse.ArgumentParser(
        prog="python -m pacesetter.experiments.calibration",
        description="Find the learning rates of calibrated baselines on the meta-train families.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--families", nargs="+", default=META_TRAIN, help="to draw tasks from")
    parser.add_argument("--num-tasks", type=int, default=256, help="tasks to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    parser.add_argument("--device", default="cpu", help="where the runs live")
    parser.add_argument("--out", type=Path, default=CALIBRATION_FILE, help="file to write")
    args = parser.parse_args(argv)
    found = {}
    for baseline in BASELINES:
        if not baseline.calibrated:
            continue
        result = calibrate(
            baseline,
            [make_family(name) for name in args.families],
            num_tasks=args.num_tasks,
            generator=torch.Generator().manual_seed(args.seed),
            device=args.device,
        )
        found[baseline.name] = {
            "lr": result.lr,
            "num_tasks": result.num_tasks,
            "mean_log_loss_above_best": {f"{lr:g}": m for lr, m in result.means.items()},
        }
        sys.stdout.write(f"{baseline.name}: {result.lr:g}\n")
    options = (
        f"--families {' '.join(args.families)} --num-tasks {args.num_tasks} --seed {args.seed}"
    )
    write_json(
        args.out,
        {
            "baselines": found,
            "command": f"python -m pacesetter.experiments.calibration {options}",
            "families": list(args.families),
        },
    )


if __name__ == "__main__":
    main()
