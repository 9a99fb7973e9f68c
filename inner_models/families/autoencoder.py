"""Autoencoders of low-dimensional manifolds: nets with a narrow waist, and targets without labels.

Plateaus while the code unfolds, and errors that go on shrinking for as long as one trains, set
them apart from classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import mean_squared_error
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation
from pacesetter.inner_models.task import Batch, RowsFn

Points = Callable[[int, torch.Generator], Tensor]
"""Draws points of a manifold: (rows, FEATURES)."""

FEATURES = 32
"""Sines of the latent coordinates that a manifold is mixed from."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRanges(JobRanges):
    """Ranges of the autoencoders, beside those of every job (`JobRanges`).

    Attributes:
        inputs: dimensions of the space that the manifold lies in.
        latent: dimensions of the manifold.
        bottleneck: width of the code, at most half of the input's.
        hidden: width of hidden layers.
        depth: hidden layers of the encoder, and of the decoder.
        bend: factor on the frequencies of the sines: nearly flat at 0.3, folded at 3.
        noise: off the manifold, over the spread of points on it.
        condition: ratio of the largest spread of an input to the smallest.
        input_scale: factor on the inputs.
        tied_share: share of tasks whose decoder uses the encoder's weights.
        denoise_share: share of tasks whose targets are without noise.
    """

    inputs: tuple[int, int] = (8, 64)
    latent: tuple[int, int] = (1, 6)
    bottleneck: tuple[int, int] = (1, 12)
    hidden: tuple[int, int] = (8, 64)
    depth: tuple[int, int] = (0, 2)
    bend: tuple[float, float] = (0.3, 3.0)
    noise: tuple[float, float] = (0.03, 0.5)
    condition: tuple[float, float] = (1.0, 30.0)
    input_scale: tuple[float, float] = (0.5, 2.0)
    tied_share: float = 0.4
    denoise_share: float = 0.5
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.03, 0.1)
    sgd_lr: tuple[float, float] = (0.18, 1.0)
    rmsprop_lr: tuple[float, float] = (3e-4, 1e-3)


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """Sizes and code paths of an autoencoder.

    Attributes:
        widths: of the encoder's layers, from the input to the code; the decoder has them reversed.
        activation: between layers; the code has none.
        tied: whether the decoder uses the encoder's weights, transposed.
    """

    widths: tuple[int, ...]
    activation: Activation
    tied: bool


