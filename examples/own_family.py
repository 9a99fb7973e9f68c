"""A task family of your own, and an environment that trains on it.

The shipped policy learns on from it, in the folder of this file:

    pacesetter train --init default --families own_family:Sines --out sines
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models import Draw, GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import mean_squared_error


def build(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))


def sine_rows(pitch: float) -> Callable[[int, torch.Generator], tuple[torch.Tensor, ...]]:
    def rows(count: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        x = 2 * torch.rand(count, 1, generator=generator) - 1
        return x, torch.sin(pitch * x) + 0.1 * torch.randn(count, 1, generator=generator)

    return rows


@dataclass(frozen=True)
class Sines(GeneratedFamily[int]):
    ranges: JobRanges = field(default_factory=JobRanges)  # batch sizes, horizons, optimizers, ...
    name: str = "sines"

    def draw_model(self, draw: Draw) -> int:  # what all tasks of a group share: the hidden width
        return draw.log_integer(8, 64)

    def cost(self, width: int) -> float:  # multiply-adds of a row
        return 2.0 * width

    def draw_problem(self, shape: Shape[int], draw: Draw) -> Problem:  # what differs between them
        rows = sine_rows(pitch=draw.log_uniform(1, 10))
        return Problem(build_model=partial(build, shape.model), loss=mean_squared_error, rows=rows)


if __name__ == "__main__":
    venv = ScheduleVecEnv([Sines(), "teacher-mlp"], num_groups=4, tasks_per_group=2, siblings=2)
    venv.reset()
    print(venv.num_envs, "runs of", *sorted({task.name for task in venv.tasks}))
