"""Convolutional nets on generated images: textures, patterns in clutter, and shifted prototypes.

The kind of image is drawn task by task, so that one network meets what filters solve at once
(textures), what has to be found in clutter (patterns), and what a linear map nearly solves
(prototypes that hardly move).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import cross_entropy, with_label_noise
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.task import Batch, RowsFn

Painter = Callable[[Tensor, torch.Generator], Tensor]
"""From labels (rows,) to clean images (rows, channels, side, side), fresh ones at every call."""


@dataclass(frozen=True, kw_only=True)
class ImageRanges(JobRanges):
    """Ranges of the image family, beside those of every job (`JobRanges`)."""

    num_train: IntRange = (128, 4096)
    batch_size: IntRange = (8, 256)
    adam_lr: Range = (0.012, 0.09)
    sgd_lr: Range = (0.04, 0.3)
    rmsprop_lr: Range = (2e-4, 1.4e-3)
    work: float = 6e8
    side: IntRange = (6, 12)  # of the images, in pixels
    colours: IntRange = (1, 3)  # channels of the images
    classes: IntRange = (2, 10)  # number of classes
    width: IntRange = (4, 16)  # channels of the first layer
    depth: IntRange = (1, 3)  # number of convolutions
    max_cost: float = 16_000  # most multiply-adds of one image's forward pass
    pixel_noise: Range = (0.1, 1.0)  # spread of white noise over the spread of the clean pixels
    # share of random labels; never none, for a loss of zero compares with nothing
    label_noise: Range = (0.005, 0.3)
    input_scale: Range = (0.5, 2.0)  # factor on the pixels, whose spread is one otherwise
    waves: IntRange = (1, 3)  # plane waves that make up a texture
    pattern: IntRange = (3, 5)  # side of the patterns that hide in clutter
    clutter: IntRange = (0, 2)  # other patterns beside the one that counts
    blur: Range = (0.5, 1.5)  # width of the Gaussian that smooths prototypes, in pixels
    texture_share: float = 0.35  # share of tasks on textures
    pattern_share: float = 0.3  # share of tasks on patterns in clutter; the others have prototypes


@dataclass(frozen=True)
class ImageConvnet(GeneratedFamily[ConvShape]):
    """Convolutional nets that classify generated images."""

    ranges: ImageRanges = field(default_factory=ImageRanges)
    name: str = "image-convnet"

    def draw_model(self, draw: Draw) -> ConvShape:
        r = self.ranges
        return draw_convnet(
            draw,
            image=(draw.integer(*r.colours), draw.integer(*r.side)),
            classes=draw.integer(*r.classes),
            width=r.width,
            depth=r.depth,
            max_cost=r.max_cost,
        )

    def cost(self, model: ConvShape) -> float:
        return model.cost

    def draw_problem(self, shape: Shape[ConvShape], draw: Draw) -> Problem:
        model = shape.model
        return Problem(
            build_model=partial(build_convnet, model),
            loss=cross_entropy,
            rows=self.draw_rows(model, draw),
        )

    def draw_rows(self, model: ConvShape, draw: Draw) -> RowsFn:
        r, kind = self.ranges, draw.unit()
        sizes = (model.classes, *model.image)
        if kind < r.texture_share:
            paint = draw_textures(draw, sizes, waves=draw.integer(*r.waves))
        elif kind < r.texture_share + r.pattern_share:
            side = min(draw.integer(*r.pattern), model.image[1] - 1)
            paint = draw_patterns(draw, sizes, side=side, clutter=draw.integer(*r.clutter))
        else:
            paint = draw_prototypes(
                draw,
                sizes,
                blur=draw.log_uniform(*r.blur),
                shift=draw.integer(0, model.image[1] // 2),
            )
        sample = paint(
            torch.randint(model.classes, (512,), generator=draw.generator), draw.generator
        )
        noise = draw.log_uniform(*r.pixel_noise)
        scale = draw.log_uniform(*r.input_scale) / math.sqrt(1 + noise**2)
        return partial(
            _image_rows,
            classes=model.classes,
            paint=paint,
            mean=float(sample.mean()),
            scale=scale / float(sample.std().clamp(min=1e-6)),
            noise=noise * scale,
            label_noise=draw.log_uniform(*r.label_noise),
        )


def draw_textures(draw: Draw, sizes: tuple[int, int, int], *, waves: int) -> Painter:
    """Classes are sums of a few plane waves, whose phases and strengths vary from image to image.

    `sizes`, here and below, are the number of classes, the channels and the side of the images.
    """
    classes, colours, side = sizes
    g = draw.generator
    # From one period per image to one in 2.5 pixels, which is short of where two waves look alike.
    longest, shortest = 1 / side, 0.4
    cycles = longest * (shortest / longest) ** torch.rand(classes, waves, generator=g)
    angle = math.pi * torch.rand(classes, waves, generator=g)
    place = 2 * math.pi * torch.arange(side)
    phase = (cycles * angle.cos())[..., None, None] * place[:, None]
    phase = phase + (cycles * angle.sin())[..., None, None] * place
    pair = torch.stack([phase.cos(), phase.sin()], dim=2)  # (classes, waves, 2, side, side)
    colour = torch.randn(classes, waves, 1, colours, 1, 1, generator=g)
    basis = (colour * pair[:, :, :, None]).view(classes * waves * 2, -1)
    return partial(_paint_textures, basis=basis, sizes=sizes, waves=waves)


def draw_patterns(draw: Draw, sizes: tuple[int, int, int], *, side: int, clutter: int) -> Painter:
    """Classes are small patterns at random positions, among others that mean nothing.

    The `clutter` of an image is so many meaningless patterns, half as strong as the other.
    """
    classes, colours, _ = sizes
    patterns = torch.randn(classes + 8, colours, side, side, generator=draw.generator)
    return partial(_paint_patterns, patterns=patterns, sizes=sizes, clutter=clutter)


def draw_prototypes(draw: Draw, sizes: tuple[int, int, int], *, blur: float, shift: int) -> Painter:
    """Classes are smooth images that are shifted, round the edges, by up to `shift` pixels.

    The Gaussian that smooths them is `blur` pixels wide.
    """
    side = sizes[2]
    distance = (torch.arange(side)[:, None] - torch.arange(side)).abs()
    distance = torch.minimum(distance, side - distance)
    smooth = torch.exp(-distance.square() / (2 * blur**2))
    prototypes = smooth @ torch.randn(*sizes, side, generator=draw.generator) @ smooth
    prototypes /= prototypes.std(dim=(1, 2, 3), keepdim=True)
    return partial(_paint_prototypes, prototypes=prototypes, shift=shift)


def _paint_textures(
    labels: Tensor,
    generator: torch.Generator,
    *,
    basis: Tensor,
    sizes: tuple[int, int, int],
    waves: int,
) -> Tensor:
    classes, colours, side = sizes
    rows = len(labels)
    phase = 2 * math.pi * torch.rand(rows, waves, generator=generator)
    strength = torch.exp(0.3 * torch.randn(rows, waves, generator=generator))
    parts = (strength[..., None] * torch.stack([phase.cos(), phase.sin()], dim=2)).flatten(1)
    # Zeros for the waves of the other classes: one product with the basis paints all images.
    weights = torch.zeros(rows, classes, waves * 2)
    weights[torch.arange(rows), labels] = parts
    return (weights.flatten(1) @ basis).view(rows, colours, side, side)


def _paint_patterns(
    labels: Tensor,
    generator: torch.Generator,
    *,
    patterns: Tensor,
    sizes: tuple[int, int, int],
    clutter: int,
) -> Tensor:
    classes, colours, side = sizes
    rows, size = len(labels), patterns.shape[-1]
    others = torch.randint(classes, len(patterns), (rows, clutter), generator=generator)
    which = torch.cat([labels[:, None], others], dim=1)
    corner = torch.randint(side - size + 1, (2, rows, clutter + 1, 1), generator=generator)
    offset = torch.arange(size)
    within = (torch.arange(colours)[:, None, None] * side + offset[:, None]) * side + offset
    place = corner[0] * side + corner[1] + within.flatten()
    strength = torch.exp(0.3 * torch.randn(rows, clutter + 1, 1, generator=generator))
    strength[:, 1:] /= 2
    painted = strength * patterns.flatten(1)[which]
    images = torch.zeros(rows, colours * side * side)
    return images.scatter_add_(1, place.flatten(1), painted.flatten(1)).view(
        rows, colours, side, side
    )


def _paint_prototypes(
    labels: Tensor, generator: torch.Generator, *, prototypes: Tensor, shift: int
) -> Tensor:
    _, colours, side, _ = prototypes.shape
    moved = torch.randint(-shift, shift + 1, (2, len(labels), 1), generator=generator)
    down, across = (torch.arange(side) + moved) % side
    place = (down[:, :, None] * side + across[:, None]).flatten(1)
    index = place[:, None].expand(-1, colours, -1)
    return prototypes.flatten(2)[labels].gather(2, index).view(-1, colours, side, side)


def _image_rows(
    count: int,
    generator: torch.Generator,
    *,
    classes: int,
    paint: Painter,
    mean: float,
    scale: float,
    noise: float,
    label_noise: float,
) -> Batch:
    labels = torch.randint(classes, (count,), generator=generator)
    images = (paint(labels, generator) - mean) * scale
    images += noise * torch.randn(images.shape, generator=generator)
    return images, with_label_noise(labels, classes, label_noise, generator)
