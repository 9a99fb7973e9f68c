"""MLP students of random teachers: the family that the first agents learned from.

It is made to differ in what is best for a task: sizes, conditioning, label noise and training-set
sizes range from where a bold learning rate wins to where it overfits or diverges. The other
families of teachers take their inputs, their students and their teachers from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error, with_label_noise
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, RowsFn

Inputs = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws rows of white noise and what the student sees of them, both (rows, width)."""

Teacher = Callable[[Tensor], Tensor]
"""From inputs (rows, width) to scores (rows, outputs)."""

SAMPLE = 1024
"""Rows over which mean and spread of a teacher's scores are taken."""


@dataclass(frozen=True, kw_only=True)
class StudentRanges(JobRanges):
    """Ranges of MLPs on Gaussian inputs, beside those of every job (`JobRanges`)."""

    inputs: IntRange = (4, 64)  # width of the input
    hidden: IntRange = (8, 128)  # width of hidden layers
    depth: IntRange = (1, 3)  # number of hidden layers
    classes: IntRange = (2, 10)  # number of classes, for classification
    condition: Range = (1.0, 1e3)  # condition number of the inputs' covariance
    input_scale: Range = (0.5, 2.0)  # factor on the inputs


@dataclass(frozen=True, kw_only=True)
class TeacherRanges(StudentRanges):
    """Ranges of the teacher family, beside those of its students (`StudentRanges`)."""

    depth: IntRange = (0, 4)
    outputs: IntRange = (1, 4)  # number of outputs, for regression
    # share of wrong labels, or noise over the spread of targets; half have none
    label_noise: Range = (0.01, 0.3)
    separation: Range = (2.0, 8.0)  # distance of the clusters' centres over the spread of points
    sharpness: Range = (0.5, 3.0)  # factor on the teacher's first layer
    # share of classification tasks whose classes are clusters of points, which a network
    # soon memorises, rather than the answers of a teacher network
    cluster_share: float = 0.4
    regression_share: float = 0.35  # share of regression tasks


@dataclass(frozen=True)
class TeacherMLP(GeneratedFamily[MLPShape]):
    """MLP students of random teachers; see `TeacherRanges` for what is drawn.

    Inputs are Gaussian with a random condition number; targets are those of a random tanh network
    or, for some of the classification tasks, the cluster that a point was drawn from. The teacher
    sees the inputs before they are mixed in half of the tasks.
    """

    ranges: TeacherRanges = field(default_factory=TeacherRanges)
    name: str = "teacher-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        r = self.ranges
        return draw_student(draw, r, outputs=r.outputs if draw.chance(r.regression_share) else None)

    def cost(self, model: MLPShape) -> float:
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        model = shape.model
        return Problem(
            build_model=partial(build_mlp, model),
            loss=cross_entropy if model.classification else mean_squared_error,
            rows=self._draw_rows(model, draw),
        )

    def _draw_rows(self, model: MLPShape, draw: Draw) -> RowsFn:
        r, g = self.ranges, draw.generator
        width, outputs = model.widths[0], model.widths[-1]
        inputs = draw_inputs(draw, r, width)
        noise = draw.log_uniform(*r.label_noise) if draw.chance(0.5) else 0.0
        if model.classification and draw.chance(r.cluster_share):
            centres = torch.randn(outputs, width, generator=g) / math.sqrt(2 * width)
            shift = centres * draw.log_uniform(*r.separation)
            return partial(_cluster_rows, inputs=inputs, shift=shift, noise=noise)
        first = torch.randn(width, 32, generator=g)
        first *= draw.log_uniform(*r.sharpness) / math.sqrt(width)
        second = torch.randn(32, outputs, generator=g)
        return partial(
            teacher_rows,
            inputs=inputs,
            teacher=make_teacher(first, second, white=inputs(SAMPLE, g)[0]),
            noise=noise,
            classification=model.classification,
            # What matters does not follow what is large where the teacher sees white inputs.
            sees_white=draw.chance(0.5),
        )


def draw_student(
    draw: Draw, r: StudentRanges, *, outputs: tuple[int, int] | None = None
) -> MLPShape:
    """Draws an MLP for regression of so many outputs; None: for classification."""
    return draw_mlp(
        draw,
        inputs=draw.log_integer(*r.inputs),
        hidden=r.hidden,
        depth=r.depth,
        outputs=draw.integer(*(outputs or r.classes)),
        classification=outputs is None,
    )


def draw_mixing(draw: Draw, r: StudentRanges, width: int) -> Tensor:
    """A random matrix (width, width) that turns white noise into inputs."""
    decay = math.log(draw.log_uniform(*r.condition)) / 2
    scales = torch.exp(-decay * torch.linspace(0, 1, width))
    rotation: Tensor = torch.linalg.qr(torch.randn(width, width, generator=draw.generator))[0]
    scales *= draw.log_uniform(*r.input_scale) / float(scales.square().mean().sqrt())
    return scales[:, None] * rotation


def draw_inputs(draw: Draw, r: StudentRanges, width: int) -> Inputs:
    """Gaussian inputs with a random covariance."""
    mixing = draw_mixing(draw, r, width)

    def inputs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        white = torch.randn(count, width, generator=generator)
        return white, white @ mixing

    return inputs


def make_teacher(*layers: Tensor, white: Tensor, spread: float | None = None) -> Teacher:
    """A tanh network of `layers`, each (inputs, outputs) and the last linear, with centred scores.

    Scores are centred, and scaled to `spread` (None: one), over the inputs `white`, (rows, width).
    """
    *hidden, last = layers

    def raw(x: Tensor) -> Tensor:
        for layer in hidden:
            x = torch.tanh(x @ layer)
        return x @ last

    scores = raw(white)
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)
    if spread is None:
        return lambda x: (raw(x) - mean) / std
    return lambda x: (raw(x) - mean) * (spread / std)


def teacher_rows(
    count: int,
    generator: torch.Generator,
    *,
    inputs: Inputs,
    teacher: Teacher,
    noise: float,
    classification: bool,
    sees_white: bool = True,
) -> Batch:
    """Rows with a teacher's answers: noisy labels, or scores with noise on them.

    The noise is the share of random labels, or the spread of the noise on scores. Where
    `sees_white` is set, the teacher sees the inputs before they are mixed.
    """
    white, seen = inputs(count, generator)
    scores = teacher(white if sees_white else seen)
    if classification:
        return seen, with_label_noise(scores.argmax(1), scores.shape[1], noise, generator)
    return seen, scores + noise * torch.randn(scores.shape, generator=generator)


def _cluster_rows(
    count: int, generator: torch.Generator, *, inputs: Inputs, shift: Tensor, noise: float
) -> Batch:
    labels = torch.randint(len(shift), (count,), generator=generator)
    seen = inputs(count, generator)[1] + shift[labels]
    return seen, with_label_noise(labels, len(shift), noise, generator)