class Autoencoder(nn.Module):
    """An encoder and a decoder of linear layers (Hinton & Salakhutdinov 2006).

    Args:
        shape: sizes and code paths.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        pairs = list(pairwise(shape.widths))
        self.encoder = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        back = [pair[::-1] for pair in reversed(pairs)]
        self.tied = shape.tied
        if shape.tied:
            self.biases = nn.ParameterList(torch.zeros(fan_out) for _, fan_out in back)
        else:
            self.decoder = nn.ModuleList(nn.Linear(*pair) for pair in back)
        self.activation = ACTIVATIONS[shape.activation]()

    def forward(self, inputs: Tensor) -> Tensor:
        """Reconstructions: (rows, inputs) -> (rows, inputs)."""
        hidden = inputs
        for i, layer in enumerate(self.encoder):
            hidden = layer(self.activation(hidden) if i else hidden)
        for i, mirrored in enumerate(reversed(list(self.encoder))):
            hidden = self.activation(hidden) if i else hidden
            if self.tied:
                hidden = F.linear(hidden, cast(Tensor, mirrored.weight).T, self.biases[i])
            else:
                hidden = self.decoder[i](hidden)
        return hidden


@dataclass(frozen=True)
class Autoencoders(GeneratedFamily[AutoencoderShape]):
    """Autoencoders of noisy points on random curved manifolds.

    A point has Gaussian or uniform latent coordinates; random sines of them are mixed into the
    inputs. The code may be narrower than the manifold, or wider. The loss is the mean squared error
    to the noisy input, or to the point on the manifold (Vincent et al. 2008).

    | drawn | range |
    |---|---|
    | input width, dimensions of the manifold | 8 to 64, 1 to 6 |
    | width of the code | 1 to 12, at most half of the input's |
    | hidden layers on each side, width | 0 to 2, 8 to 64 |
    | activation, tied weights | relu, tanh, gelu, silu; 40 % |
    | latent coordinates | Gaussian in half, else uniform |
    | frequency of the sines | 0.3 to 3 |
    | noise over the spread of points | 0.03 to 0.5 |
    | targets without noise | 50 % |
    | largest spread of an input over the smallest | 1 to 30 |
    | scale of the inputs | 0.5 to 2 |
    """

    ranges: AutoencoderRanges = field(default_factory=AutoencoderRanges)
    name: str = "autoencoder"

    def draw_model(self, draw: Draw) -> AutoencoderShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        inputs = draw.log_integer(*r.inputs)
        hidden = [draw.log_integer(*r.hidden)] * draw.integer(*r.depth)
        code = min(draw.log_integer(*r.bottleneck), max(1, inputs // 2))
        return AutoencoderShape(
            widths=(inputs, *hidden, code),
            activation=draw.choice(tuple(ACTIVATIONS)),
            tied=draw.chance(r.tied_share),
        )

    def cost(self, model: AutoencoderShape) -> float:
        """See `GeneratedFamily.cost`."""
        return 2 * sum(fan_in * fan_out for fan_in, fan_out in pairwise(model.widths))

    def draw_problem(self, shape: Shape[AutoencoderShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        return Problem(
            build_model=partial(Autoencoder, shape.model),
            loss=mean_squared_error,
            rows=self.draw_rows(shape.model.widths[0], draw),
        )

    def draw_rows(self, width: int, draw: Draw) -> RowsFn:
        """Draws a manifold in `width` dimensions, and what is seen of it."""
        r, g = self.ranges, draw.generator
        latent = draw.integer(*r.latent)
        frequencies = torch.randn(latent, FEATURES, generator=g)
        frequencies *= draw.log_uniform(*r.bend) / math.sqrt(latent)
        phases = 2 * math.pi * torch.rand(FEATURES, generator=g)
        mixing = torch.randn(FEATURES, width, generator=g)
        mixing *= draw.log_uniform(*r.condition) ** -torch.rand(width, generator=g)
        manifold = partial(
            _manifold_points, frequencies=frequencies, phases=phases, gaussian=draw.chance(0.5)
        )
        points = manifold(1024, g) @ mixing
        scale = draw.log_uniform(*r.input_scale) / float(points.std(0).square().mean().sqrt())
        return partial(
            _manifold_rows,
            manifold=manifold,
            mixing=scale * mixing,
            mean=scale * points.mean(0),
            noise=draw.log_uniform(*r.noise) * scale * points.std(0),
            denoise=draw.chance(r.denoise_share),
        )


def _manifold_points(
    count: int,
    generator: torch.Generator,
    *,
    frequencies: Tensor,
    phases: Tensor,
    gaussian: bool,
) -> Tensor:
    """Sines of random latent coordinates of spread one: (count, FEATURES)."""
    size = count, len(frequencies)
    if gaussian:
        latent = torch.randn(size, generator=generator)
    else:
        latent = math.sqrt(12) * (torch.rand(size, generator=generator) - 0.5)
    return torch.sin(latent @ frequencies + phases)


def _manifold_rows(
    count: int,
    generator: torch.Generator,
    *,
    manifold: Points,
    mixing: Tensor,
    mean: Tensor,
    noise: Tensor,
    denoise: bool,
) -> Batch:
    clean = manifold(count, generator) @ mixing - mean
    noisy = clean + noise * torch.randn(clean.shape, generator=generator)
    return noisy, clean if denoise else noisy
