"""Patches of photographs, and small convnets that take noise off them: real data for validation.

Two photographs come with scikit-learn (``china.jpg`` and ``flower.jpg``, 427 x 640 pixels). They
are cut into tiles, and each tile, with all its patches, goes to one split: what a network is tested
on it has not seen, not even with other noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import mean_squared_error
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation
from pacesetter.inner_models.task import OptimizerConfig, Splits, Task, TaskFamily

PHOTOS = ("china.jpg", "flower.jpg")
TILE = 32
"""Side of a tile in pixels."""
_SHARES = (0.6, 0.1, 0.15, 0.15)  # of the tiles: train, inner_valid, outer_valid, test
_SIDE = 8  # of the patches that are denoised


@cache
def photo_patches(side: int) -> tuple[Tensor, ...]:
    """Grey patches of the photographs, in four splits of which each has tiles of its own.

    Args:
        side: of a patch, in pixels; patches lie side by side within their tile.

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
    """Sizes and code paths of a denoiser.

    Attributes:
        channels: of hidden layers.
        layers: number of hidden layers.
        activation: after each of them.
        residual: whether the network gives the noise, which is then subtracted from its input
            (Zhang et al. 2017, DnCNN), instead of the clean patch.
    """

    channels: int
    layers: int
    activation: Activation
    residual: bool


class Denoiser(nn.Module):
    """Convolutions of 3 x 3 pixels from a noisy patch to a clean one, both (rows, 1, side, side).

    Args:
        shape: sizes and code paths.
    """

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
        """The clean patches, as far as the network knows."""
        out: Tensor = self.layers(noisy)
        return noisy - out if self.residual else out


class PhotoDenoiser(TaskFamily):
    """Denoising of grey 8 x 8 patches of photographs by convnets, least squares.

    Pixels have mean 0 and spread 1 over the train split; the noise is Gaussian, drawn once for
    each row.

    | drawn per shape | range |
    |---|---|
    | hidden layers, channels | 1 to 2, 4 to 8 |
    | activation | relu, tanh, gelu, silu |
    | network gives the noise | in half |
    | rows of the train split | 500, 2,000 or all 4,992 |
    | batch size | 16 to 64 |
    | horizon | 200 to 1,500 inner steps |

    | drawn per task | range |
    |---|---|
    | spread of the noise | 0.1 to 1 |
    """

    name = "photo-denoiser"

    def sample_shape(self, generator: torch.Generator) -> Shape[DenoiserShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = DenoiserShape(
            channels=draw.log_integer(4, 8),
            layers=draw.integer(1, 2),
            activation=draw.choice(tuple(ACTIVATIONS)),
            residual=draw.chance(0.5),
        )
        job = Job(
            num_train=draw.choice((500, 2000, len(photo_patches(_SIDE)[0]))),
            batch_size=draw.power_of_two(16, 64),
            horizon=draw.log_integer(200, 1500),
        )
        return Shape(model, job)

    def build(self, shape: Shape[DenoiserShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in noise, initial weights and batch order."""
        draw, job = Draw(generator), shape.job
        noise = draw.log_uniform(0.1, 1.0)
        return Task(
            partial(Denoiser, shape.model),
            mean_squared_error,
            noisy_splits(num_train=job.num_train, noise=noise, generator=generator),
            horizon=job.horizon,
            batch_size=job.batch_size,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=job.weight_decay),
            name=self.name,
            seed=draw.seed(),
        )


def noisy_splits(*, num_train: int, noise: float, generator: torch.Generator) -> Splits:
    """Noisy patches and clean ones, both float32 (rows, 1, 8, 8).

    Args:
        num_train: rows of the train split, the first ones.
        noise: its spread, over that of the pixels.
        generator: draws the noise.
    """
    parts = photo_patches(_SIDE)
    mean, spread = pixel_statistics(parts[0])
    batches = []
    for patches in (parts[0][:num_train], *parts[1:]):
        clean = ((patches.double() - mean) / spread).float()[:, None]
        noisy = clean + noise * torch.randn(clean.shape, generator=generator)
        batches.append((noisy, clean))
    return Splits(*batches)
