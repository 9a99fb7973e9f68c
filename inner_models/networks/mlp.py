"""Multilayer perceptrons: their sizes, how they are drawn, and how they are built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from pacesetter.inner_models.draw import Draw, IntRange

Activation = Literal["relu", "tanh", "gelu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class MLPShape:
    """Sizes and code paths of an MLP."""

    widths: tuple[int, ...]  # of every layer, input and output included
    activation: Activation  # between layers
    layer_norm: bool = False  # whether hidden layers are followed by LayerNorm
    classification: bool = True  # cross-entropy if true, else mean squared error

    @property
    def num_params(self) -> int:
        """Weights and biases, LayerNorm aside."""
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairwise(self.widths))


def draw_mlp(
    draw: Draw,
    *,
    inputs: int,
    hidden: IntRange,
    depth: IntRange,
    outputs: int,
    classification: bool = True,
) -> MLPShape:
    """Draws the number of hidden layers and their width, one activation, and LayerNorm on 30 %."""
    width = draw.log_integer(*hidden)
    layers = draw.integer(*depth)
    return MLPShape(
        widths=(inputs, *[width] * layers, outputs),
        activation=draw.choice(tuple(ACTIVATIONS)),
        layer_norm=layers > 0 and draw.chance(0.3),
        classification=classification,
    )


def build_mlp(shape: MLPShape) -> nn.Sequential:
    """An MLP with torch's default initialisation."""
    layers: list[nn.Module] = []
    last = len(shape.widths) - 2
    for i, (fan_in, fan_out) in enumerate(pairwise(shape.widths)):
        layers.append(nn.Linear(fan_in, fan_out))
        if i < last:
            if shape.layer_norm:
                layers.append(nn.LayerNorm(fan_out))
            layers.append(ACTIVATIONS[shape.activation]())
    return nn.Sequential(*layers)
