"""MLPs on hard labels: wrong on some training rows, or nearly all of one class.

A training loss that falls here may be memorised noise, or a rare class given up: new rows
are clean, and sometimes balanced where the training rows are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import (
    StudentRanges,
    draw_mixing,
    draw_student,
)
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp
from pacesetter.inner_models.task import Batch


@dataclass(frozen=True, kw_only=True)
class HardLabelRanges(StudentRanges):
    """Ranges of the family of hard labels, beside those of its networks (`StudentRanges`)."""

    adam_lr: Range = (4e-3, 0.05)
    sgd_lr: Range = (0.04, 0.4)
    rmsprop_lr: Range = (6e-5, 5e-4)
    clusters: IntRange = (1, 4)  # Gaussian clusters of each class
    separation: Range = (3.0, 8.0)  # distance of the clusters' centres over their spread
    condition: Range = (1.0, 100.0)  # condition number of the matrix that mixes the inputs, squared
    # share of training labels replaced by any class, the right one included
    uniform_noise: Range = (0.05, 0.5)
    # share of training labels that flip to the class's own wrong partner, on average over
    # classes; the shares of classes lie between zero and twice that, and at most at 0.49
    paired_noise: Range = (0.05, 0.4)
    imbalance: Range = (3.0, 100.0)  # frequency of the commonest class over that of the rarest
    noisy_share: float = 0.7  # share of tasks with wrong labels
    paired_share: float = 0.5  # share of those whose wrong labels depend on the class
    # share of the tasks with wrong labels that are imbalanced too; tasks without wrong
    # labels all are
    imbalanced_share: float = 0.4
    balanced_share: float = 0.4  # share of imbalanced tasks whose new rows are balanced


@dataclass(frozen=True)
class HardLabelsMLP(GeneratedFamily[MLPShape]):
    """MLPs on clusters of points with noisy labels, unequal classes, or both.

    `HardLabelRanges` says what is drawn. Labels of new rows are clean.
    """

    ranges: HardLabelRanges = field(default_factory=HardLabelRanges)
    name: str = "hard-labels-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        return draw_student(draw, self.ranges)

    def cost(self, model: MLPShape) -> float:
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        r, model = self.ranges, shape.model
        width, classes = model.widths[0], model.widths[-1]
        g = draw.generator
        spread = draw.log_uniform(*r.separation) / math.sqrt(2 * width)
        rows = partial(
            _cluster_rows,
            centres=spread * torch.randn(classes, draw.integer(*r.clusters), width, generator=g),
            # Clusters are stretched as much as their distances: the best possible loss stays.
            mixing=draw_mixing(draw, r, width),
        )
        right, equal = torch.eye(classes), torch.full((classes,), 1 / classes)
        noisy = draw.chance(r.noisy_share)
        answers, shares = right, equal
        if noisy and draw.chance(r.paired_share):
            answers = paired_flips(draw, classes, share=draw.log_uniform(*r.paired_noise))
        elif noisy:
            answers = uniform_flips(classes, share=draw.log_uniform(*r.uniform_noise))
        if not noisy or draw.chance(r.imbalanced_share):
            shares = unequal_shares(draw, classes, ratio=draw.log_uniform(*r.imbalance))
        new_shares = equal if draw.chance(r.balanced_share) else shares
        return Problem(
            build_model=partial(build_mlp, model),
            loss=cross_entropy,
            rows=partial(rows, shares=shares, answers=answers),
            new_rows=partial(rows, shares=new_shares, answers=right),
        )


def uniform_flips(classes: int, *, share: float) -> Tensor:
    """Probabilities (classes, classes) of the label given for each class, if a share is random."""
    return (1 - share) * torch.eye(classes) + share / classes


def paired_flips(draw: Draw, classes: int, *, share: float) -> Tensor:
    """Probabilities (classes, classes) of the label given for each class, if each has one partner.

    The share of wrong labels is an average over classes, before the cap that leaves the right
    label the likelier one.
    """
    ring = torch.randperm(classes, generator=draw.generator)
    partner = torch.empty_like(ring)
    partner[ring] = ring.roll(1)
    wrong = (2 * share * torch.rand(classes, generator=draw.generator)).clamp(max=0.49)
    answers = torch.diag(1 - wrong)
    answers[torch.arange(classes), partner] = wrong
    return answers


def unequal_shares(draw: Draw, classes: int, *, ratio: float) -> Tensor:
    """Frequencies (classes,) that fall exponentially from the commonest class to the rarest.

    Cui et al. 2019 call such data sets long-tailed. Their `ratio` is one over the other.
    """
    rank = torch.randperm(classes, generator=draw.generator) / (classes - 1)
    return torch.softmax(-math.log(ratio) * rank, dim=0)


def _pick(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row of probabilities (rows, n): shape (rows,)."""
    at = torch.rand(len(probabilities), 1, generator=generator)
    bounds = probabilities.cumsum(1)
    picked: Tensor = (at >= bounds[:, :-1]).sum(1)
    return picked


def _cluster_rows(
    count: int,
    generator: torch.Generator,
    *,
    centres: Tensor,
    mixing: Tensor,
    shares: Tensor,
    answers: Tensor,
) -> Batch:
    classes = _pick(shares.expand(count, -1), generator)
    cluster = torch.randint(centres.shape[1], (count,), generator=generator)
    points = torch.randn(count, centres.shape[2], generator=generator) + centres[classes, cluster]
    return points @ mixing, _pick(answers[classes], generator)
