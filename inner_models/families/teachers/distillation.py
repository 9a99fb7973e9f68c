"""Students of a random teacher's soft answers: smooth targets, with a floor that is known.

Distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network"): no row has a
wrong label, and yet the loss cannot fall below the teacher's own entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import Inputs, draw_inputs
from pacesetter.inner_models.losses import soft_cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch

ENTROPY_ROWS = 2**14
"""Rows over which the teacher's entropy is averaged."""


@dataclass(frozen=True, kw_only=True)
class DistillationRanges(JobRanges):
    """Ranges of distillation, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        hidden: width of the student's hidden layers.
        depth: number of the student's hidden layers.
        classes: number of classes.
        teacher_hidden: width of the teacher's hidden layers.
        teacher_depth: number of the teacher's hidden layers.
        sharpness: factor on the teacher's weights, beyond what keeps the spread of its layers.
        temperature: what scores are divided by, the teacher's and the student's.
        spread: of the teacher's scores at that temperature: at 1 its answers are soft, at 6 sure.
        condition: condition number of the inputs' covariance.
        input_scale: factor on the inputs.
    """

    inputs: tuple[int, int] = (4, 64)
    hidden: tuple[int, int] = (8, 96)
    depth: tuple[int, int] = (0, 3)
    classes: tuple[int, int] = (2, 10)
    teacher_hidden: tuple[int, int] = (16, 128)
    teacher_depth: tuple[int, int] = (1, 3)
    sharpness: tuple[float, float] = (0.5, 2.0)
    temperature: tuple[float, float] = (1.0, 5.0)
    spread: tuple[float, float] = (1.0, 6.0)
    condition: tuple[float, float] = (1.0, 1e3)
    input_scale: tuple[float, float] = (0.5, 2.0)
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.02, 0.3)
    sgd_lr: tuple[float, float] = (0.5, 5.0)
    rmsprop_lr: tuple[float, float] = (3e-4, 3e-3)


class Student(nn.Module):
    """An MLP whose logits are divided by a temperature.

    Args:
        shape: sizes and code paths.
        temperature: kept in a buffer of that name.
    """

    temperature: Tensor

    def __init__(self, shape: MLPShape, *, temperature: float) -> None:
        super().__init__()
        self.net = build_mlp(shape)
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits at the temperature: (rows, width) -> (rows, classes)."""
        logits: Tensor = self.net(inputs) / self.temperature
        return logits


@dataclass(frozen=True)
class DistilledMLP(GeneratedFamily[MLPShape]):
    """MLP students of the soft class probabilities of random MLP teachers.

    The teacher may be wider and deeper than its student. The optimum is the mean entropy of its
    answers: no student can have less, and one that can represent the teacher reaches it.

    | drawn | range |
    |---|---|
    | input width | 4 to 64 |
    | the student's hidden layers, width | 0 to 3, 8 to 96 |
    | its activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | classes | 2 to 10 |
    | the teacher's hidden layers, width | 1 to 3, 16 to 128 |
    | sharpness of the teacher | 0.5 to 2 |
    | temperature | 1 to 5 |
    | spread of the teacher's scores at it | 1 to 6 |
    | condition number, scale of the inputs | 1 to 1,000, 0.5 to 2 |
    """

    ranges: DistillationRanges = field(default_factory=DistillationRanges)
    name: str = "distilled-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        return draw_mlp(
            draw,
            inputs=draw.log_integer(*r.inputs),
            hidden=r.hidden,
            depth=r.depth,
            outputs=draw.integer(*r.classes),
        )

    def cost(self, model: MLPShape) -> float:
        """See `GeneratedFamily.cost`."""
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        r, widths = self.ranges, shape.model.widths
        inputs = draw_inputs(draw, width=widths[0], condition=r.condition, scale=r.input_scale)
        teacher = draw_deep_teacher(
            draw,
            width=widths[0],
            hidden=draw.log_integer(*r.teacher_hidden),
            depth=draw.integer(*r.teacher_depth),
            outputs=widths[-1],
            sharpness=draw.log_uniform(*r.sharpness),
            spread=draw.log_uniform(*r.spread),
        )
        rows = partial(_soft_rows, inputs=inputs, teacher=teacher)
        chances = rows(ENTROPY_ROWS, draw.generator)[1].double()
        return Problem(
            build_model=partial(Student, shape.model, temperature=draw.log_uniform(*r.temperature)),
            loss=soft_cross_entropy,
            rows=rows,
            optimum=float(torch.special.entr(chances).sum(1).mean()),
        )


def draw_deep_teacher(
    draw: Draw,
    *,
    width: int,
    hidden: int,
    depth: int,
    outputs: int,
    sharpness: float,
    spread: float,
) -> Callable[[Tensor], Tensor]:
    """A random tanh network with centred scores of a given spread.

    Args:
        draw: the random numbers.
        width: of the input, which is white.
        hidden: width of its hidden layers.
        depth: number of hidden layers, one or more.
        outputs: number of scores.
        sharpness: factor on the weights of its hidden layers.
        spread: of each score over inputs.
    """
    g = draw.generator
    layers = []
    for _ in range(depth):
        layers.append(torch.randn(width, hidden, generator=g) * (sharpness / math.sqrt(width)))
        width = hidden
    last = torch.randn(width, outputs, generator=g)

    def features(white: Tensor) -> Tensor:
        for layer in layers:
            white = torch.tanh(white @ layer)
        return white

    scores = features(torch.randn(1024, len(layers[0]), generator=g)) @ last
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)
    return lambda white: (features(white) @ last - mean) * (spread / std)


def _soft_rows(
    count: int,
    generator: torch.Generator,
    *,
    inputs: Inputs,
    teacher: Callable[[Tensor], Tensor],
) -> Batch:
    white, seen = inputs(count, generator)
    return seen, teacher(white).softmax(1)
