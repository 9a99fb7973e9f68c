"""The smallest of everything, for tests of what is done with it: a task, a family, settings."""

from dataclasses import replace

import torch
from torch import nn

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.config import EnvConfig
from pacesetter.experiments.presets import PRESETS
from pacesetter.inner_models.task import ModuleTask, Splits, TaskFamily


def squared_error(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def small_task(name="tiny/line", *, seed=0, loss=squared_error, horizon=24):
    """A network of two layers on 80 rows of noise; a run of it takes a tenth of a second."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 4, generator=generator)
    targets = (inputs @ torch.randn(4, 1, generator=generator)).tanh()
    parts = zip(inputs.split([32, 16, 16, 16]), targets.split([32, 16, 16, 16]), strict=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)),
        loss,
        Splits(*parts),
        horizon=horizon,
        batch_size=8,
        name=name,
    )


class SmallFamily(TaskFamily):
    """Small tasks of one shape."""

    name = "tiny:family"

    def sample_shape(self, generator):
        return None

    def build(self, shape, generator):
        seed = int(torch.randint(1000, (), generator=generator))
        return small_task(seed=seed).with_seed(seed)


class NegativeFamily(SmallFamily):
    """Log ratios of its losses are no numbers."""

    def build(self, shape, generator):
        return small_task(loss=lambda model, batch: squared_error(model, batch) - 100.0)


def family():
    """The family by a name that every process finds which has `tests/` on its path."""
    return SmallFamily()


TINY = replace(
    PRESETS["smoke"],
    decisions=16,
    families=("tiny:family",),
    validation_families=("tiny:family",),
    env=EnvConfig(
        num_groups=1, tasks_per_group=1, siblings=2, control=ControlConfig(num_intervals=5)
    ),
    hidden=(8, 8),
)
"""Two rollouts, two validations."""
