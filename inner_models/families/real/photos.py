"""Patches of photographs: small convnets that take noise off them, and flows of their density.

Two photographs come with scikit-learn (``china.jpg`` and ``flower.jpg``, 427 x 640 pixels). They
are cut into tiles, and each tile, with all its patches, goes to one split: what a network is tested
on it has not seen, not even with other noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, RealFamily, RealProblem, Shape
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import mean_squared_error
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation, MLPShape, build_mlp
from pacesetter.inner_models.task import Batch, Splits

PHOTOS = ("china.jpg", "flower.jpg")
TILE = 32
"""Side of a tile in pixels."""
_SHARES = (0.6, 0.1, 0.15, 0.15)  # of the tiles: train, inner_valid, outer_valid, test
_SIDE = 8  # of the patches that are denoised

BEST_KNOWN = {3: -15.9, 4: -31.1}
"""By the side of a patch, the least loss known on any split, in nats per row.

The least possible is unknown. These are of a flow of 12 coupling layers of width 128 after 20,000
steps (``benchmarks/photo_flow_reference.py``), far beyond the family's own sizes and horizons, on
the test split, where it is least: the tiles of the splits differ by a few nats.
"""


@cache
def photo_patches(side: int) -> tuple[Tensor, ...]:
    """Grey patches of the photographs, `side` pixels wide, in four splits with tiles of their own.

    Returns:
        For train, inner_valid, outer_valid and test: int64 (patches, side, side), from 0 to 255,
        in random order.

    Raises:
        ImportError: scikit-learn or Pillow is missing.
        ValueError: `side` is not from 1 to 32.
    """
    if not 1 <= side <= TILE:
        raise ValueError(f"side must lie between 1 and {TILE} pixels, but got {side}")
    tiles = np.concatenate([_cut(_grey(name), TILE) for name in PHOTOS])
    rng = np.random.default_rng(0)
    order = rng.permutation(len(tiles))
    bounds = np.rint(np.cumsum(_SHARES)[:-1] * len(tiles)).astype(int)
    parts = []
    for part in np.split(tiles[order], bounds):
        patches = np.concatenate([_cut(tile, side) for tile in part])
        parts.append(torch.from_numpy(rng.permutation(patches)))
    return tuple(parts)


def pixel_statistics(patches: Tensor) -> tuple[float, float]:
    """Mean and spread of all pixels of patches, (any shape)."""
    pixels = patches.double()
    return float(pixels.mean()), float(pixels.std())


def _grey(name: str) -> np.ndarray:
    """A photograph's brightness, (height, width) int64 from 0 to 255."""
    require("PIL", extra="train")
    photo = require("sklearn.datasets", extra="train").load_sample_image(name)
    grey: np.ndarray = np.rint(photo.mean(axis=2)).astype(np.int64)
    return grey


