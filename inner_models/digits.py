"""MLPs on scikit-learn's handwritten digits: real data, kept out of meta-training.

1,797 images of 8 x 8 pixels (Alpaydin & Kaynak 1998), in a fixed split of 1,000 train, 197
inner-valid, 300 outer-valid and 300 test rows; smaller training sets take the first rows.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch

from pacesetter.inner_models.extras import require
from pacesetter.inner_models.mlp import Draw, MLPShape, build_mlp, cross_entropy
from pacesetter.inner_models.task import OptimizerConfig, Splits, Task, TaskFamily

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

    def sample_shape(self, generator: torch.Generator) -> MLPShape:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        width = draw.log_integer(16, 128)
        return MLPShape(
            widths=(64, *[width] * draw.integer(1, 3), 10),
            activation=draw.choice(("relu", "tanh", "gelu", "silu")),  # type: ignore[arg-type]
            layer_norm=draw.chance(0.3),
            classification=True,
            num_train=(200, 500, 1000)[draw.integer(0, 2)],
            batch_size=2 ** draw.integer(4, 7),
            horizon=draw.log_integer(200, 1500),
        )

    def build(self, shape: MLPShape, generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        draw = Draw(generator)
        return Task(
            partial(build_mlp, shape),
            cross_entropy,
            digits_splits(shape.num_train),
            horizon=shape.horizon,
            batch_size=shape.batch_size,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=shape.weight_decay),
            name=self.name,
            seed=draw.seed(),
        )
