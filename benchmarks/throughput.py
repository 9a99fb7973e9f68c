"""Speed of inner training and of meta-training.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json

First table: inner steps a second of N runs of a 64-32-32-10 MLP (AdamW, batch 64, clipping and all
statistics of the environment on), batched against the sequential reference, which is a loop with
`torch.optim` that does the same for one run after another (`ReferenceRun`). A bare loop, which only
trains and clips, stands beside it. They take turns within each repeat, and ratios are taken repeat
by repeat. Second table: what a decision of meta-training costs, within
and outside of inner training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pacesetter.agent.config import TrainConfig
from pacesetter.agent.ppo import make_learner
from pacesetter.envs.schedule_vec_env import ScheduleVecEnv
from pacesetter.inner_models.batching import build_model
from pacesetter.inner_models.mlp import MLPShape, TeacherMLP
from pacesetter.inner_models.reference import ReferenceRun
from pacesetter.inner_models.task import Task
from pacesetter.inner_models.trainer import InnerTrainer

SHAPE = MLPShape(
    widths=(64, 32, 32, 10),
    activation="relu",
    layer_norm=False,
    classification=True,
    num_train=1024,
    batch_size=64,
    horizon=10_000,
)
INTERVAL = 10
"""Inner steps between decisions; about the mean of a horizon of 400 in 40 intervals."""


def sample_tasks(count: int) -> list[Task]:
    """`count` tasks of the benchmark's shape, each with data and weights of its own."""
    generator = torch.Generator().manual_seed(0)
    family = TeacherMLP()
    return [family.build(SHAPE, generator) for _ in range(count)]


def library_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Cross-entropy as a user writes it."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def batched_rate(trainer: InnerTrainer, seconds: float) -> float:
    """Inner steps a second, all runs together, over about `seconds`."""
    lr = np.full((INTERVAL, trainer.num_runs), 1e-3)
    momentum, ratio = np.full(trainer.num_runs, 0.9), np.full(trainer.num_runs, 4.0)
    steps, spent = 0, 0.0
    while spent < seconds:
        spent += timed(lambda: trainer.run(lr, momentum=momentum, clip_ratio=ratio))
        steps += INTERVAL * trainer.num_runs
    return steps / spent


def sequential_rate(run: ReferenceRun, seconds: float) -> float:
    """Inner steps a second of the plain loop, over about `seconds`."""
    steps, spent = 0, 0.0
    while spent < seconds:
        spent += timed(
            lambda: [run.step(lr=1e-3, momentum=0.9, clip_ratio=4.0) for _ in range(INTERVAL)]
        )
        steps += INTERVAL
    return steps / spent


def bare_rate(seconds: float, device: str) -> float:
    """Inner steps a second of a loop that trains and clips and looks at nothing."""
    task = sample_tasks(1)[0]
    model = build_model(task).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, labels = (t.to(device) for t in task.splits.train)
    rows = torch.randint(len(labels), (INTERVAL, task.batch_size), device=device)

    def interval() -> None:
        for row in rows:
            optimizer.zero_grad()
            library_loss(model, (inputs[row], labels[row])).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    steps, spent = 0, 0.0
    while spent < seconds:
        spent += timed(interval)
        steps += INTERVAL
    return steps / spent


