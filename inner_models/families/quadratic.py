"""Noisy quadratics of known optimum: what a learning rate does, with nothing else in the way.

After the noisy quadratic model (Schaul et al. 2013, "No more pesky learning rates"; Zhang et al.
2019, "Which algorithmic choices matter at which batch sizes?"). Spectrum, rotation, noise and
where the start is off decide whether the rate, its decay, or momentum is what counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.generated import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.job import JobRanges
from pacesetter.inner_models.task import Batch


@dataclass(frozen=True, kw_only=True)
class QuadraticRanges(JobRanges):
    """Ranges of the quadratics, beside those of every job (`JobRanges`).

    Attributes:
        dim: number of weights.
        condition: largest over smallest curvature.
        curvature: largest curvature, at a loss scale of one.
        distance: of the optimum from zero: root mean square over the weights.
        start: spread of the initial weights over `distance`.
        balance: exponent by which flat directions start further off; at 1 every direction has the
            same share in the initial loss, at 0 the steep ones have it all.
        noise: half the variance of the noise, each direction weighed by its curvature, over the
            excess at the start.
        visible: share of it that the loss contains; the rest is in the gradients alone, where it
            does not hide what the weights do.
        noise_tilt: exponent by which flat directions are noisier: at 0 targets are as noisy in
            every direction, at 1 the covariance of the gradient is the Hessian, at 2 gradients are
            as noisy in every direction.
        floor: constant part of the loss, over the excess at the start.
        rotated_share: share of tasks whose axes of curvature are not those of the weights.
    """

    dim: tuple[int, int] = (4, 64)
    condition: tuple[float, float] = (1.0, 1e4)
    curvature: tuple[float, float] = (0.3, 3.0)
    distance: tuple[float, float] = (0.1, 1.0)
    start: tuple[float, float] = (0.1, 1.0)
    balance: tuple[float, float] = (0.2, 1.0)
    noise: tuple[float, float] = (1e-5, 3.0)
    visible: tuple[float, float] = (0.1, 1.0)
    noise_tilt: tuple[float, float] = (0.0, 2.0)
    floor: tuple[float, float] = (1e-6, 1e-2)
    rotated_share: float = 0.6
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.05, 0.25)
    sgd_lr: tuple[float, float] = (0.5, 3.0)
    rmsprop_lr: tuple[float, float] = (1e-3, 0.01)


@dataclass(frozen=True, kw_only=True)
class QuadraticShape:
    """Size and code path of a quadratic.

    Attributes:
        dim: number of weights.
        rotated: whether a rotation leads from the weights to the axes of curvature.
    """

    dim: int
    rotated: bool


class NoisyQuadratic(nn.Module):
    """Losses 1/2 (w - w* - z)^T H (w - w* - z) - (1 - visible) 1/2 z^T H z + floor of noises z.

    H is Q^T diag(h) Q. Rows of noise are given along the axes of curvature, as Q z. The second term
    does not depend on the weights: it takes part of the noise out of the loss.

    Args:
        curvature: (dim,), h.
        target: (dim,), w*.
        rotation: (dim, dim), Q; None: the identity.
        visible: share of the noise's own loss that stays.
        floor: added to the loss.
        start: spread of the initial weights.
    """

    curvature: Tensor
    target: Tensor
    rotation: Tensor | None
    visible: Tensor
    floor: Tensor

    def __init__(
        self,
        *,
        curvature: Tensor,
        target: Tensor,
        rotation: Tensor | None,
        visible: float,
        floor: float,
        start: float,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(start * torch.randn(len(target)))
        self.register_buffer("curvature", curvature)
        self.register_buffer("target", target)
        self.register_buffer("rotation", rotation)
        self.register_buffer("visible", torch.tensor(visible))
        self.register_buffer("floor", torch.tensor(floor))

    def forward(self, noise: Tensor) -> Tensor:
        """Losses of rows of noise: (rows, dim) -> (rows,)."""
        error = self.weight - self.target
        if self.rotation is not None:
            error = self.rotation @ error
        squares = (error - noise).square() - (1 - self.visible) * noise.square()
        return squares @ self.curvature / 2 + self.floor


def mean_of_rows(model: nn.Module, batch: Batch) -> Tensor:
    """Mean of a model that returns the loss of each row; batch is (inputs,)."""
    losses: Tensor = model(batch[0])
    return losses.mean()


@dataclass(frozen=True)
class Quadratic(GeneratedFamily[QuadraticShape]):
    """Noisy quadratics, whose optimum is known exactly.

    Rows are noise: a row's loss is that of a target moved by it. What the noise itself adds to the
    expected loss is known, and so is the optimum: that and a positive floor.

    | drawn | range |
    |---|---|
    | number of weights | 4 to 64 |
    | rotated against the weights | 60 % |
    | condition number, largest curvature | 1 to 10,000, 0.3 to 3 |
    | spectrum | power law, log-uniform, or two clusters; each a third |
    | distance of the optimum, initial weights over it | 0.1 to 1, 0.1 to 1 |
    | how much further off flat directions start | exponent 0.2 to 1 of the curvature's root |
    | loss of the noise itself over excess at the start | 1e-5 to 3 |
    | share of that which the loss contains | 0.1 to 1 |
    | how much noisier flat directions are | exponent 0 to 2 of the curvature's root |
    | floor over excess at the start | 1e-6 to 0.01 |
    """

    ranges: QuadraticRanges = field(default_factory=QuadraticRanges)
    name: str = "quadratic"

    def draw_model(self, draw: Draw) -> QuadraticShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        return QuadraticShape(dim=draw.log_integer(*r.dim), rotated=draw.chance(r.rotated_share))

    def cost(self, model: QuadraticShape) -> float:
        """See `GeneratedFamily.cost`."""
        return 4 * model.dim

    def draw_problem(self, shape: Shape[QuadraticShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        r, dim, g = self.ranges, shape.model.dim, draw.generator
        relative = draw_spectrum(draw, dim=dim, condition=draw.log_uniform(*r.condition))
        curvature = relative * draw.log_uniform(*r.curvature)
        distance = draw.log_uniform(*r.distance)
        offset = relative ** (-draw.uniform(*r.balance) / 2)
        offset *= torch.randn(dim, generator=g)
        offset *= distance / offset.square().mean().sqrt()
        start = distance * draw.log_uniform(*r.start)
        excess = float((curvature * (offset.square() + start**2)).sum() / 2)
        spread = relative ** (-draw.uniform(*r.noise_tilt) / 2)
        at_spread = float((curvature * spread.square()).sum() / 2)
        noise = excess * draw.log_uniform(*r.noise)
        spread *= math.sqrt(noise / at_spread)
        visible = draw.log_uniform(*r.visible)
        floor = excess * draw.log_uniform(*r.floor)
        rotation = None
        if shape.model.rotated:
            rotation = torch.linalg.qr(torch.randn(dim, dim, generator=g))[0]
        build_model = partial(
            NoisyQuadratic,
            curvature=curvature,
            target=offset if rotation is None else rotation.T @ offset,
            rotation=rotation,
            visible=visible,
            floor=floor,
            start=start,
        )
        return Problem(
            build_model=build_model,
            loss=mean_of_rows,
            rows=partial(_noise_rows, spread=spread),
            optimum=visible * noise + floor,
        )


def draw_spectrum(draw: Draw, *, dim: int, condition: float) -> Tensor:
    """Curvatures of a random kind of spectrum, in descending order.

    Args:
        draw: the random numbers.
        dim: how many, two or more.
        condition: largest over smallest.

    Returns:
        (dim,), from one down to ``1 / condition``.
    """
    kind = draw.choice(("power law", "log-uniform", "clusters"))
    if kind == "power law":
        rank = torch.arange(1, dim + 1, dtype=torch.float32)
        return rank ** (-math.log(condition) / math.log(dim))
    if kind == "log-uniform":
        inner = torch.rand(dim - 2, generator=draw.generator).sort().values
        return condition ** -torch.cat([torch.zeros(1), inner, torch.ones(1)])
    steep = torch.arange(dim) < draw.integer(1, dim - 1)
    return torch.where(steep, 1.0, 1.0 / condition)


def _noise_rows(count: int, generator: torch.Generator, *, spread: Tensor) -> Batch:
    return (spread * torch.randn(count, len(spread), generator=generator),)
