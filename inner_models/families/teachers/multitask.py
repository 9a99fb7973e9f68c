"""MLPs with two heads on a shared trunk: a sum of two losses of different sizes.

A sum of losses has no one natural scale: which of the two the learning rate suits, and whether the
heads help each other, differs from task to task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import (
    SAMPLE,
    Inputs,
    StudentRanges,
    Teacher,
    draw_inputs,
    make_teacher,
)
from pacesetter.inner_models.losses import cross_entropy_of, with_label_noise
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, RowsFn

FEATURES = 32
"""Features of the inputs that the answers of each head are mixed from."""


@dataclass(frozen=True, kw_only=True)
class MultitaskRanges(StudentRanges):
    """Ranges of the two-headed nets, beside those of their trunks (`StudentRanges`)."""

    hidden: IntRange = (8, 96)
    outputs: IntRange = (1, 4)  # of the regression head
    regression_weight: Range = (0.1, 10.0)  # factor on the regression loss
    sharpness: Range = (0.5, 3.0)  # factor on the weights of the true features
    label_noise: Range = (0.01, 0.3)  # share of wrong labels; half have none
    # spread of the noise of the regression targets over their own
    target_noise: Range = (0.03, 0.5)
    # share of tasks in which both heads are answers from the same features
    related_share: float = 0.5
    adam_lr: Range = (0.015, 0.05)
    sgd_lr: Range = (0.03, 0.2)
    rmsprop_lr: Range = (1.7e-4, 6e-4)


@dataclass(frozen=True, kw_only=True)
class TwoHeadedShape:
    """Sizes and code paths of a two-headed net."""

    # from the input to the shared features, which the heads read after an activation
    trunk: MLPShape
    classes: int  # of the classification head
    outputs: int  # of the regression head


class TwoHeadedNet(nn.Module):
    """A trunk that two linear heads share (Caruana 1997, "Multitask learning").

    The factor on the regression loss is kept in the buffer ``regression_weight``.
    """

    regression_weight: Tensor

    def __init__(self, shape: TwoHeadedShape, *, regression_weight: float) -> None:
        super().__init__()
        self.trunk = build_mlp(shape.trunk).append(ACTIVATIONS[shape.trunk.activation]())
        width = shape.trunk.widths[-1]
        self.classifier = nn.Linear(width, shape.classes)
        self.regressor = nn.Linear(width, shape.outputs)
        self.register_buffer("regression_weight", torch.tensor(regression_weight))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (rows, classes) and predictions (rows, outputs) of inputs (rows, width)."""
        features = self.trunk(inputs)
        return self.classifier(features), self.regressor(features)


def two_headed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy plus weighted mean squared error; batch is (inputs, int64 labels, targets)."""
    inputs, labels, targets = batch
    logits, values = model(inputs)
    error = (values - targets).square().mean()
    loss: Tensor = cross_entropy_of(logits, labels) + model.regression_weight * error
    return loss


@dataclass(frozen=True)
class Multitask(GeneratedFamily[TwoHeadedShape]):
    """Nets with a classification head and a regression head; see `MultitaskRanges`.

    Labels and targets are mixed from tanh features of Gaussian inputs: the same features for both
    heads where they are related, features of their own where they are not.
    """

    ranges: MultitaskRanges = field(default_factory=MultitaskRanges)
    name: str = "multitask"

    def draw_model(self, draw: Draw) -> TwoHeadedShape:
        r = self.ranges
        trunk = draw_mlp(
            draw,
            inputs=draw.log_integer(*r.inputs),
            hidden=r.hidden,
            depth=(r.depth[0] - 1, r.depth[1] - 1),
            outputs=draw.log_integer(*r.hidden),
        )
        return TwoHeadedShape(
            trunk=trunk, classes=draw.integer(*r.classes), outputs=draw.integer(*r.outputs)
        )

    def cost(self, model: TwoHeadedShape) -> float:
        return model.trunk.num_params + model.trunk.widths[-1] * (model.classes + model.outputs)

    def draw_problem(self, shape: Shape[TwoHeadedShape], draw: Draw) -> Problem:
        weight = draw.log_uniform(*self.ranges.regression_weight)
        return Problem(
            build_model=partial(TwoHeadedNet, shape.model, regression_weight=weight),
            loss=two_headed_loss,
            rows=self._draw_rows(shape.model, draw),
        )

    def _draw_rows(self, model: TwoHeadedShape, draw: Draw) -> RowsFn:
        r, width, g = self.ranges, model.trunk.widths[0], draw.generator
        inputs = draw_inputs(draw, r, width)
        sharpness = draw.log_uniform(*r.sharpness) / math.sqrt(width)
        label_features = sharpness * torch.randn(width, FEATURES, generator=g)
        own = sharpness * torch.randn(width, FEATURES, generator=g)
        target_features = label_features if draw.chance(r.related_share) else own

        def head(features: Tensor, outputs: int) -> Teacher:
            mixing = torch.randn(FEATURES, outputs, generator=g)
            return make_teacher(features, mixing, white=inputs(SAMPLE, g)[0])

        return partial(
            _two_headed_rows,
            inputs=inputs,
            label_head=head(label_features, model.classes),
            target_head=head(target_features, model.outputs),
            label_noise=draw.log_uniform(*r.label_noise) if draw.chance(0.5) else 0.0,
            target_noise=draw.log_uniform(*r.target_noise),
        )


def _two_headed_rows(
    count: int,
    generator: torch.Generator,
    *,
    inputs: Inputs,
    label_head: Teacher,
    target_head: Teacher,
    label_noise: float,
    target_noise: float,
) -> Batch:
    white, seen = inputs(count, generator)
    scores, targets = label_head(white), target_head(white)
    labels = with_label_noise(scores.argmax(1), scores.shape[1], label_noise, generator)
    return seen, labels, targets + target_noise * torch.randn(targets.shape, generator=generator)
