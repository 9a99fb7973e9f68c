"""Speed of inner training and of meta-training.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Four tables. (1) Inner steps a second of N runs of three models (`measures.model_task`; AdamW, with
clipping and all statistics of the environment on): batched, against the sequential reference, a
loop with `torch.optim` that does the same for one run after another (`ReferenceRun`), and against
the time of the bare matrix products of the same shapes, which is the limit. A bare loop, which only
trains and clips, stands beside it. All take turns within each repeat, and ratios are taken repeat
by repeat. Peak memory of a run is measured apart. (2) The same against the reference for a drawn
task of every family. (3) Decisions a second of the vectorised environment against SB3's
`DummyVecEnv` and `SubprocVecEnv` over environments of one run. (4) What a decision of meta-training
costs, within and outside of inner training.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import measures
import numpy as np
import torch
from measures import INTERVAL, show, spread
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.train import make_learner
from pacesetter.envs.actions import NUM_ACTIONS
from pacesetter.envs.gym_env import ScheduleEnv
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.registry import FROM_FILES, family_names, make_family
from pacesetter.inner_models.task import Task, TaskFamily

MODELS = ("mlp", "convnet", "transformer")


def inner_training(
    model: str, sizes: list[int], *, siblings: int, repeats: int, seconds: float, device: str
) -> list[dict[str, Any]]:
    """One row per number of runs, with the median, least and greatest of every figure."""
    rows: list[dict[str, Any]] = []
    measure = partial(measures.rate, seconds=seconds, device=device)
    for num_runs in sizes:
        each = min(siblings, num_runs)
        tasks = [measures.model_task(model, seed) for seed in range(num_runs // each)]
        calls = {
            "batched": (measures.batched(InnerTrainer(tasks, siblings=each, device=device)), 1),
            "products": (measures.products(tasks[0], num_runs, device=device), 1),
            "sequential": (_plain(measures.sequential, tasks[0], device), 0),
            "bare": (_plain(measures.bare_loop, tasks[0], device), 0),
        }
        for call, _ in calls.values():
            call()
        turns = [
            [
                measure(call, steps=(num_runs if many else 1) * _interval(name))
                for name, (call, many) in calls.items()
            ]
            for _ in range(repeats)
        ]
        found = dict(zip(calls, np.array(turns).T, strict=True))
        row = {
            "model": model,
            "runs": num_runs,
            "tasks": len(tasks),
            **{name: spread(values) for name, values in found.items()},
            "ratio": spread(found["batched"] / found["sequential"]),
            "ratio_to_bare": spread(found["batched"] / found["bare"]),
            "share_of_products": spread(found["batched"] / found["products"]),
            "bytes_per_run": measures.peak_memory(model, num_runs, each, device=device),
        }
        rows.append(row)
        mebibytes = row["bytes_per_run"] / 2**20
        print(
            f"{model:11s} {num_runs:5d} runs  batched {show(row['batched'], '8,.0f')}  sequential "
            f"{show(row['sequential'], '6,.0f')}  ratio {show(row['ratio'], '5.1f')}  to the bare "
            f"loop {show(row['ratio_to_bare'], '5.1f')}  share of bare products "
            f"{show(row['share_of_products'], '.2f')}  {mebibytes:.2f} MiB a run",
            flush=True,
        )
    return rows


def _interval(name: str) -> int:
    return 1 if name == "products" else INTERVAL


def _plain(make: Callable[..., Callable[[], Any]], task: Task, device: str) -> Callable[[], Any]:
    # torch's own cross-entropy is the faster one for a single run.
    return make(replace(task, loss=measures.torch_loss), device=device)


def every_family(
    *, num_runs: int, siblings: int, repeats: int, seconds: float, device: str
) -> list[dict[str, Any]]:
    """The first task of each family: batched rate over the rate of the reference."""
    rows = []
    for name in family_names():
        if name in FROM_FILES:
            continue
        generator = torch.Generator().manual_seed(0)
        tasks = make_family(name).sample_group(num_runs // siblings, generator)
        trainer = InnerTrainer(tasks, siblings=siblings, device=device)
        calls = measures.batched(trainer), measures.sequential(tasks[0], device=device)
        for call in calls:
            call()
        measure = partial(measures.rate, seconds=seconds, device=device)
        turns = [
            (
                measure(calls[0], steps=num_runs * INTERVAL),
                measure(calls[1], steps=INTERVAL),
            )
            for _ in range(repeats)
        ]
        many, one = np.array(turns).T
        row = {
            "family": name,
            "runs": num_runs,
            "batch_size": tasks[0].batch_size,
            "params": trainer.num_params,
            "batched": spread(many),
            "sequential": spread(one),
            "ratio": spread(many / one),
        }
        rows.append(row)
        print(
            f"{name:24s} {row['params']:7,d} parameters, batch {row['batch_size']:3d}  batched "
            f"{show(row['batched'], '8,.0f')}  sequential {show(row['sequential'], '6,.0f')}  "
            f"ratio {show(row['ratio'], '5.1f')}",
            flush=True,
        )
    return rows


class OneShape(TaskFamily):
    """Tasks of the benchmark's MLP, 400 steps each: every environment does the same work."""

    name = "one-shape"

    def sample_shape(self, generator: torch.Generator) -> None:
        """There is one."""

    def build(self, shape: None, generator: torch.Generator) -> Task:
        """A task with data of its own."""
        seed = int(torch.randint(2**31, (), generator=generator))
        return replace(measures.model_task("mlp", seed), horizon=400)


