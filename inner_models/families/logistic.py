"""Logistic regression of known optimum: convex, and as ill-conditioned as one likes.

Labels are drawn from a logistic model of the inputs, so that no model can have a lower expected
loss than the entropy of the labels given the inputs. Label noise is part of that model (how sharp
its probabilities are), not put on top of it: the optimum takes it in exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.generated import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.job import JobRanges
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.task import Batch

ENTROPY_POINTS = 2**14
"""Points of the quasi-random rule that integrates the entropy."""


@dataclass(frozen=True, kw_only=True)
class LogisticRanges(JobRanges):
    """Ranges of logistic regression, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        classes: number of classes, for the tasks that have more than two.
        condition: condition number of the inputs' covariance.
        input_scale: root mean square spread of the inputs.
        offset: mean of the inputs over their spread.
        balance: exponent by which narrow directions have larger true weights; at 1 every direction
            says as much about the label, at 0 the wide ones say nearly all.
        sharpness: spread of the true scores: at 1 many labels are wrong, at 10 few are.
        imbalance: spread of the true biases.
        binary_share: share of tasks with two classes and one score.
        rotated_share: share of tasks whose wide directions are not those of single inputs.
    """

    inputs: tuple[int, int] = (2, 64)
    classes: tuple[int, int] = (3, 10)
    condition: tuple[float, float] = (1.0, 1e4)
    input_scale: tuple[float, float] = (0.3, 3.0)
    offset: tuple[float, float] = (0.0, 2.0)
    balance: tuple[float, float] = (0.0, 1.0)
    sharpness: tuple[float, float] = (1.0, 10.0)
    imbalance: tuple[float, float] = (0.0, 2.0)
    binary_share: float = 0.5
    rotated_share: float = 0.6
    # About the quartiles of the best rates that benchmarks/family_survey.py finds.
    adam_lr: tuple[float, float] = (0.1, 0.7)
    sgd_lr: tuple[float, float] = (0.1, 1.8)
    rmsprop_lr: tuple[float, float] = (1.5e-3, 0.01)


@dataclass(frozen=True, kw_only=True)
class LogisticShape:
    """Sizes of a logistic regression.

    Attributes:
        inputs: width of the input.
        classes: two have one score and the binary loss, more have a score each.
    """

    inputs: int
    classes: int

    @property
    def outputs(self) -> int:
        """Number of scores."""
        return 1 if self.classes == 2 else self.classes


@dataclass(frozen=True)
class LogisticRegression(GeneratedFamily[LogisticShape]):
    """Binary and multinomial logistic regression without penalty.

    Inputs are Gaussian; labels are drawn from the softmax (sigmoid) of true scores, linear in the
    inputs. The optimum is the expected entropy of the labels given the inputs, integrated over the
    Gaussian scores.

    | drawn | range |
    |---|---|
    | input width | 2 to 64 |
    | classes | 2 in half, else 3 to 10 |
    | condition number of the inputs | 1 to 10,000 |
    | wide directions rotated against the inputs | 60 % |
    | spread of the inputs, their mean over it | 0.3 to 3, 0 to 2 |
    | how much more narrow directions weigh | exponent 0 to 1 of their spread |
    | sharpness: spread of the true scores | 1 to 10 |
    | imbalance: spread of the true biases | 0 to 2 |
    """

    ranges: LogisticRanges = field(default_factory=LogisticRanges)
    name: str = "logistic"

    def draw_model(self, draw: Draw) -> LogisticShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        classes = 2 if draw.chance(r.binary_share) else draw.integer(*r.classes)
        return LogisticShape(inputs=draw.log_integer(*r.inputs), classes=classes)

    def cost(self, model: LogisticShape) -> float:
        """See `GeneratedFamily.cost`."""
        return model.inputs * model.outputs

    def draw_problem(self, shape: Shape[LogisticShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
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


def binary_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean binary cross-entropy; the model has one score a row, batch is (inputs, 0.0 or 1.0)."""
    inputs, labels = batch
    scores: Tensor = model(inputs)[..., 0]
    return (F.softplus(scores) - labels * scores).mean()


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
