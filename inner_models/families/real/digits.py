"""MLPs on scikit-learn's handwritten digits: real data, kept out of meta-training.

1,797 images of 8 x 8 pixels (Alpaydin & Kaynak 1998), in a fixed split of 1,000 train, 197
inner-valid, 300 outer-valid and 300 test rows; smaller training sets take the first rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import LossFn, OptimizerConfig, Splits, Task, TaskFamily

_SIZES = (1000, 197, 300, 300)


@cache
def digits_splits(num_train: int = _SIZES[0]) -> Splits:
    """The digits, pixels scaled to mean 0 and spread 1 over the whole train split.

    Args:
        num_train: rows of the train split, from 1 to 1,000.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: `num_train` is out of range.
    """
    if not 1 <= num_train <= _SIZES[0]:
        raise ValueError(f"num_train must lie between 1 and {_SIZES[0]}, but got {num_train}")
    data = require("sklearn.datasets", extra="train").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.data[order]).float()
    labels = torch.from_numpy(data.target[order]).long()
    train = images[: _SIZES[0]]
    images = (images - train.mean()) / train.std()
    inputs, targets = images.split(_SIZES), labels.split(_SIZES)
    parts = list(zip(inputs, targets, strict=True))
    parts[0] = (inputs[0][:num_train], targets[0][:num_train])
    return Splits(*parts)


class DigitsMLP(TaskFamily):
    """Classification of 8 x 8 digits by MLPs.

    | drawn per shape | range |
    |---|---|
    | hidden layers, width | 1 to 3, 16 to 128 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | rows of the train split | 200, 500 or 1,000 |
    | batch size | 16 to 128 |
    | horizon | 200 to 1,500 inner steps |
    """

    name = "digits-mlp"

    def sample_shape(self, generator: torch.Generator) -> Shape[MLPShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = draw_mlp(draw, inputs=64, hidden=(16, 128), depth=(1, 3), outputs=10)
        return Shape(model, draw_digits_job(draw))

    def build(self, shape: Shape[MLPShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        return digits_task(
            shape.job,
            build_model=partial(build_mlp, shape.model),
            name=self.name,
            seed=Draw(generator).seed(),
        )


def draw_digits_job(draw: Draw) -> Job:
    """Draws the job around a digits model: rows, batch size and horizon."""
    return Job(
        num_train=draw.choice((200, 500, 1000)),
        batch_size=draw.power_of_two(16, 128),
        horizon=draw.log_integer(200, 1500),
    )


def digits_task(
    job: Job,
    *,
    build_model: Callable[[], nn.Module],
    name: str,
    seed: int,
    loss: LossFn = cross_entropy,
    splits: Splits | None = None,
) -> Task:
    """A task on the digits, with AdamW at its default.

    Args:
        job: sizes.
        build_model: makes the module.
        name: of the task.
        seed: of initial weights and batch order.
        loss: cross-entropy, unless the family has another.
        splits: the digits, unless the family changes them.
    """
    return Task(
        build_model,
        loss,
        splits or digits_splits(job.num_train),
        horizon=job.horizon,
        batch_size=job.batch_size,
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=job.weight_decay),
        name=name,
        seed=seed,
    )
