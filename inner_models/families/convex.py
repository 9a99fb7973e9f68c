"""Convex problems of known optimum: noisy quadratics and logistic regression.

The quadratics follow the noisy quadratic model (Schaul et al. 2013, "No more pesky learning
rates"; Zhang et al. 2019, "Which algorithmic choices matter at which batch sizes?"). Spectrum,
rotation, noise and distance of the start decide whether the rate, its decay or momentum matters.

Labels of the regression are drawn from a logistic model of the inputs, so that no model has a
lower expected loss than the entropy of the labels given the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import binary_cross_entropy, cross_entropy
from pacesetter.inner_models.task import Batch

ENTROPY_POINTS = 2**14
"""Points of the quasi-random rule that integrates the entropy of labels."""


@dataclass(frozen=True, kw_only=True)
class QuadraticRanges(JobRanges):
    """Ranges of the quadratics, beside those of every job (`JobRanges`)."""

    dim: IntRange = (4, 64)  # number of weights
    condition: Range = (1.0, 1e4)  # largest over smallest curvature
    curvature: Range = (0.3, 3.0)  # largest curvature, at a loss scale of one
    distance: Range = (0.1, 1.0)  # of the optimum from zero: root mean square over the weights
    start: Range = (0.1, 1.0)  # spread of the initial weights over `distance`
    # exponent by which flat directions start further off; at 1 every direction has the same
    # share in the initial loss, at 0 the steep ones have it all
    balance: Range = (0.2, 1.0)
    # half the variance of the noise, each direction weighed by its curvature, over the
    # excess at the start
    noise: Range = (1e-5, 3.0)
    # share of it that the loss contains; the rest is in the gradients alone
    visible: Range = (0.1, 1.0)
    # exponent by which flat directions are noisier: at 0 targets are as noisy in every
    # direction, at 1 the covariance of the gradient is the Hessian, at 2 gradients are as
    # noisy in every direction
    noise_tilt: Range = (0.0, 2.0)
    floor: Range = (1e-6, 1e-2)  # constant part of the loss, over the excess at the start
    # share of tasks whose axes of curvature are not those of the weights
    rotated_share: float = 0.6
    adam_lr: Range = (0.05, 0.25)
    sgd_lr: Range = (0.5, 3.0)
    rmsprop_lr: Range = (1e-3, 0.01)


@dataclass(frozen=True, kw_only=True)
class QuadraticShape:
    """Size and code path of a quadratic."""

    dim: int  # number of weights
    rotated: bool  # whether a rotation leads from the weights to the axes of curvature


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
    """Noisy quadratics, whose optimum is known exactly; see `QuadraticRanges` for what is drawn.

    Rows are noise: a row's loss is that of a target moved by it. What the noise itself adds to the
    expected loss is known, and so is the optimum: that and a positive floor. The spectrum is a
    power law, log-uniform, or two clusters; each in a third of the tasks.
    """

    ranges: QuadraticRanges = field(default_factory=QuadraticRanges)
    name: str = "quadratic"

    def draw_model(self, draw: Draw) -> QuadraticShape:
        r = self.ranges
        return QuadraticShape(dim=draw.log_integer(*r.dim), rotated=draw.chance(r.rotated_share))

    def cost(self, model: QuadraticShape) -> float:
        return 4 * model.dim

    def draw_problem(self, shape: Shape[QuadraticShape], draw: Draw) -> Problem:
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
    """Curvatures (dim,) of a random kind of spectrum, from one down to ``1 / condition``."""
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


@dataclass(frozen=True, kw_only=True)
class LogisticRanges(JobRanges):
    """Ranges of logistic regression, beside those of every job (`JobRanges`)."""

    inputs: IntRange = (2, 64)  # width of the input
    classes: IntRange = (3, 10)  # number of classes, for the tasks that have more than two
    condition: Range = (1.0, 1e4)  # condition number of the inputs' covariance
    input_scale: Range = (0.3, 3.0)  # root mean square spread of the inputs
    offset: Range = (0.0, 2.0)  # mean of the inputs over their spread
    # exponent by which narrow directions have larger true weights; at 1 every direction says
    # as much about the label, at 0 the wide ones say nearly all
    balance: Range = (0.0, 1.0)
    # spread of the true scores: at 1 many labels are wrong, at 10 few are
    sharpness: Range = (1.0, 10.0)
    imbalance: Range = (0.0, 2.0)  # spread of the true biases
    binary_share: float = 0.5  # share of tasks with two classes and one score
    # share of tasks whose wide directions are not those of single inputs
    rotated_share: float = 0.6
    adam_lr: Range = (0.1, 0.7)
    sgd_lr: Range = (0.1, 1.8)
    rmsprop_lr: Range = (1.5e-3, 0.01)


@dataclass(frozen=True, kw_only=True)
class LogisticShape:
    """Sizes of a logistic regression."""

    inputs: int  # width of the input
    classes: int  # two have one score and the binary loss, more have a score each

    @property
    def outputs(self) -> int:
        return 1 if self.classes == 2 else self.classes


@dataclass(frozen=True)
class LogisticRegression(GeneratedFamily[LogisticShape]):
    """Binary and multinomial logistic regression; see `LogisticRanges` for what is drawn.

    Inputs are Gaussian; labels are drawn from the softmax (sigmoid) of true scores, linear in the
    inputs. The optimum is the expected entropy of the labels given the inputs, integrated over the
    Gaussian scores.
    """

    ranges: LogisticRanges = field(default_factory=LogisticRanges)
    name: str = "logistic"

    def draw_model(self, draw: Draw) -> LogisticShape:
        r = self.ranges
        classes = 2 if draw.chance(r.binary_share) else draw.integer(*r.classes)
        return LogisticShape(inputs=draw.log_integer(*r.inputs), classes=classes)

    def cost(self, model: LogisticShape) -> float:
        return model.inputs * model.outputs

    def draw_problem(self, shape: Shape[LogisticShape], draw: Draw) -> Problem:
        r, width, outputs, g = self.ranges, shape.model.inputs, shape.model.outputs, draw.generator
        decay = math.log(draw.log_uniform(*r.condition)) / 2
        scales = torch.exp(-decay * torch.linspace(0, 1, width))
        scales /= scales.square().mean().sqrt()
        # What a unit of white noise in each direction does to the scores.
        effects = scales[:, None] ** (1 - draw.uniform(*r.balance))
        effects = effects * torch.randn(width, outputs, generator=g)
        effects *= draw.log_uniform(*r.sharpness) / effects.square().sum(0).sqrt()
        biases = draw.uniform(*r.imbalance) * torch.randn(outputs, generator=g)
        input_scale = draw.log_uniform(*r.input_scale)
        mean = draw.uniform(*r.offset) * torch.randn(width, generator=g)
        rotated = draw.chance(r.rotated_share)
        axes = torch.linalg.qr(torch.randn(width, width, generator=g))[0]
        mixing = scales[:, None] * (axes if rotated else torch.eye(width))
        return Problem(
            build_model=partial(nn.Linear, width, outputs),
            loss=binary_cross_entropy if outputs == 1 else cross_entropy,
            rows=partial(
                _labelled_rows,
                mixing=input_scale * mixing,
                mean=input_scale * mean,
                effects=effects,
                biases=biases,
            ),
            optimum=expected_entropy(effects, biases),
        )


def expected_entropy(effects: Tensor, biases: Tensor) -> float:
    """Expected entropy of labels given scores that are Gaussian.

    Integrated by a Sobol sequence along the principal axes of the scores, widest first; for a
    single score that is the midpoint rule over quantiles.

    Args:
        effects: (inputs, outputs); scores are ``white @ effects + biases``.
        biases: (outputs,); one output: scores of class 1 against class 0.

    Returns:
        Nats, correct to about 1e-3 of their value.
    """
    axes = torch.linalg.svd(effects.double(), full_matrices=False)
    engine = torch.quasirandom.SobolEngine(len(axes.S))
    points = engine.draw(ENTROPY_POINTS, dtype=torch.float64) + 0.5 / ENTROPY_POINTS
    scores = torch.special.ndtri(points) * axes.S @ axes.Vh + biases.double()
    if len(biases) == 1:
        scores = torch.cat([scores, torch.zeros_like(scores)], dim=1)
    logs = torch.log_softmax(scores, dim=1)
    return float(-(logs.exp() * logs).sum(1).mean())


def _labelled_rows(
    count: int,
    generator: torch.Generator,
    *,
    mixing: Tensor,
    mean: Tensor,
    effects: Tensor,
    biases: Tensor,
) -> Batch:
    white = torch.randn(count, len(mixing), generator=generator)
    scores = white @ effects + biases
    inputs = white @ mixing + mean
    if len(biases) == 1:
        chances = scores[:, 0].sigmoid()
        return inputs, (torch.rand(count, generator=generator) < chances).float()
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)
    return inputs, labels[:, 0]
