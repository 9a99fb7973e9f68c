"""Matrix factorisation of generated ratings: sparse gradients, and tables that learn by heart.

Each step touches only the rows of the users and items in its batch, popular ones often and rare
ones hardly ever: adaptive optimizers and plain ones want rates that are far apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.task import Batch


@dataclass(frozen=True, kw_only=True)
class RatingsRanges(JobRanges):
    """Ranges of the ratings, beside those of every job (`JobRanges`).

    Attributes:
        users: number of users.
        items: number of items.
        rank: width of the model's embeddings.
        true_rank: width of the true ones.
        start: spread of the initial embeddings, over the root of the rank.
        noise: spread of a rating's noise over that of true ratings.
        offset: mean of all ratings over the spread of true ones, where the model learns it.
        biases: share of the variance of true ratings that biases of users and items make.
        skew: Zipf's exponent: the n-th most popular item is rated in proportion to n ** -skew;
            activity of users has half the exponent.
        seen: share of the pairs of user and item that training rows come from; the other pairs
            make the three other splits.
        mean_share: share of tasks whose model learns the mean of all ratings; it bounds the rate
            that SGD can stand far below the one that rare rows would like. The others have ratings
            of mean zero.
    """

    users: tuple[int, int] = (16, 400)
    items: tuple[int, int] = (16, 400)
    rank: tuple[int, int] = (1, 16)
    true_rank: tuple[int, int] = (1, 8)
    start: tuple[float, float] = (0.1, 1.0)
    noise: tuple[float, float] = (0.1, 1.0)
    offset: tuple[float, float] = (0.0, 3.0)
    biases: tuple[float, float] = (0.1, 0.9)
    skew: tuple[float, float] = (0.0, 1.5)
    seen: tuple[float, float] = (0.5, 0.9)
    mean_share: float = 0.5
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.05, 0.16)
    sgd_lr: tuple[float, float] = (0.06, 0.6)
    rmsprop_lr: tuple[float, float] = (5e-4, 2e-3)


@dataclass(frozen=True, kw_only=True)
class RatingsShape:
    """Sizes and code path of a factorisation.

    Attributes:
        users: number of users.
        items: number of items.
        rank: width of the embeddings.
        learns_mean: whether the mean of all ratings is a parameter, or else zero.
    """

    users: int
    items: int
    rank: int
    learns_mean: bool

    @property
    def num_params(self) -> int:
        """Embeddings and biases."""
        return (self.users + self.items) * (self.rank + 1) + int(self.learns_mean)


class MatrixFactorisation(nn.Module):
    """Ratings as a mean, biases, and the dot product of embeddings of user and item.

    After Koren et al. 2009, "Matrix factorization techniques for recommender systems".

    Args:
        shape: sizes.
        start: spread of the initial embeddings; mean and biases start at zero.
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

    | drawn | range |
    |---|---|
    | users, items | 16 to 400 each |
    | rank of the model, of the truth | 1 to 16, 1 to 8 |
    | spread of the initial embeddings | 0.1 to 1, over the root of the rank |
    | noise over the spread of true ratings | 0.1 to 1 |
    | the model learns a mean; it is | 50 %; 0 to 3 over the spread of true ratings |
    | share of biases in the variance of true ratings | 0.1 to 0.9 |
    | Zipf's exponent of items (users have half of it) | 0 to 1.5 |
    | share of pairs that training rows come from | 0.5 to 0.9 |
    """

    ranges: RatingsRanges = field(default_factory=RatingsRanges)
    name: str = "ratings"

    def draw_model(self, draw: Draw) -> RatingsShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        return RatingsShape(
            users=draw.log_integer(*r.users),
            items=draw.log_integer(*r.items),
            rank=draw.log_integer(*r.rank),
            learns_mean=draw.chance(r.mean_share),
        )

    def cost(self, model: RatingsShape) -> float:
        """See `GeneratedFamily.cost`; the optimizer goes through whole tables at every step."""
        return 4 * model.rank + model.num_params / 8

    def draw_problem(self, shape: Shape[RatingsShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
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
    """Popularities by Zipf's law, in random order.

    Args:
        draw: the random numbers.
        count: how many.
        exponent: the n-th most popular has ``n ** -exponent``.

    Returns:
        (count,), one for the most popular.
    """
    order = torch.randperm(count, generator=draw.generator)
    return (1.0 + order) ** -exponent


def _rating_rows(
    count: int, generator: torch.Generator, *, ratings: Tensor, noise: float, demand: Tensor
) -> Batch:
    pairs = torch.multinomial(demand.flatten(), count, replacement=True, generator=generator)
    users, items = pairs // ratings.shape[1], pairs % ratings.shape[1]
    values = ratings.flatten()[pairs] + noise * torch.randn(count, generator=generator)
    return users, items, values
