"""MLPs with quantised or pruned weights.

A fake-quantised network rounds its weights in the forward pass and is trained as if it had not
(the straight-through estimator of Bengio et al. 2013): its gradients are noisy where steps are
smaller than a level. A pruned network has a fixed mask on each layer's weights, which changes the
size of its layers' outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp

Saliency = Literal["random", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class QuantisedMLPShape:
    """Sizes and code paths of a fake-quantised MLP."""

    mlp: MLPShape  # the network that is quantised
    weight_bits: int  # bits of a weight, 2 or more
    activation_bits: int = 0  # bits of what all layers but the first see; 0: that is not quantised
    # whether each output of a layer has a scale of its own, or the layer has one
    per_row: bool = True
    ends: bool = True  # whether the first and the last layer are quantised too


def fake_quantise(values: Tensor, *, bits: int, per_row: bool = True) -> Tensor:
    """Rounds to 2^bits - 1 levels that lie evenly about zero; gradients pass as if it did not.

    The outermost level is the largest absolute value (Jacob et al. 2018, symmetric), so that
    nothing is clipped and the straight-through gradient is one everywhere.

    Args:
        values: (..., n).
        bits: 2 or more.
        per_row: one scale per row of n values; else one for the whole tensor.

    Raises:
        ValueError: there are too few bits for a level beside zero.
    """
    if bits < 2:
        raise ValueError(f"bits must be 2 or more, but got {bits}")
    sizes = values.detach().abs()
    largest = sizes.amax(-1, keepdim=True) if per_row else sizes.amax()
    levels = 2 ** (bits - 1) - 1
    step = largest.clamp(min=1e-12) / levels
    rounded: Tensor = torch.round(values / step) * step
    return values + (rounded - values).detach()


class QuantisedLinear(nn.Linear):
    """A linear layer whose weights, and where wanted inputs, are fake-quantised when it is used.

    Inputs have a scale per example, and are not quantised with `input_bits` of 0. With `per_row`,
    each output has a scale of its own.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, bits: int, input_bits: int = 0, per_row: bool = True
    ) -> None:
        super().__init__(fan_in, fan_out)
        self.bits, self.input_bits, self.per_row = bits, input_bits, per_row

    def forward(self, x: Tensor) -> Tensor:
        if self.input_bits:
            x = fake_quantise(x, bits=self.input_bits)
        weight = fake_quantise(self.weight, bits=self.bits, per_row=self.per_row)
        return F.linear(x, weight, self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer of which some weights are held at zero, by the buffer ``mask``.

    Args:
        fan_in: width of the input.
        fan_out: width of the output.
        sparsity: share of the weights that are left out; each output keeps one on average.
        saliency: which are kept: the largest initial weights, or any.
        rescaled: whether the others are enlarged by 1 / sqrt(1 - sparsity), so that with a random
            mask the output starts as large as a dense layer's (Evci et al. 2022).
    """

    mask: Tensor

    def __init__(
        self, fan_in: int, fan_out: int, *, sparsity: float, saliency: Saliency, rescaled: bool
    ) -> None:
        super().__init__(fan_in, fan_out)
        kept = max(fan_out, round((1 - sparsity) * fan_in * fan_out))
        weights = self.weight.detach()
        scores = weights.abs() if saliency == "magnitude" else torch.rand(weights.shape)
        mask = torch.zeros(fan_in * fan_out)
        mask[scores.flatten().topk(kept).indices] = 1.0
        self.register_buffer("mask", mask.view_as(weights))
        if rescaled:
            with torch.no_grad():
                self.weight.mul_(math.sqrt(fan_in * fan_out / kept))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def build_quantised_mlp(shape: QuantisedMLPShape) -> nn.Sequential:
    """An MLP of `QuantisedLinear` layers; the input itself is never quantised."""
    model = build_mlp(shape.mlp)
    places = _linear_layers(model)
    for place, (fan_in, fan_out) in zip(places, pairwise(shape.mlp.widths), strict=True):
        if shape.ends or place not in (places[0], places[-1]):
            model[place] = QuantisedLinear(
                fan_in,
                fan_out,
                bits=shape.weight_bits,
                input_bits=shape.activation_bits if place > 0 else 0,
                per_row=shape.per_row,
            )
    return model


def build_pruned_mlp(
    shape: MLPShape, *, sparsity: float, saliency: Saliency, rescaled: bool, head: bool
) -> nn.Sequential:
    """An MLP of `MaskedLinear` layers; the mask of the last is all ones unless `head`."""
    model = build_mlp(shape)
    places = _linear_layers(model)
    for place, (fan_in, fan_out) in zip(places, pairwise(shape.widths), strict=True):
        share = sparsity if head or place != places[-1] else 0.0
        model[place] = MaskedLinear(
            fan_in, fan_out, sparsity=share, saliency=saliency, rescaled=rescaled
        )
    return model


def _linear_layers(model: nn.Sequential) -> list[int]:
    return [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]


@dataclass(frozen=True, kw_only=True)
class QuantisedRanges(TeacherRanges):
    """Ranges of the quantised family, beside those of its data (`TeacherRanges`)."""

    depth: IntRange = (1, 3)  # number of hidden layers
    # none, since clusters without label noise can be learned to a loss of zero
    cluster_share: float = 0.0
    weight_bits: IntRange = (2, 8)  # bits of a weight
    activation_bits: IntRange = (3, 8)  # bits of an activation, where those are quantised
    activation_share: float = 0.4  # share of networks that quantise their activations
    row_share: float = 0.5  # share of networks with a scale for each output of a layer
    ends_share: float = 0.6  # share of networks that quantise the first and the last layer too
    adam_lr: Range = (0.012, 0.07)
    sgd_lr: Range = (0.07, 0.4)
    rmsprop_lr: Range = (1.2e-4, 6e-4)


@dataclass(frozen=True)
class QuantisedMLP(GeneratedFamily[QuantisedMLPShape]):
    """Fake-quantised MLPs on the data of `TeacherMLP`, with straight-through gradients."""

    ranges: QuantisedRanges = field(default_factory=QuantisedRanges)
    name: str = "quantised-mlp"

    def draw_model(self, draw: Draw) -> QuantisedMLPShape:
        r = self.ranges
        mlp = TeacherMLP(r).draw_model(draw)
        return QuantisedMLPShape(
            mlp=mlp,
            weight_bits=draw.integer(*r.weight_bits),
            activation_bits=draw.integer(*r.activation_bits) * draw.chance(r.activation_share),
            per_row=draw.chance(r.row_share),
            # Where there is no layer between the ends, nothing else could be quantised.
            ends=len(mlp.widths) < 4 or draw.chance(r.ends_share),
        )

    def cost(self, model: QuantisedMLPShape) -> float:
        return model.mlp.num_params

    def draw_problem(self, shape: Shape[QuantisedMLPShape], draw: Draw) -> Problem:
        problem = TeacherMLP(self.ranges).draw_problem(Shape(shape.model.mlp, shape.job), draw)
        return replace(problem, build_model=partial(build_quantised_mlp, shape.model))


@dataclass(frozen=True, kw_only=True)
class PrunedRanges(TeacherRanges):
    """Ranges of the pruned family, beside those of its data (`TeacherRanges`)."""

    hidden: IntRange = (16, 128)  # width of hidden layers
    depth: IntRange = (1, 3)  # number of hidden layers
    cluster_share: float = 0.0  # none, as in `QuantisedRanges`
    sparsity: Range = (0.3, 0.95)  # share of the weights that are left out
    magnitude_share: float = 0.5  # share of tasks that keep the largest initial weights, not any
    rescaled_share: float = 0.5  # share of tasks that enlarge the weights that are left
    head_share: float = 0.5  # share of tasks that prune the last layer too
    adam_lr: Range = (0.012, 0.08)
    sgd_lr: Range = (0.08, 0.5)
    rmsprop_lr: Range = (1.8e-4, 8e-4)


@dataclass(frozen=True)
class PrunedMLP(GeneratedFamily[MLPShape]):
    """Sparse MLPs with fixed masks, on the data of `TeacherMLP`."""

    ranges: PrunedRanges = field(default_factory=PrunedRanges)
    name: str = "pruned-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        return TeacherMLP(self.ranges).draw_model(draw)

    def cost(self, model: MLPShape) -> float:
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        r = self.ranges
        build = partial(
            build_pruned_mlp,
            shape.model,
            sparsity=draw.uniform(*r.sparsity),
            saliency="magnitude" if draw.chance(r.magnitude_share) else "random",
            rescaled=draw.chance(r.rescaled_share),
            head=draw.chance(r.head_share),
        )
        return replace(TeacherMLP(r).draw_problem(shape, draw), build_model=build)
