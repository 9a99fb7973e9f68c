"""What is best for the tasks of a family: learning rates, how far the loss falls, what it costs.

    python benchmarks/family_survey.py --families teacher-mlp --tasks 12

Draws tasks, trains each with a grid of learning rates under a cosine, and prints by optimizer the
median and quartiles of the best learning rate (for SGD times the factor on the loss, so that it can
be set beside `JobRanges.sgd_lr`), the median share of the excess loss that is left, and the time of
an inner step of one run. The ranges of sensible learning rates in the families come from here.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.base import GeneratedFamily
from pacesetter.inner_models.registry import META_TRAIN, make_family
from pacesetter.inner_models.task import OPTIMIZERS, OptimizerName, Task

LRS = 10.0 ** np.arange(-4.5, 1.01, 0.25)


def sample(family: GeneratedFamily[object], optimizer: OptimizerName, *, seed: int) -> Task:
    """One task of a family with the optimizer asked for."""
    generator = torch.Generator().manual_seed(seed)
    shape = family.sample_shape(generator)
    job = replace(shape.job, optimizer=optimizer, weight_decay=0.0)
    return family.build(replace(shape, job=job), generator)


def survey(task: Task, *, longest: int) -> tuple[float, float, float]:
    """Best learning rate, share of the excess loss left by it, seconds of a step of one run."""
    horizon = min(task.horizon, longest)
    # The step of SGD grows with the factor on the loss, that of the others does not.
    factor = float(dict(task.build_model().named_buffers())["loss_scale"])
    lrs = LRS / factor if task.optimizer.name == "sgd" else LRS
    trainer = InnerTrainer([task], siblings=len(LRS))
    start = trainer.evaluate("outer_valid")[0]
    decay = 0.5 * (1 + np.cos(np.pi * np.arange(horizon) / horizon))
    momentum = np.full(len(LRS), task.optimizer.momentum)
    begin = time.perf_counter()
    trainer.run(decay[:, None] * lrs, momentum=momentum)
    spent = time.perf_counter() - begin
    losses = np.nan_to_num(trainer.evaluate("outer_valid"), nan=np.inf)
    best = int(np.argmin(losses))
    optimum = task.optimum or 0.0
    left = (losses[best] - optimum) / (start - optimum)
    return LRS[best], left, spent / (horizon * len(LRS))


def main() -> None:
    """Prints a line per family and optimizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=list(META_TRAIN))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--tasks", type=int, default=12, help="per family and optimizer")
    parser.add_argument("--longest", type=int, default=1000, help="most inner steps of a run")
    args = parser.parse_args()
    print("family, optimizer: best lr, median (quartiles); excess left; microseconds of a run-step")
    for name in args.families:
        family = make_family(name)
        assert isinstance(family, GeneratedFamily), f"{name} is not a family on generated data"
        for optimizer in args.optimizers:
            rows = []
            for seed in range(args.tasks):
                task = sample(family, optimizer, seed=seed)
                rows.append(survey(task, longest=args.longest))
            lrs, left, seconds = np.array(rows).T
            low, mid, high = np.quantile(lrs, (0.25, 0.5, 0.75))
            print(
                f"{name:24s} {optimizer:8s} {mid:8.2g} ({low:.2g} to {high:.2g})   "
                f"{np.median(left):6.3f}   {1e6 * np.median(seconds):8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
