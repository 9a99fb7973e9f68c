"""MLP students of random teachers: the family that the first agents learned from.

It is made to differ in what is best for a task: sizes, conditioning, label noise and training-set
sizes range from where a bold learning rate wins to where it overfits or diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error, with_label_noise
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, RowsFn

Inputs = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws rows of white noise and what the student sees of them, both (rows, width)."""


@dataclass(frozen=True, kw_only=True)
class TeacherRanges(JobRanges):
    """Ranges of the teacher family, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        hidden: width of hidden layers.
        depth: number of hidden layers.
        classes: number of classes, for classification.
        outputs: number of outputs, for regression.
        condition: condition number of the inputs' covariance.
        label_noise: share of wrong labels, or noise over the spread of targets; half have none.
        separation: distance of the clusters' centres over the spread of points.
        input_scale: factor on the inputs.
        sharpness: factor on the teacher's first layer.
        cluster_share: share of classification tasks whose classes are clusters of points, which a
            network soon learns by heart, rather than the answers of a teacher network.
        regression_share: share of regression tasks.
    """

    inputs: tuple[int, int] = (4, 64)
    hidden: tuple[int, int] = (8, 128)
    depth: tuple[int, int] = (0, 4)
    classes: tuple[int, int] = (2, 10)
    outputs: tuple[int, int] = (1, 4)
    condition: tuple[float, float] = (1.0, 1e3)
    label_noise: tuple[float, float] = (0.01, 0.3)
    separation: tuple[float, float] = (2.0, 8.0)
    input_scale: tuple[float, float] = (0.5, 2.0)
    sharpness: tuple[float, float] = (0.5, 3.0)
    cluster_share: float = 0.4
    regression_share: float = 0.35


@dataclass(frozen=True)
class TeacherMLP(GeneratedFamily[MLPShape]):
    """MLP students of random teachers, classification and regression.

    Inputs are Gaussian with a random condition number; targets are those of a random tanh network
    or, for some of the classification tasks, the cluster that a point was drawn from.

    | drawn | range |
    |---|---|
    | input width | 4 to 64 |
    | hidden layers, width | 0 to 4, 8 to 128 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | classes, outputs | 2 to 10, or 1 to 4 for the 35 % that are regression |
    | condition number | 1 to 1,000 |
    | label noise | none in half, else 0.01 to 0.3 |
    | clusters instead of a teacher | 40 % of classification, separation 2 to 8 |
    | scale of the inputs, sharpness of the teacher | 0.5 to 2, 0.5 to 3 |
    """

    ranges: TeacherRanges = field(default_factory=TeacherRanges)
    name: str = "teacher-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        classification = not draw.chance(r.regression_share)
        return draw_mlp(
            draw,
            inputs=draw.log_integer(*r.inputs),
            hidden=r.hidden,
            depth=r.depth,
            outputs=draw.integer(*(r.classes if classification else r.outputs)),
            classification=classification,
        )

    def cost(self, model: MLPShape) -> float:
        """See `GeneratedFamily.cost`."""
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        model = shape.model
        return Problem(
            build_model=partial(build_mlp, model),
            loss=cross_entropy if model.classification else mean_squared_error,
            rows=self.draw_rows(model, draw),
        )

    def draw_rows(self, model: MLPShape, draw: Draw) -> RowsFn:
        """Draws where the data of one task come from."""
        r = self.ranges
        width, outputs = model.widths[0], model.widths[-1]
        inputs = draw_inputs(draw, width=width, condition=r.condition, scale=r.input_scale)
        noise = draw.log_uniform(*r.label_noise) if draw.chance(0.5) else 0.0
        if model.classification and draw.chance(r.cluster_share):
            g = draw.generator
            centres = torch.randn(outputs, width, generator=g) / math.sqrt(2 * width)
            shift = centres * draw.log_uniform(*r.separation)
            return partial(_cluster_rows, inputs=inputs, shift=shift, noise=noise)
        teacher = draw_teacher(
            draw, width=width, outputs=outputs, sharpness=r.sharpness, inputs=inputs
        )
        return partial(
            _teacher_rows,
            inputs=inputs,
            teacher=teacher,
            # The teacher may see white inputs: what matters does not follow what is large.
            sees_white=draw.chance(0.5),
            noise=noise,
            classification=model.classification,
        )


def draw_inputs(
    draw: Draw, *, width: int, condition: tuple[float, float], scale: tuple[float, float]
) -> Inputs:
    """Gaussian inputs with a random covariance.

    Args:
        draw: the random numbers.
        width: of the input.
        condition: range of the condition number of the covariance.
        scale: range of the factor on what the student sees.
    """
    mixing = draw_mixing(draw, width=width, condition=condition, scale=scale)

    def inputs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        white = torch.randn(count, width, generator=generator)
        return white, white @ mixing

    return inputs


def draw_mixing(
    draw: Draw, *, width: int, condition: tuple[float, float], scale: tuple[float, float]
) -> Tensor:
    """A random matrix (width, width) that turns white noise into inputs.

    Args:
        draw: the random numbers.
        width: of the input.
        condition: range of the condition number of the inputs' covariance.
        scale: range of their spread.
    """
    decay = math.log(draw.log_uniform(*condition)) / 2
    scales = torch.exp(-decay * torch.linspace(0, 1, width))
    rotation: Tensor = torch.linalg.qr(torch.randn(width, width, generator=draw.generator))[0]
    scales *= draw.log_uniform(*scale) / float(scales.square().mean().sqrt())
    return scales[:, None] * rotation


def draw_teacher(
    draw: Draw, *, width: int, outputs: int, sharpness: tuple[float, float], inputs: Inputs
) -> Callable[[Tensor], Tensor]:
    """A random tanh network, its outputs scaled to mean 0 and spread 1.

    Args:
        draw: the random numbers.
        width: of the input.
        outputs: of the teacher.
        sharpness: range of the factor on its first layer.
        inputs: what it will see, to take mean and spread from.
    """
    hidden, g = 32, draw.generator
    first = torch.randn(width, hidden, generator=g)
    first *= draw.log_uniform(*sharpness) / math.sqrt(width)
    second = torch.randn(hidden, outputs, generator=g)
    scores = torch.tanh(inputs(1024, g)[0] @ first) @ second
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)
    return lambda seen: (torch.tanh(seen @ first) @ second - mean) / std


def _cluster_rows(
    count: int, generator: torch.Generator, *, inputs: Inputs, shift: Tensor, noise: float
) -> Batch:
    labels = torch.randint(len(shift), (count,), generator=generator)
    seen = inputs(count, generator)[1] + shift[labels]
    return seen, with_label_noise(labels, len(shift), noise, generator)


def _teacher_rows(
    count: int,
    generator: torch.Generator,
    *,
    inputs: Inputs,
    teacher: Callable[[Tensor], Tensor],
    sees_white: bool,
    noise: float,
    classification: bool,
) -> Batch:
    white, seen = inputs(count, generator)
    scores = teacher(white if sees_white else seen)
    if classification:
        return seen, with_label_noise(scores.argmax(1), scores.shape[1], noise, generator)
    return seen, scores + noise * torch.randn(scores.shape, generator=generator)
