"""Scikit-learn's handwritten digits under several networks, targets and horizons: real data.

1,797 images of 8 x 8 pixels (Alpaydin & Kaynak 1998), in a fixed split of 1,000 train, 197
inner-valid, 300 outer-valid and 300 test rows; smaller training sets take the first rows.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cache, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, RealFamily, RealProblem, Shape
from pacesetter.inner_models.families.teachers.compressed import (
    QuantisedMLPShape,
    build_quantised_mlp,
)
from pacesetter.inner_models.families.teachers.transfer import Student
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import cross_entropy, soft_cross_entropy
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.networks.transformer import TransformerShape, VisionTransformer
from pacesetter.inner_models.task import SPLITS, Batch, Splits

Model = TypeVar("Model")

LONG_HORIZON = 20_000
"""Inner steps of every task of `DigitsLong`: four times the longest of meta-training."""

_SIZES = (1000, 197, 300, 300)
_TEACHER = MLPShape(widths=(64, 128, 128, 10), activation="gelu")
_TEACHER_STEPS, _TEACHER_BATCH = 300, 64


@cache
def digits_splits(num_train: int = _SIZES[0]) -> Splits:
    """The digits, pixels scaled to mean 0 and spread 1 over the whole train split.

    Args:
        num_train: rows of the train split, from 1 to 1,000.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: `num_train` is out of range.
    """
    if not 1 <= num_train <= _SIZES[0]:
        raise ValueError(f"num_train must lie between 1 and {_SIZES[0]}, but got {num_train}")
    data = require("sklearn.datasets", extra="train").load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.data[order]).float()
    labels = torch.from_numpy(data.target[order]).long()
    train = images[: _SIZES[0]]
    images = (images - train.mean()) / train.std()
    inputs, targets = images.split(_SIZES), labels.split(_SIZES)
    parts = list(zip(inputs, targets, strict=True))
    parts[0] = (inputs[0][:num_train], targets[0][:num_train])
    return Splits(*parts)


@cache
def digit_images(num_train: int) -> Splits:
    """The digits of `digits_splits` as images, (rows, 1, 8, 8)."""
    flat = digits_splits(num_train)
    return Splits(*((images.view(-1, 1, 8, 8), labels) for images, labels in _batches(flat)))


def _batches(splits: Splits) -> list[Batch]:
    return [getattr(splits, name) for name in SPLITS]


class DigitsFamily(RealFamily[Model]):
    """Classification of 8 x 8 digits; subclasses say by which network.

    The train split has 200, 500 or 1,000 rows; batches 16 to 128; horizons 200 to 1,500 steps.
    """

    as_images = False
    """Whether the network sees images, (rows, 1, 8, 8), or rows of 64 pixels."""

    @staticmethod
    @abstractmethod
    def build_model(shape: Model) -> nn.Module:
        """Makes a freshly initialised network."""

    def draw_job(self, draw: Draw, model: Model) -> Job:
        return Job(
            num_train=draw.choice((200, 500, 1000)),
            batch_size=draw.power_of_two(16, 128),
            horizon=draw.log_integer(200, 1500),
        )

    def draw_problem(self, shape: Shape[Model], draw: Draw) -> RealProblem:
        splits = digit_images if self.as_images else digits_splits
        return RealProblem(
            build_model=partial(self.build_model, shape.model),
            loss=cross_entropy,
            splits=splits(shape.job.num_train),
        )


class DigitsMLP(DigitsFamily[MLPShape]):
    """Classification of 8 x 8 digits by MLPs of 1 to 3 hidden layers of 16 to 128 units."""

    name = "digits-mlp"
    build_model = staticmethod(build_mlp)

    def draw_model(self, draw: Draw) -> MLPShape:
        return draw_mlp(draw, inputs=64, hidden=(16, 128), depth=(1, 3), outputs=10)


class DigitsConvnet(DigitsFamily[ConvShape]):
    """Classification of 8 x 8 digits by convnets of 1 to 3 layers (`draw_convnet`)."""

    name = "digits-convnet"
    as_images = True
    build_model = staticmethod(build_convnet)

    def draw_model(self, draw: Draw) -> ConvShape:
        return draw_convnet(draw, image=(1, 8), classes=10, max_cost=6e4)


class DigitsViT(DigitsFamily[TransformerShape]):
    """Classification of 8 x 8 digits by small vision transformers."""

    name = "digits-vit"
    as_images = True
    build_model = staticmethod(VisionTransformer)

    def draw_model(self, draw: Draw) -> TransformerShape:
        return TransformerShape(
            image=(1, 8, 8),
            patch=draw.choice((2, 4)),
            classes=10,
            class_token=draw.chance(0.5),
            width=draw.choice((8, 16, 24)),
            heads=draw.choice((2, 4)),
            layers=draw.integer(1, 2),
            expansion=2,
            pre_norm=draw.chance(0.7),
            activation=draw.choice(tuple(ACTIVATIONS)),
        )


class DigitsQuantised(DigitsFamily[QuantisedMLPShape]):
    """Classification of 8 x 8 digits by MLPs whose weights have 2 to 8 bits.

    Activations have 3 to 8 bits in half of the networks, and are not quantised in the others.
    """

    name = "digits-quantised"
    build_model = staticmethod(build_quantised_mlp)

    def draw_model(self, draw: Draw) -> QuantisedMLPShape:
        return QuantisedMLPShape(
            mlp=draw_mlp(draw, inputs=64, hidden=(16, 128), depth=(1, 3), outputs=10),
            weight_bits=draw.integer(2, 8),
            activation_bits=draw.integer(3, 8) if draw.chance(0.5) else 0,
            per_row=draw.chance(0.5),
        )


class DigitsLong(DigitsFamily[MLPShape]):
    """Classification of 8 x 8 digits by small MLPs, on 1,000 rows in 20,000 inner steps."""

    name = "digits-long"
    build_model = staticmethod(build_mlp)

    def draw_model(self, draw: Draw) -> MLPShape:
        return draw_mlp(draw, inputs=64, hidden=(8, 16), depth=(1, 2), outputs=10)

    def draw_job(self, draw: Draw, model: MLPShape) -> Job:
        return Job(num_train=1000, batch_size=draw.choice((16, 32)), horizon=LONG_HORIZON)


class DigitsDistilled(DigitsFamily[MLPShape]):
    """MLP students of the soft answers of a larger MLP that has learned the digits.

    The teacher (two layers of 128) saw all 1,000 train rows; the loss, on every split, is the
    Kullback-Leibler divergence of the student's class probabilities from the teacher's, both at
    one temperature of 2 to 6. A student that equals its teacher would have none, but is too small
    for that: it has 1 or 2 hidden layers of 8 to 32 units.
    """

    name = "digits-distilled"
    build_model = staticmethod(build_mlp)

    def draw_model(self, draw: Draw) -> MLPShape:
        return draw_mlp(draw, inputs=64, hidden=(8, 32), depth=(1, 2), outputs=10)

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> RealProblem:
        temperature = draw.log_uniform(2.0, 6.0)
        return RealProblem(
            build_model=partial(Student, shape.model, temperature=temperature),
            loss=divergence,
            splits=distilled_splits(shape.job.num_train, temperature=temperature),
            optimum=0.0,
        )


def distilled_splits(num_train: int, *, temperature: float) -> Splits:
    """The digits of `digits_splits` with the teacher's answers at a temperature.

    Returns:
        Splits of images (rows, 64), class probabilities (rows, 10) and their entropies (rows,).
    """
    teacher = digits_teacher()
    parts = []
    with torch.no_grad():
        for images, _ in _batches(digits_splits(num_train)):
            chances = (teacher(images.double()) / temperature).softmax(1)
            entropies = torch.special.entr(chances).sum(1)
            parts.append((images, chances.float(), entropies.float()))
    return Splits(*parts)


def divergence(model: nn.Module, batch: Batch) -> Tensor:
    """Mean Kullback-Leibler divergence in nats; batch is (inputs, probabilities, entropies)."""
    inputs, chances, entropies = batch
    return soft_cross_entropy(model, (inputs, chances)) - entropies.mean()


@cache
def digits_teacher() -> nn.Module:
    """An MLP that has learned the 1,000 train digits, the same in every process; float64."""
    images, labels = digits_splits().train
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # In double precision the order of sums on one machine or another makes no difference.
        teacher = build_mlp(_TEACHER).double()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(_TEACHER_STEPS):
        rows = torch.randint(len(labels), (_TEACHER_BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(teacher, (images[rows].double(), labels[rows])).backward()
        optimizer.step()
    return teacher.requires_grad_(False)
