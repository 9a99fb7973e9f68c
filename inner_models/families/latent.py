"""Models of latent structure: matrix factorisation of ratings, and autoencoders of manifolds.

A step of a factorisation touches only the rows of the users and items in its batch, popular ones
often and rare ones hardly ever: adaptive optimizers and plain ones want rates that are far apart.
Autoencoders have plateaus while the code unfolds, and errors that go on shrinking for as long as
one trains.
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

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import mean_squared_error
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation
from pacesetter.inner_models.task import Batch, RowsFn

Points = Callable[[int, torch.Generator], Tensor]
"""Draws points of a manifold: (rows, FEATURES)."""

FEATURES = 32
"""Sines of the latent coordinates that a manifold is mixed from."""


@dataclass(frozen=True, kw_only=True)
class RatingsRanges(JobRanges):
    """Ranges of the ratings, beside those of every job (`JobRanges`)."""

    users: IntRange = (16, 400)  # number of users
    items: IntRange = (16, 400)  # number of items
    rank: IntRange = (1, 16)  # width of the model's embeddings
    true_rank: IntRange = (1, 8)  # width of the true ones
    start: Range = (0.1, 1.0)  # spread of the initial embeddings, over the root of the rank
    noise: Range = (0.1, 1.0)  # spread of a rating's noise over that of true ratings
    # mean of all ratings over the spread of true ones, where the model learns it
    offset: Range = (0.0, 3.0)
    # share of the variance of true ratings that biases of users and items make
    biases: Range = (0.1, 0.9)
    # Zipf's exponent: the n-th most popular item is rated in proportion to n ** -skew;
    # activity of users has half the exponent
    skew: Range = (0.0, 1.5)
    # share of the pairs of user and item that training rows come from; the other pairs make
    # the three other splits
    seen: Range = (0.5, 0.9)
    # share of tasks whose model learns the mean of all ratings; it bounds the rate that SGD
    # can stand far below the one that rare rows would like. The others have ratings of mean
    # zero.
    mean_share: float = 0.5
    adam_lr: Range = (0.05, 0.16)
    sgd_lr: Range = (0.06, 0.6)
    rmsprop_lr: Range = (5e-4, 2e-3)


@dataclass(frozen=True, kw_only=True)
class RatingsShape:
    """Sizes and code path of a factorisation."""

    users: int  # number of users
    items: int  # number of items
    rank: int  # width of the embeddings
    learns_mean: bool  # whether the mean of all ratings is a parameter, or else zero

    @property
    def num_params(self) -> int:
        return (self.users + self.items) * (self.rank + 1) + int(self.learns_mean)


class MatrixFactorisation(nn.Module):
    """Ratings as a mean, biases, and the dot product of embeddings of user and item.

    After Koren et al. 2009, "Matrix factorization techniques for recommender systems". The spread
    of the initial embeddings is `start`; mean and biases start at zero.
    """

    def __init__(self, shape: RatingsShape, *, start: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1)) if shape.learns_mean else None
        self.user_bias = nn.Embedding(shape.users, 1)
        self.item_bias = nn.Embedding(shape.items, 1)
        self.user = nn.Embedding(shape.users, shape.rank)
        self.item = nn.Embedding(shape.items, shape.rank)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=start)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Predicted ratings: int64 (rows,) and (rows,) -> (rows,)."""
        ratings: Tensor = (self.user(users) * self.item(items)).sum(-1)
        ratings = ratings + (self.user_bias(users) + self.item_bias(items))[..., 0]
        return ratings if self.mean is None else ratings + self.mean


