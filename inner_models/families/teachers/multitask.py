"""Two-headed nets: two losses of unlike size pull at one trunk.

A sum of losses has no one natural scale: which of the two the learning rate suits, and whether the
heads help each other, differs from task to task.
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
from pacesetter.inner_models.losses import cross_entropy_of, with_label_noise
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, RowsFn

FEATURES = 32
"""Features of the inputs that the answers of each head are mixed from."""


@dataclass(frozen=True, kw_only=True)
class MultitaskRanges(JobRanges):
    """Ranges of the two-headed nets, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        hidden: width of the trunk's layers.
        depth: number of the trunk's layers.
        classes: of the classification head.
        outputs: of the regression head.
        regression_weight: factor on the regression loss.
        condition: condition number of the inputs' covariance.
        input_scale: factor on the inputs.
        sharpness: factor on the weights of the true features.
        label_noise: share of wrong labels.
        target_noise: spread of the noise of the regression targets over their own.
        related_share: share of tasks in which both heads are answers from the same features.
    """

    inputs: tuple[int, int] = (4, 64)
    hidden: tuple[int, int] = (8, 96)
    depth: tuple[int, int] = (1, 3)
    classes: tuple[int, int] = (2, 10)
    outputs: tuple[int, int] = (1, 4)
    regression_weight: tuple[float, float] = (0.1, 10.0)
    condition: tuple[float, float] = (1.0, 1e3)
    input_scale: tuple[float, float] = (0.5, 2.0)
    sharpness: tuple[float, float] = (0.5, 3.0)
    label_noise: tuple[float, float] = (0.01, 0.3)
    target_noise: tuple[float, float] = (0.03, 0.5)
    related_share: float = 0.5
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.015, 0.05)
    sgd_lr: tuple[float, float] = (0.03, 0.2)
    rmsprop_lr: tuple[float, float] = (1.7e-4, 6e-4)


@dataclass(frozen=True, kw_only=True)
class TwoHeadedShape:
    """Sizes and code paths of a two-headed net.

    Attributes:
        trunk: from the input to the shared features, which the heads read after an activation.
        classes: of the classification head.
        outputs: of the regression head.
    """

    trunk: MLPShape
    classes: int
    outputs: int


class TwoHeadedNet(nn.Module):
    """A trunk that two linear heads share (Caruana 1997, "Multitask learning").

    Args:
        shape: sizes and code paths.
        regression_weight: factor on the regression loss, kept in a buffer of that name.
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
    """Nets with a shared trunk, a classification head and a regression head.

    Labels and targets are mixed from tanh features of Gaussian inputs: the same features for both
    heads where they are related, features of their own where they are not.

    | drawn | range |
    |---|---|
    | input width | 4 to 64 |
    | layers of the trunk, width | 1 to 3, 8 to 96 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % of trunks of two or more layers |
    | classes, outputs of the regression | 2 to 10, 1 to 4 |
    | factor on the regression loss | 0.1 to 10 |
    | heads related | 50 % |
    | condition number, scale of the inputs | 1 to 1,000, 0.5 to 2 |
    | sharpness of the true features | 0.5 to 3 |
    | wrong labels | none in half, else 0.01 to 0.3 |
    | noise of the targets over their spread | 0.03 to 0.5 |
    """

    ranges: MultitaskRanges = field(default_factory=MultitaskRanges)
    name: str = "multitask"

    def draw_model(self, draw: Draw) -> TwoHeadedShape:
        """See `GeneratedFamily.draw_model`."""
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
        """See `GeneratedFamily.cost`."""
        return model.trunk.num_params + model.trunk.widths[-1] * (model.classes + model.outputs)

    def draw_problem(self, shape: Shape[TwoHeadedShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        weight = draw.log_uniform(*self.ranges.regression_weight)
        return Problem(
            build_model=partial(TwoHeadedNet, shape.model, regression_weight=weight),
            loss=two_headed_loss,
            rows=self.draw_rows(shape.model, draw),
        )

    def draw_rows(self, model: TwoHeadedShape, draw: Draw) -> RowsFn:
        """Draws where the data of one task come from."""
        r, width, g = self.ranges, model.trunk.widths[0], draw.generator
        inputs = draw_inputs(draw, width=width, condition=r.condition, scale=r.input_scale)
        sharpness = draw.log_uniform(*r.sharpness) / math.sqrt(width)
        label_features = sharpness * torch.randn(width, FEATURES, generator=g)
        own = sharpness * torch.randn(width, FEATURES, generator=g)
        target_features = label_features if draw.chance(r.related_share) else own
        return partial(
            _two_headed_rows,
            inputs=inputs,
            label_head=_draw_head(draw, label_features, outputs=model.classes, inputs=inputs),
            target_head=_draw_head(draw, target_features, outputs=model.outputs, inputs=inputs),
            label_noise=draw.log_uniform(*r.label_noise) if draw.chance(0.5) else 0.0,
            target_noise=draw.log_uniform(*r.target_noise),
        )


def _draw_head(
    draw: Draw, features: Tensor, *, outputs: int, inputs: Inputs
) -> Callable[[Tensor], Tensor]:
    """Random mixtures of tanh features of white inputs, scaled to mean 0 and spread 1."""
    mixing = torch.randn(FEATURES, outputs, generator=draw.generator)
    scores = torch.tanh(inputs(1024, draw.generator)[0] @ features) @ mixing
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)
    return lambda white: (torch.tanh(white @ features) @ mixing - mean) / std


def _two_headed_rows(
    count: int,
    generator: torch.Generator,
    *,
    inputs: Inputs,
    label_head: Callable[[Tensor], Tensor],
    target_head: Callable[[Tensor], Tensor],
    label_noise: float,
    target_noise: float,
) -> Batch:
    white, seen = inputs(count, generator)
    scores, targets = label_head(white), target_head(white)
    labels = with_label_noise(scores.argmax(1), scores.shape[1], label_noise, generator)
    return seen, labels, targets + target_noise * torch.randn(targets.shape, generator=generator)