def _one_run(family: TaskFamily) -> ScheduleEnv:
    """An environment of one run; in a process of its own, with one thread: many share a core."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    return ScheduleEnv(family)


def environments(num_envs: int, *, repeats: int, device: str) -> dict[str, Any]:
    """Decisions a second of whole episodes, zero actions, ours against SB3's over one-run ones.

    `ScheduleEnv` trains a sibling beside its run for the reward, as its users' runs do.
    """
    family = OneShape()
    envs = [partial(_one_run, family)] * num_envs
    makers: dict[str, Callable[[], Any]] = {
        "ScheduleVecEnv": lambda: ScheduleVecEnv(
            [family], num_groups=4, tasks_per_group=num_envs // 32, siblings=8, device=device
        ),
        "DummyVecEnv": lambda: DummyVecEnv(envs),
        "SubprocVecEnv": lambda: SubprocVecEnv(envs, start_method="forkserver"),
    }
    rates: dict[str, list[float]] = {name: [] for name in makers}
    actions = np.zeros((num_envs, NUM_ACTIONS), dtype=np.float32)
    for _ in range(repeats):
        for name, make in makers.items():
            env = make()
            env.reset()

            def episode(env: Any = env) -> None:
                for _ in range(39):
                    env.step(actions)

            spent = measures.timed(episode, device=device)
            rates[name].append(39 * num_envs / spent)
            env.close()
    ours = np.array(rates["ScheduleVecEnv"])
    result: dict[str, Any] = {"runs": num_envs}
    for name, values in rates.items():
        result[name] = spread(values)
        result[f"ratio_to_{name}"] = spread(ours / np.array(values))
        print(
            f"{name:15s} of {num_envs} runs: {show(result[name], ',.0f')} decisions a second; "
            f"ours is {show(result[f'ratio_to_{name}'], '.1f')} times that",
            flush=True,
        )
    return result


def meta_training(rollouts: int, *, device: str) -> dict[str, Any]:
    """Microseconds a decision costs within inner training, in drawing tasks, and elsewhere."""
    config = TrainConfig(decisions=10**6)
    env = ScheduleVecEnv(config.families, seed=0, device=device, num_groups=config.env.num_groups)
    model = make_learner(config, env, seed=0)
    model.learn(config.rollout)
    clock = {"inner": 0.0, "drawing": 0.0}

    def watch(owner: Any, name: str, label: str) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            clock[label] += measures.timed(
                lambda: result.append(original(*args, **kwargs)), device=device
            )
            return result[0]

        setattr(owner, name, wrapper)
        return lambda: setattr(owner, name, original)

    undo = [
        watch(InnerTrainer, "run", "inner"),
        watch(InnerTrainer, "evaluate", "inner"),
        watch(ScheduleVecEnv, "_draw", "drawing"),
    ]
    rows = []
    for _ in range(rollouts):
        clock.update(inner=0.0, drawing=0.0)
        wall = measures.timed(
            lambda: model.learn(config.rollout, reset_num_timesteps=False), device=device
        )
        per = 1e6 / config.rollout
        rows.append(
            (clock["inner"] * per, clock["drawing"] * per, (wall - sum(clock.values())) * per)
        )
    for restore in undo:
        restore()
    inner, drawing, outside = np.array(rows).T
    total = inner + drawing + outside
    result = {
        "runs": config.env.num_envs,
        "families": list(config.families),
        "inner_us": spread(inner),
        "drawing_tasks_us": spread(drawing),
        "outside_us": spread(drawing + outside),
        "decisions_per_second": spread(1e6 / total),
    }
    print(
        f"a decision of meta-training ({config.env.num_envs} runs, {rollouts} rollouts), "
        "microseconds: "
        f"within inner training {show(result['inner_us'], '.0f')}, outside "
        f"{show(result['outside_us'], '.0f')} (of which drawing tasks "
        f"{show(result['drawing_tasks_us'], '.0f')}); decisions a second "
        f"{show(result['decisions_per_second'], ',.0f')}"
    )
    return result


def main() -> None:
    """Runs all parts and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--runs", type=int, nargs="+", help="1 to 512; on CUDA up to 8,192")
    parser.add_argument("--siblings", type=int, default=8, help="runs per task (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="paired repeats (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default: 1)")
    parser.add_argument("--rollouts", type=int, default=8, help="of meta-training (default: 8)")
    parser.add_argument("--only", choices=("models", "families", "environments", "meta"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    on_cuda = args.device.startswith("cuda")
    result: dict[str, Any] = {
        "machine": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name(args.device) if on_cuda else args.device,
        }
    }
    print("inner steps a second: median (least to greatest);", result["machine"])
    shared = {"repeats": args.repeats, "device": args.device}
    paced = {"siblings": args.siblings, "seconds": args.seconds, **shared}
    sizes = args.runs or [1, 8, 32, 128, 512, *([2048, 4096, 8192] if on_cuda else [])]
    if args.only in (None, "models"):
        rows = [row for name in args.models for row in inner_training(name, sizes, **paced)]
        result["inner_training"] = rows
    if args.only in (None, "families"):
        result["families"] = every_family(num_runs=128, **paced)
    if args.only in (None, "environments"):
        result["environments"] = environments(32, **shared)
    if args.only in (None, "meta"):
        result["meta_training"] = meta_training(args.rollouts, device=args.device)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
