"""How many decisions a second meta-training takes with more workers, and what the engine costs.

Two measurements. "Training" has workers of one thread each train inner runs, as many workers as
there are cores. "Sleeping" has workers that only sleep a given time per decision, so that any
number of them fits on a few cores: what a decision takes beyond that time is the engine's own
(messages, waiting for the slowest, joining results), and how it grows with the workers shows.

    export OMP_NUM_THREADS=1
    python benchmarks/scale_out.py | grep -v '(raylet)' | tee benchmarks/results/scale-out.txt

What is left out are remarks of Ray's that so many workers are many for the cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from pacesetter.agent.training.train import make_learner
from pacesetter.envs.ray.cluster import available_cores, connected
from pacesetter.envs.ray.vec_env import RayScheduleVecEnv
from pacesetter.envs.ray.workers import Workers
from pacesetter.envs.runs import GroupStep
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.experiments.presets import get_preset

STORE = 2**28
ROWS = 32
"""Inner runs of a group: 4 tasks with 8 siblings, as in the presets."""


class SleepingGroup:
    """Sleeps instead of training; its messages have the size of real ones."""

    def __init__(self, seconds: float, rows: int, features: int) -> None:
        self._seconds = seconds
        self._answer = np.zeros((rows, features))

    def begin(self) -> NDArray[np.float64]:
        """Sleeps."""
        time.sleep(self._seconds)
        return self._answer

    def step(self, actions: NDArray[Any]) -> GroupStep:
        """Sleeps."""
        rows = len(actions)
        time.sleep(self._seconds)
        return self._answer, np.zeros(rows), False, [{} for _ in range(rows)]


@dataclass(frozen=True)
class SleepingGroups:
    """Draws them. One group per worker, so that a worker sleeps once per decision."""

    seconds: float
    rows: int
    features: int

    def __call__(self, seed: int, episode: int, group: int) -> SleepingGroup:
        return SleepingGroup(self.seconds, self.rows, self.features)


class SleepingEnv(RayScheduleVecEnv):
    """One sleeping group for each worker."""

    def __init__(self, count: int, seconds: float) -> None:
        workers = Workers(count=count, threads=None)
        super().__init__(
            ["teacher-mlp"], workers=workers, num_groups=count, tasks_per_group=ROWS // 8
        )
        shape = self.observation_space.shape
        assert shape is not None
        self._draw_group = SleepingGroups(seconds, ROWS, shape[0])


class Awaiting(BaseCallback):
    """Does what meta-training does before a rollout."""

    def __init__(self, env: ScheduleVecEnv) -> None:
        super().__init__()
        self._env = env

    def _on_rollout_start(self) -> None:
        self._env.await_reset()

    def _on_step(self) -> bool:
        return True


def sleeping(counts: Sequence[int], seconds: float, decisions: int) -> None:
    """Prints what a decision costs beyond the sleep, by the number of workers."""
    print(f"\nWorkers that sleep {seconds * 1e3:.0f} ms a decision, one group of {ROWS} runs each;")
    print(f"median of {decisions} decisions of all workers, 90th percentile in brackets.")
    head = "workers  ms a decision      engine ms     share of time  driver CPU ms  decisions/s"
    print(head)
    for count in counts:
        env = SleepingEnv(count, seconds)
        env.reset()
        actions = np.zeros((env.num_envs, 3))
        for _ in range(3):
            env.step(actions)
        walls, begun = [], time.process_time()
        for _ in range(decisions):
            start = time.perf_counter()
            env.step(actions)
            walls.append(time.perf_counter() - start)
        driver = (time.process_time() - begun) / decisions
        env.close()
        middle, slow = np.quantile(walls, [0.5, 0.9])
        share = 1 - seconds * decisions / sum(walls)
        print(
            f"{count:7d}  {middle * 1e3:6.1f} ({slow * 1e3:6.1f})  {(middle - seconds) * 1e3:5.1f} "
            f"({(slow - seconds) * 1e3:5.1f})  {share:13.1%}  {driver * 1e3:13.1f}  "
            f"{env.num_envs * decisions / sum(walls):11,.0f}",
            flush=True,
        )


def training(counts: Sequence[int], groups: int, rollouts: int) -> None:
    """Prints decisions a second of meta-training on real inner runs, by the number of workers."""
    config = get_preset("laptop")
    config = replace(config, env=replace(config.env, num_groups=groups))
    print(
        f"\nMeta-training with the preset laptop, {config.env.num_envs} runs in {groups} groups,\n"
        f"PPO included: {rollouts} rollouts after one to warm up, the same episodes each time;\n"
        "median, least and greatest of the rollouts. Ratios are of the same rollout."
    )
    print("workers       decisions/s                  over one worker")
    seconds: dict[int, NDArray[np.float64]] = {}
    for count in (1, 0, *counts[1:]):
        if count:
            env: ScheduleVecEnv = RayScheduleVecEnv(
                config.families, config.env, workers=Workers(count=count), prefetch=True
            )
        else:
            env = ScheduleVecEnv(config.families, config.env)
        model = make_learner(config, env, seed=0)
        taken = []
        for rollout in range(rollouts + 1):
            start = time.perf_counter()
            model.learn(config.rollout, callback=Awaiting(env), reset_num_timesteps=rollout == 0)
            taken.append(time.perf_counter() - start)
        env.close()
        seconds[count] = np.array(taken[1:])
        name = f"{count}" if count else "local engine"
        rate = _spread(config.rollout / seconds[count], ",.0f")
        print(f"{name:12s}  {rate:27s}  {_spread(seconds[1] / seconds[count], '.2f')}", flush=True)


def _spread(values: NDArray[np.float64], form: str) -> str:
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("training", "sleeping"), help="one of the two")
    parser.add_argument("--sleep", type=float, default=0.2, metavar="S", help="per decision")
    parser.add_argument("--decisions", type=int, default=60, metavar="N", help="asleep, to average")
    parser.add_argument("--most", type=int, default=64, metavar="N", help="sleeping workers")
    parser.add_argument("--groups", type=int, default=8, metavar="N", help="of real inner runs")
    parser.add_argument("--rollouts", type=int, default=7, metavar="N", help="of real inner runs")
    args = parser.parse_args()
    cores = available_cores()
    awake = [n for n in (1, 2, 4, 8) if n <= min(cores, args.groups)]
    asleep = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= args.most]
    torch.set_num_threads(1)
    with connected(cpus=max(asleep), store=STORE) as ray:
        load = os.getloadavg()[0]
        print(f"{platform.system()} {platform.machine()}, {cores} cores, load {load:.1f} before")
        print(
            f"Python {platform.python_version()}, torch {torch.__version__}, Ray {ray.__version__}"
        )
        if args.only != "sleeping":
            training(awake, args.groups, args.rollouts)
        if args.only != "training":
            sleeping(asleep, args.sleep, args.decisions)


if __name__ == "__main__":
    main()
