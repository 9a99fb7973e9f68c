"""Multilayer perceptrons: their sizes, how they are drawn, and how they are built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from pacesetter.inner_models.draw import Draw

Activation = Literal["relu", "tanh", "gelu", "silu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class MLPShape:
    """Sizes and code paths of an MLP.

    Attributes:
        widths: of every layer, input and output included.
        activation: between layers.
        layer_norm: whether hidden layers are followed by LayerNorm.
        classification: cross-entropy if true, else mean squared error.
    """

    widths: tuple[int, ...]
    activation: Activation
    layer_norm: bool = False
    classification: bool = True

    @property
    def num_params(self) -> int:
        """Weights and biases, LayerNorm aside."""
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairwise(self.widths))


def draw_mlp(
    draw: Draw,
    *,
    inputs: int,
    hidden: tuple[int, int],
    depth: tuple[int, int],
    outputs: int,
    classification: bool = True,
) -> MLPShape:
    """Draws the hidden layers of an MLP.

    Args:
        draw: the random numbers.
        inputs: width of the input.
        hidden: range of the hidden layers' width, drawn in logarithms.
        depth: range of the number of hidden layers.
        outputs: width of the output.
        classification: what the outputs are for.
    """
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