def inner_training(
    sizes: list[int], *, siblings: int, repeats: int, seconds: float, device: str
) -> list[dict[str, Any]]:
    """One row per number of runs, with the median, least and greatest of every figure."""
    rows = []
    for num_runs in sizes:
        each = min(siblings, num_runs)
        trainer = InnerTrainer(sample_tasks(num_runs // each), siblings=each, device=device)
        # torch's own cross-entropy is the faster one for a single run.
        single = ReferenceRun(replace(sample_tasks(1)[0], loss=library_loss), device=device)
        batched_rate(trainer, 0.2)
        sequential_rate(single, 0.2)
        turns = [
            (
                batched_rate(trainer, seconds),
                sequential_rate(single, seconds),
                bare_rate(seconds, device),
            )
            for _ in range(repeats)
        ]
        batched, sequential, bare = np.array(turns).T
        row = {
            "runs": num_runs,
            "tasks": num_runs // each,
            "batched": spread(batched),
            "sequential": spread(sequential),
            "bare": spread(bare),
            "ratio": spread(batched / sequential),
            "ratio_to_bare": spread(batched / bare),
        }
        rows.append(row)
        print(
            f"{num_runs:6d} runs   batched {show(row['batched'], '8,.0f')}   "
            f"sequential {show(row['sequential'], '6,.0f')}   ratio {show(row['ratio'], '5.1f')}   "
            f"bare loop {show(row['bare'], '6,.0f')}   ratio {show(row['ratio_to_bare'], '5.1f')}",
            flush=True,
        )
    return rows


def meta_training(rollouts: int, *, device: str) -> dict[str, Any]:
    """Microseconds a decision costs within inner training, in drawing tasks, and elsewhere."""
    config = TrainConfig(decisions=10**6)
    env = ScheduleVecEnv(config.families, seed=0, device=device, num_groups=config.num_groups)
    model = make_learner(config, env, seed=0)
    model.learn(config.rollout)
    clock = {"inner": 0.0, "drawing": 0.0}

    def watch(owner: Any, name: str, label: str) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                clock[label] += time.perf_counter() - start

        setattr(owner, name, wrapper)
        return lambda: setattr(owner, name, original)

    undo = [
        watch(InnerTrainer, "run", "inner"),
        watch(InnerTrainer, "evaluate", "inner"),
        watch(ScheduleVecEnv, "_draw_group", "drawing"),
    ]
    rows = []
    for _ in range(rollouts):
        clock.update(inner=0.0, drawing=0.0)
        wall = timed(lambda: model.learn(config.rollout, reset_num_timesteps=False))
        per = 1e6 / config.rollout
        rows.append(
            (clock["inner"] * per, clock["drawing"] * per, (wall - sum(clock.values())) * per)
        )
    for restore in undo:
        restore()
    inner, drawing, outside = np.array(rows).T
    total = inner + drawing + outside
    result = {
        "runs": config.num_envs,
        "inner_us": spread(inner),
        "drawing_tasks_us": spread(drawing),
        "outside_us": spread(drawing + outside),
        "decisions_per_second": spread(1e6 / total),
    }
    print(
        f"a decision of meta-training ({config.num_envs} runs, {rollouts} rollouts), microseconds: "
        f"within inner training {show(result['inner_us'], '.0f')}, outside "
        f"{show(result['outside_us'], '.0f')} (of which drawing tasks "
        f"{show(result['drawing_tasks_us'], '.0f')}); decisions a second "
        f"{show(result['decisions_per_second'], ',.0f')}"
    )
    return result


def spread(values: Any) -> list[float]:
    """Median, least and greatest."""
    return [float(np.median(values)), float(np.min(values)), float(np.max(values))]


def show(figure: list[float], form: str) -> str:
    """A median with its range."""
    median, low, high = (format(v, form).strip() for v in figure)
    return f"{median} ({low} to {high})"


def main() -> None:
    """Runs both parts and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    parser.add_argument("--siblings", type=int, default=8, help="runs per task (default: 8)")
    parser.add_argument("--repeats", type=int, default=7, help="paired repeats (default: 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default: 1)")
    parser.add_argument("--rollouts", type=int, default=8, help="of meta-training (default: 8)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": args.device,
    }
    print("inner steps a second: median (least to greatest);", machine)
    inner = inner_training(
        args.runs,
        siblings=args.siblings,
        repeats=args.repeats,
        seconds=args.seconds,
        device=args.device,
    )
    meta = meta_training(args.rollouts, device=args.device)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": machine, "inner_training": inner, "meta_training": meta}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
