"""MLPs on labels that mislead: wrong on some training rows, or nearly all of one class.

A training loss that falls here may be noise learned by heart, or a rare class given up: new rows
are clean, and sometimes balanced where the training rows are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import draw_mixing
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch


@dataclass(frozen=True, kw_only=True)
class HardLabelRanges(JobRanges):
    """Ranges of the family of hard labels, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        hidden: width of hidden layers.
        depth: number of hidden layers.
        classes: number of classes.
        clusters: Gaussian clusters of each class.
        separation: distance of the clusters' centres over their spread.
        condition: condition number of the matrix that mixes the inputs, squared.
        input_scale: factor on the inputs.
        uniform_noise: share of training labels replaced by any class, the right one included.
        paired_noise: share of training labels that flip to the class's own wrong partner, on
            average over classes; the shares of classes lie between zero and twice that, and at
            most at 0.49.
        imbalance: frequency of the commonest class over that of the rarest.
        noisy_share: share of tasks with wrong labels.
        paired_share: share of those whose wrong labels depend on the class.
        imbalanced_share: share of the tasks with wrong labels that are imbalanced too; tasks
            without wrong labels all are.
        balanced_share: share of imbalanced tasks whose new rows are balanced.
    """

    adam_lr: tuple[float, float] = (4e-3, 0.05)
    sgd_lr: tuple[float, float] = (0.04, 0.4)
    rmsprop_lr: tuple[float, float] = (6e-5, 5e-4)
    inputs: tuple[int, int] = (4, 64)
    hidden: tuple[int, int] = (8, 128)
    depth: tuple[int, int] = (1, 3)
    classes: tuple[int, int] = (2, 10)
    clusters: tuple[int, int] = (1, 4)
    separation: tuple[float, float] = (3.0, 8.0)
    condition: tuple[float, float] = (1.0, 100.0)
    input_scale: tuple[float, float] = (0.5, 2.0)
    uniform_noise: tuple[float, float] = (0.05, 0.5)
    paired_noise: tuple[float, float] = (0.05, 0.4)
    imbalance: tuple[float, float] = (3.0, 100.0)
    noisy_share: float = 0.7
    paired_share: float = 0.5
    imbalanced_share: float = 0.4
    balanced_share: float = 0.4


@dataclass(frozen=True)
class HardLabelsMLP(GeneratedFamily[MLPShape]):
    """MLPs on clusters of points with noisy labels, unequal classes, or both.

    | drawn | range |
    |---|---|
    | input width | 4 to 64 |
    | hidden layers, width | 1 to 3, 8 to 128 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | classes, clusters of each, their separation | 2 to 10, 1 to 4, 3 to 8 |
    | condition number, scale of the inputs | 1 to 100, 0.5 to 2 |
    | training labels replaced by any class | 5 to 50 % on 35 % of the tasks |
    | training labels that flip to the class's wrong partner | 5 to 40 % on 35 % of the tasks |
    | commonest class over rarest | 3 to 100 on the 30 % without noise and on 40 % of the others |
    | new rows | clean; where classes are unequal, balanced on 40 %, else alike |
    """

    ranges: HardLabelRanges = field(default_factory=HardLabelRanges)
    name: str = "hard-labels-mlp"

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
        r, model = self.ranges, shape.model
        width, classes = model.widths[0], model.widths[-1]
        g = draw.generator
        spread = draw.log_uniform(*r.separation) / math.sqrt(2 * width)
        rows = partial(
            _cluster_rows,
            centres=spread * torch.randn(classes, draw.integer(*r.clusters), width, generator=g),
            # Clusters are stretched as much as their distances: the best possible loss stays.
            mixing=draw_mixing(draw, width=width, condition=r.condition, scale=r.input_scale),
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

    Args:
        draw: decides the partners, and how often each class is taken for its own.
        classes: number of classes.
        share: of wrong labels, before the cap that leaves the right label the likelier one.
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

    Args:
        draw: decides which class is common (Cui et al. 2019 call these data sets long-tailed).
        classes: number of classes, two or more.
        ratio: of the commonest over the rarest.
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
