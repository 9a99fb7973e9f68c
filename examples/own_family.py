"""A task family of your own: what is drawn, and the job around it comes by itself.

    python examples/own_family.py
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from pacesetter.envs.schedule_vec_env import ScheduleVecEnv
from pacesetter.inner_models.generated import GeneratedFamily, Problem
from pacesetter.inner_models.job import JobRanges
from pacesetter.inner_models.losses import mean_squared_error


def build(width):
    """Any module; runs of one width are trained side by side."""
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))


def rows(count, generator, *, pitch):
    """Fresh rows: a sine of this task's pitch."""
    x = 2 * torch.rand(count, 1, generator=generator) - 1
    return x, torch.sin(pitch * x) + 0.1 * torch.randn(count, 1, generator=generator)


@dataclass(frozen=True)
class Sines(GeneratedFamily):
    """Sine waves: | drawn | range | width | 8 to 64 | pitch | 1 to 10 |."""

    ranges: JobRanges = field(default_factory=JobRanges)
    name: str = "sines"

    def draw_model(self, draw):
        """What decides the sizes of tensors."""
        return draw.log_integer(8, 64)

    def cost(self, width):
        """Multiply-adds of a row."""
        return 2 * width

    def draw_problem(self, shape, draw):
        """What differs between tasks of one shape."""
        sampler = partial(rows, pitch=draw.log_uniform(1, 10))
        return Problem(build_model=partial(build, shape.model), loss=mean_squared_error, rows=sampler)


venv = ScheduleVecEnv([Sines(), "teacher-mlp"], num_groups=2, tasks_per_group=2, siblings=2)
print(f"{venv.num_envs} runs of {sorted({task.name for task in venv.tasks} or {'nothing yet'})}")
venv.reset()
print(f"{venv.num_envs} runs of {sorted({task.name for task in venv.tasks})}")
