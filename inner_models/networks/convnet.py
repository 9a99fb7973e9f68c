"""Convolutional classifiers: their sizes, how they are drawn, and how they are built.

Used alike by families on generated images and on real ones, from 6 x 6 pixels to 32 x 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from pacesetter.inner_models.draw import Draw, IntRange
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation

Pooling = Literal["max", "stride", "none"]
ConvNorm = Literal["none", "batch", "group"]
Head = Literal["mean", "flatten"]
HEADS: tuple[Head, ...] = ("mean", "flatten")

SMALLEST_SIDE = 4
"""Images of a smaller side are not halved any more."""


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """Sizes and code paths of a convolutional classifier of square images.

    Attributes:
        image: channels and side of the input, which has the shape (rows, channels, side, side).
        channels: of each layer's output.
        kernel: side of the filters, odd; images are padded to keep their size.
        pooling: how a layer halves its image, while that has a side of 4 or more: by
            ``MaxPool2d(2)`` after the activation, by a stride of 2, or not at all.
        norm: between convolution and activation.
        activation: of each layer.
        classes: number of outputs.
        head: what the last, linear layer sees: the ``"mean"`` over all positions, or all of them
            (``"flatten"``).

    Raises:
        ValueError: no layer, a size below 1, or filters of an even side.
    """

    image: tuple[int, int]
    channels: tuple[int, ...]
    kernel: int = 3
    pooling: Pooling = "max"
    norm: ConvNorm = "none"
    activation: Activation = "relu"
    classes: int = 10
    head: Head = "mean"

    def __post_init__(self) -> None:
        if not self.channels or min(*self.image, *self.channels, self.classes) < 1:
            raise ValueError(
                "a convnet needs at least one layer, and sizes of 1 or more, but got "
                f"image={self.image}, channels={self.channels}, classes={self.classes}"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive, but got {self.kernel}")

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of the input and of the output of each layer."""
        sides = [self.image[1]]
        for _ in self.channels:
            sides.append(self._halved(sides[-1]))
        return tuple(sides)

    @property
    def features(self) -> int:
        """Inputs of the linear head."""
        return self.channels[-1] * (1 if self.head == "mean" else self.sides[-1] ** 2)

    @property
    def cost(self) -> int:
        """Multiply-adds of the forward pass of one image; norms and pooling aside."""
        total, fan_in, sides = self.features * self.classes, self.image[0], self.sides
        for i, fan_out in enumerate(self.channels):
            side = sides[i + 1] if self.pooling == "stride" else sides[i]
            total += side**2 * self.kernel**2 * fan_in * fan_out
            fan_in = fan_out
        return total

    def _halved(self, side: int) -> int:
        if self.pooling == "none" or side < SMALLEST_SIDE:
            return side
        return side // 2 if self.pooling == "max" else (side + 1) // 2


def draw_convnet(
    draw: Draw,
    *,
    image: tuple[int, int],
    classes: int,
    width: IntRange = (4, 16),
    depth: IntRange = (1, 3),
    max_cost: float = math.inf,
) -> ConvShape:
    """Draws a convolutional classifier of images of the given channels and side.

    The channels of the first layer are drawn in logarithms and rounded to a multiple of 4; half of
    the networks double them from layer to layer. Channels are halved, and then layers left out,
    until an image takes at most `max_cost` multiply-adds or one layer of 4 channels is left.
    """
    first, growth = draw.log_integer(*width), draw.choice((1, 2))
    layers = draw.integer(*depth)
    shape = ConvShape(
        image=image,
        channels=_channels(first, growth, layers),
        pooling=draw.weighted({"max": 0.5, "stride": 0.35, "none": 0.15}),
        norm=draw.weighted({"none": 0.4, "batch": 0.4, "group": 0.2}),
        activation=draw.choice(tuple(ACTIVATIONS)),
        classes=classes,
        head=draw.choice(HEADS),
    )
    while shape.cost > max_cost and shape.channels != (4,):
        if first > 4:
            first = max(4, first // 2)
        elif growth > 1:
            growth = 1
        else:
            layers = max(1, layers - 1)
        shape = replace(shape, channels=_channels(first, growth, layers))
    return shape


def build_convnet(shape: ConvShape) -> nn.Sequential:
    """A module from images (rows, channels, side, side) to logits (rows, classes)."""
    layers: list[nn.Module] = []
    fan_in, sides = shape.image[0], shape.sides
    for i, fan_out in enumerate(shape.channels):
        halves = sides[i + 1] != sides[i]
        layers.append(
            nn.Conv2d(
                fan_in,
                fan_out,
                shape.kernel,
                stride=2 if halves and shape.pooling == "stride" else 1,
                padding=shape.kernel // 2,
                bias=shape.norm == "none",  # a norm has a bias of its own
            )
        )
        if shape.norm == "batch":
            layers.append(nn.BatchNorm2d(fan_out))
        elif shape.norm == "group":
            # Groups of four channels: of one, a group would lose its contrast on small images.
            layers.append(nn.GroupNorm(1 if fan_out % 4 else fan_out // 4, fan_out))
        layers.append(ACTIVATIONS[shape.activation]())
        if halves and shape.pooling == "max":
            layers.append(nn.MaxPool2d(2))
        fan_in = fan_out
    if shape.head == "mean":
        layers.append(nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(shape.features, shape.classes))


def _channels(first: int, growth: int, layers: int) -> tuple[int, ...]:
    return tuple(max(4, round(first / 4) * 4) * growth**i for i in range(layers))
