"""A normalising flow on patches of photographs: held out, and the one real loss that is negative.

RealNVP (Dinh, Sohl-Dickstein & Bengio 2017): affine coupling layers, of which each leaves half of
the numbers as they are and shifts and scales the others by what a small MLP makes of the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.real.photos import photo_patches, pixel_statistics
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation, MLPShape, build_mlp
from pacesetter.inner_models.task import Batch, OptimizerConfig, Splits, Task, TaskFamily

BEST_KNOWN = {3: -15.9, 4: -31.1}
"""By the side of a patch, the least loss known on any split, in nats per row.

The least possible is unknown. These are of a flow of 12 coupling layers of width 128 after 20,000
steps (``benchmarks/photo_flow_reference.py``), far beyond the family's own sizes and horizons, on
the test split, where it is least: the tiles of the splits differ by a few nats.
"""


@dataclass(frozen=True, kw_only=True)
class FlowShape:
    """Sizes and code paths of a flow.

    Attributes:
        side: of the patches, in pixels.
        couplings: number of coupling layers, even.
        hidden: width of the conditioners' one hidden layer.
        activation: of the conditioners.
    """

    side: int
    couplings: int
    hidden: int
    activation: Activation


class AffineCoupling(nn.Module):
    """One coupling layer on rows of `width` numbers.

    Args:
        order: a permutation of the numbers, (width,); the first half of the permuted ones is left
            as it is.
        hidden: width of the conditioner's hidden layer.
        activation: of the conditioner.
    """

    order: Tensor

    def __init__(self, order: Tensor, *, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.kept = len(order) // 2
        moved = len(order) - self.kept
        widths = (self.kept, hidden, 2 * moved)
        self.conditioner = build_mlp(MLPShape(widths=widths, activation=activation))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed rows, and the logarithm of the Jacobian's determinant, (rows,)."""
        permuted = rows[:, self.order]
        kept, moved = permuted[:, : self.kept], permuted[:, self.kept :]
        raw, shift = self.conditioner(kept).chunk(2, dim=1)
        log_scale = 2 * torch.tanh(raw / 2)  # within 2 of zero: no step can blow a row up
        return torch.cat([kept, moved * log_scale.exp() + shift], dim=1), log_scale.sum(1)


class Flow(nn.Module):
    """Coupling layers after which the rows are to be white noise.

    Args:
        shape: sizes and code paths. Permutations are drawn from torch's global generator, as the
            initial weights are.
    """

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        width = shape.side**2
        layers = []
        for i in range(shape.couplings):
            # In turn a random order and an exchange of its halves: a pair moves every number.
            order = torch.arange(width).roll(width - width // 2) if i % 2 else torch.randperm(width)
            layers.append(AffineCoupling(order, hidden=shape.hidden, activation=shape.activation))
        self.layers = nn.ModuleList(layers)

    def forward(self, rows: Tensor) -> Tensor:
        """Log density in nats of each row, (rows, width) -> (rows,)."""
        constant = 0.5 * math.log(2 * math.pi) * rows.shape[1]
        log_det = rows.new_zeros(())
        for layer in self.layers:
            rows, part = layer(rows)
            log_det = log_det + part
        return log_det - 0.5 * rows.square().sum(1) - constant


def negative_log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Mean negative log density in nats per row; batch is (rows,)."""
    log_density: Tensor = model(batch[0])
    return -log_density.mean()


class PhotoFlow(TaskFamily):
    """Density of small grey patches of photographs by RealNVP flows, in nats per row.

    Grey levels are made continuous by uniform noise over one level (dequantisation), drawn once
    for each row, and scaled to mean 0 and spread 1 over the train split. Neighbouring pixels are
    so much alike that densities are far above 1: losses fall below zero. A task's optimum is the
    best that is known (`BEST_KNOWN`), not the best there is.

    | drawn per shape | range |
    |---|---|
    | side of the patches | 3 or 4 pixels |
    | coupling layers | 2, 4 or 6 |
    | hidden width, activation of the conditioners | 16 to 48; relu, tanh, gelu, silu |
    | rows of the train split | 2,000, 5,000 or all (31,200 of side 3, 19,968 of side 4) |
    | batch size | 32 to 128 |
    | horizon | 300 to 3,000 inner steps |
    """

    name = "photo-flow"

    def sample_shape(self, generator: torch.Generator) -> Shape[FlowShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        side = draw.choice((3, 4))
        model = FlowShape(
            side=side,
            couplings=draw.choice((2, 4, 6)),
            hidden=draw.log_integer(16, 48),
            activation=draw.choice(tuple(ACTIVATIONS)),
        )
        job = Job(
            num_train=draw.choice((2000, 5000, len(photo_patches(side)[0]))),
            batch_size=draw.power_of_two(32, 128),
            horizon=draw.log_integer(300, 3000),
        )
        return Shape(model, job)

    def build(self, shape: Shape[FlowShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in dequantisation, weights and batch order."""
        model, job = shape.model, shape.job
        return Task(
            partial(Flow, model),
            negative_log_likelihood,
            dequantised_splits(model.side, num_train=job.num_train, generator=generator),
            horizon=job.horizon,
            batch_size=job.batch_size,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=job.weight_decay),
            name=self.name,
            seed=Draw(generator).seed(),
            optimum=BEST_KNOWN[model.side],
        )


def dequantised_splits(side: int, *, num_train: int, generator: torch.Generator) -> Splits:
    """Patches as rows of continuous numbers, float32 (rows, side * side).

    Args:
        side: of a patch, in pixels.
        num_train: rows of the train split, the first ones.
        generator: draws the noise.
    """
    parts = photo_patches(side)
    mean, spread = pixel_statistics(parts[0])
    batches = []
    for patches in (parts[0][:num_train], *parts[1:]):
        levels = patches.flatten(1).double()
        levels += torch.rand(levels.shape, generator=generator, dtype=torch.float64)
        batches.append((((levels - mean) / spread).float(),))
    return Splits(*batches)