def _cut(image: np.ndarray, side: int) -> np.ndarray:
    """Squares side by side, (squares, side, side); what is left at the edges is dropped."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    grid = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return grid.swapaxes(1, 2).reshape(-1, side, side)


@dataclass(frozen=True, kw_only=True)
class DenoiserShape:
    """Sizes and code paths of a denoiser."""

    channels: int  # of hidden layers
    layers: int  # number of hidden layers
    activation: Activation  # after each of them
    # whether the network gives the noise, which is then subtracted from its input (Zhang et
    # al. 2017, DnCNN), instead of the clean patch.
    residual: bool


class Denoiser(nn.Module):
    """Convolutions of 3 x 3 pixels from noisy patches to clean ones, (rows, 1, side, side)."""

    def __init__(self, shape: DenoiserShape) -> None:
        super().__init__()
        self.residual = shape.residual
        layers: list[nn.Module] = []
        fan_in = 1
        for _ in range(shape.layers):
            layers += [nn.Conv2d(fan_in, shape.channels, 3, padding=1)]
            layers += [ACTIVATIONS[shape.activation]()]
            fan_in = shape.channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(fan_in, 1, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        out: Tensor = self.layers(noisy)
        return noisy - out if self.residual else out


class PhotoDenoiser(RealFamily[DenoiserShape]):
    """Denoising of grey 8 x 8 patches of photographs by convnets, least squares.

    Pixels have mean 0 and spread 1 over the train split; the noise is Gaussian, of a spread of 0.1
    to 1 that is drawn per task, and drawn once for each row. Networks have 1 or 2 hidden layers of
    4 to 8 channels. Train splits have 500, 2,000 or all 4,992 rows; batches 16 to 64; horizons 200
    to 1,500 steps.
    """

    name = "photo-denoiser"

    def draw_model(self, draw: Draw) -> DenoiserShape:
        return DenoiserShape(
            channels=draw.log_integer(4, 8),
            layers=draw.integer(1, 2),
            activation=draw.choice(tuple(ACTIVATIONS)),
            residual=draw.chance(0.5),
        )

    def draw_job(self, draw: Draw, model: DenoiserShape) -> Job:
        return Job(
            num_train=draw.choice((500, 2000, len(photo_patches(_SIDE)[0]))),
            batch_size=draw.power_of_two(16, 64),
            horizon=draw.log_integer(200, 1500),
        )

    def draw_problem(self, shape: Shape[DenoiserShape], draw: Draw) -> RealProblem:
        noise, rows = draw.log_uniform(0.1, 1.0), shape.job.num_train
        return RealProblem(
            build_model=partial(Denoiser, shape.model),
            loss=mean_squared_error,
            splits=noisy_splits(num_train=rows, noise=noise, generator=draw.generator),
        )


def noisy_splits(*, num_train: int, noise: float, generator: torch.Generator) -> Splits:
    """Noisy and clean patches, float32 (rows, 1, 8, 8); `noise` is its spread over the pixels'."""
    parts = photo_patches(_SIDE)
    mean, spread = pixel_statistics(parts[0])
    batches = []
    for patches in (parts[0][:num_train], *parts[1:]):
        clean = ((patches.double() - mean) / spread).float()[:, None]
        noisy = clean + noise * torch.randn(clean.shape, generator=generator)
        batches.append((noisy, clean))
    return Splits(*batches)


@dataclass(frozen=True, kw_only=True)
class FlowShape:
    """Sizes and code paths of a flow."""

    side: int  # of the patches, in pixels
    couplings: int  # number of coupling layers, even
    hidden: int  # width of the conditioners' one hidden layer
    activation: Activation  # of the conditioners


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

    Permutations are drawn from torch's global generator, as the initial weights are.
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


class PhotoFlow(RealFamily[FlowShape]):
    """Density of small grey patches of photographs by RealNVP flows, in nats per row.

    RealNVP (Dinh, Sohl-Dickstein & Bengio 2017) has affine coupling layers, of which each leaves
    half of the numbers as they are and shifts and scales the others by what a small MLP makes of
    the first.

    Grey levels are made continuous by uniform noise over one level (dequantisation), drawn once
    for each row, and scaled to mean 0 and spread 1 over the train split. Neighbouring pixels are
    so much alike that densities are far above 1: losses fall below zero. A task's optimum is the
    best that is known (`BEST_KNOWN`), not the best there is.

    Train splits have 2,000, 5,000 or all rows (31,200 of side 3, 19,968 of side 4); batches 32 to
    128; horizons 300 to 3,000 steps.
    """

    name = "photo-flow"

    def draw_model(self, draw: Draw) -> FlowShape:
        return FlowShape(
            side=draw.choice((3, 4)),
            couplings=draw.choice((2, 4, 6)),
            hidden=draw.log_integer(16, 48),
            activation=draw.choice(tuple(ACTIVATIONS)),
        )

    def draw_job(self, draw: Draw, model: FlowShape) -> Job:
        return Job(
            num_train=draw.choice((2000, 5000, len(photo_patches(model.side)[0]))),
            batch_size=draw.power_of_two(32, 128),
            horizon=draw.log_integer(300, 3000),
        )

    def draw_problem(self, shape: Shape[FlowShape], draw: Draw) -> RealProblem:
        side, rows = shape.model.side, shape.job.num_train
        return RealProblem(
            build_model=partial(Flow, shape.model),
            loss=negative_log_likelihood,
            splits=dequantised_splits(side, num_train=rows, generator=draw.generator),
            optimum=BEST_KNOWN[side],
        )


def dequantised_splits(side: int, *, num_train: int, generator: torch.Generator) -> Splits:
    """Patches, `side` pixels wide, as rows of continuous numbers, float32 (rows, side * side)."""
    parts = photo_patches(side)
    mean, spread = pixel_statistics(parts[0])
    batches = []
    for patches in (parts[0][:num_train], *parts[1:]):
        levels = patches.flatten(1).double()
        levels += torch.rand(levels.shape, generator=generator, dtype=torch.float64)
        batches.append((((levels - mean) / spread).float(),))
    return Splits(*batches)