def rating_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of ratings; batch is (users, items, ratings)."""
    users, items, ratings = batch
    error: Tensor = model(users, items) - ratings
    return error.square().mean()


@dataclass(frozen=True)
class Ratings(GeneratedFamily[RatingsShape]):
    """Matrix factorisation of ratings with a known structure.

    True ratings are biases of users and items and a product of low rank; who rates what follows
    Zipf's law. Pairs of user and item that training rows come from never recur in the other splits.
    Few rows for large tables overfit. Where the model has the true rank or more, the optimum is the
    variance of the noise; else it is not known.
    """

    ranges: RatingsRanges = field(default_factory=RatingsRanges)
    name: str = "ratings"

    def draw_model(self, draw: Draw) -> RatingsShape:
        r = self.ranges
        return RatingsShape(
            users=draw.log_integer(*r.users),
            items=draw.log_integer(*r.items),
            rank=draw.log_integer(*r.rank),
            learns_mean=draw.chance(r.mean_share),
        )

    def cost(self, model: RatingsShape) -> float:
        return 4 * model.rank + model.num_params / 8

    def draw_problem(self, shape: Shape[RatingsShape], draw: Draw) -> Problem:
        r, model, g = self.ranges, shape.model, draw.generator
        true_rank = draw.log_integer(*r.true_rank)
        biases = torch.randn(model.users, 1, generator=g) + torch.randn(1, model.items, generator=g)
        users = torch.randn(model.users, true_rank, generator=g)
        items = torch.randn(true_rank, model.items, generator=g)
        bias_share = draw.uniform(*r.biases)
        ratings = biases * math.sqrt(bias_share / 2)
        ratings += users @ items * math.sqrt((1 - bias_share) / true_rank)
        ratings += draw.uniform(*r.offset) if model.learns_mean else 0.0
        skew = draw.uniform(*r.skew)
        demand = zipf(draw, count=model.users, exponent=skew / 2)[:, None] * zipf(
            draw, count=model.items, exponent=skew
        )
        seen = torch.rand(demand.shape, generator=g) < draw.uniform(*r.seen)
        # Both kinds of pairs exist, whatever was drawn.
        seen[0, 0], seen[-1, -1] = True, False
        noise = draw.log_uniform(*r.noise)
        rows = partial(_rating_rows, ratings=ratings, noise=noise)
        start = draw.log_uniform(*r.start) / math.sqrt(model.rank)
        return Problem(
            build_model=partial(MatrixFactorisation, model, start=start),
            loss=rating_error,
            rows=partial(rows, demand=demand * seen),
            new_rows=partial(rows, demand=demand * ~seen),
            optimum=noise**2 if model.rank >= true_rank else None,
        )


def zipf(draw: Draw, *, count: int, exponent: float) -> Tensor:
    """Popularities (count,) by Zipf's law, in random order: ``n ** -exponent`` for the n-th."""
    order = torch.randperm(count, generator=draw.generator)
    return (1.0 + order) ** -exponent


def _rating_rows(
    count: int, generator: torch.Generator, *, ratings: Tensor, noise: float, demand: Tensor
) -> Batch:
    pairs = torch.multinomial(demand.flatten(), count, replacement=True, generator=generator)
    users, items = pairs // ratings.shape[1], pairs % ratings.shape[1]
    values = ratings.flatten()[pairs] + noise * torch.randn(count, generator=generator)
    return users, items, values


@dataclass(frozen=True, kw_only=True)
class AutoencoderRanges(JobRanges):
    """Ranges of the autoencoders, beside those of every job (`JobRanges`)."""

    inputs: IntRange = (8, 64)  # dimensions of the space that the manifold lies in
    latent: IntRange = (1, 6)  # dimensions of the manifold
    bottleneck: IntRange = (1, 12)  # width of the code, at most half of the input's
    hidden: IntRange = (8, 64)  # width of hidden layers
    depth: IntRange = (0, 2)  # hidden layers of the encoder, and of the decoder
    # factor on the frequencies of the sines: nearly flat at 0.3, folded at 3
    bend: Range = (0.3, 3.0)
    noise: Range = (0.03, 0.5)  # off the manifold, over the spread of points on it
    condition: Range = (1.0, 30.0)  # ratio of the largest spread of an input to the smallest
    input_scale: Range = (0.5, 2.0)  # factor on the inputs
    tied_share: float = 0.4  # share of tasks whose decoder uses the encoder's weights
    denoise_share: float = 0.5  # share of tasks whose targets are without noise
    adam_lr: Range = (0.03, 0.1)
    sgd_lr: Range = (0.18, 1.0)
    rmsprop_lr: Range = (3e-4, 1e-3)


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """Sizes and code paths of an autoencoder."""

    # of the encoder's layers, from the input to the code; the decoder has them reversed
    widths: tuple[int, ...]
    activation: Activation  # between layers; the code has none
    tied: bool  # whether the decoder uses the encoder's weights, transposed


class Autoencoder(nn.Module):
    """An encoder and a decoder of linear layers (Hinton & Salakhutdinov 2006)."""

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
    """

    ranges: AutoencoderRanges = field(default_factory=AutoencoderRanges)
    name: str = "autoencoder"

    def draw_model(self, draw: Draw) -> AutoencoderShape:
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
        return 2 * sum(fan_in * fan_out for fan_in, fan_out in pairwise(model.widths))

    def draw_problem(self, shape: Shape[AutoencoderShape], draw: Draw) -> Problem:
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
