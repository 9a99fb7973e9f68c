"""The digits under other networks and a longer job: held out, so that only reports read them.

The data and the job are those of `digits.py`; what changes is the network (a convnet, a vision
transformer, a fake-quantised MLP), the targets (a teacher's answers) or the horizon.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.real.digits import digits_splits, digits_task, draw_digits_job
from pacesetter.inner_models.families.teachers.compressed import (
    QuantisedMLPShape,
    build_quantised_mlp,
)
from pacesetter.inner_models.families.teachers.transfer import Student
from pacesetter.inner_models.losses import cross_entropy, soft_cross_entropy
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.networks.mlp import ACTIVATIONS, MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.networks.transformer import TransformerShape, VisionTransformer
from pacesetter.inner_models.task import SPLITS, Batch, Splits, Task, TaskFamily

LONG_HORIZON = 20_000
"""Inner steps of every task of `DigitsLong`: four times the longest of meta-training."""

_TEACHER = MLPShape(widths=(64, 128, 128, 10), activation="gelu")
_TEACHER_STEPS, _TEACHER_BATCH = 300, 64


class DigitsConvnet(TaskFamily):
    """Classification of 8 x 8 digits by convnets.

    | drawn per shape | range |
    |---|---|
    | network | see `draw_convnet`: 1 to 3 layers of 4 to 16 channels, doubled or not |
    | rows, batch size, horizon | as in `DigitsMLP` |
    """

    name = "digits-convnet"

    def sample_shape(self, generator: torch.Generator) -> Shape[ConvShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = draw_convnet(draw, image=(1, 8), classes=10, max_cost=6e4)
        return Shape(model, draw_digits_job(draw))

    def build(self, shape: Shape[ConvShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        return digits_task(
            shape.job,
            build_model=partial(build_convnet, shape.model),
            name=self.name,
            seed=Draw(generator).seed(),
            splits=digit_images(shape.job.num_train),
        )


class DigitsViT(TaskFamily):
    """Classification of 8 x 8 digits by small vision transformers.

    | drawn per shape | range |
    |---|---|
    | side of the patches | 2 or 4 pixels |
    | width, heads, blocks | 8, 16 or 24; 2 or 4; 1 or 2 |
    | LayerNorm before the parts or after the sums | before in 70 % |
    | class token, not the mean over patches | half |
    | activation | relu, tanh, gelu, silu |
    | rows, batch size, horizon | as in `DigitsMLP` |
    """

    name = "digits-vit"

    def sample_shape(self, generator: torch.Generator) -> Shape[TransformerShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = TransformerShape(
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
        return Shape(model, draw_digits_job(draw))

    def build(self, shape: Shape[TransformerShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        return digits_task(
            shape.job,
            build_model=partial(VisionTransformer, shape.model),
            name=self.name,
            seed=Draw(generator).seed(),
            splits=digit_images(shape.job.num_train),
        )


class DigitsQuantised(TaskFamily):
    """Classification of 8 x 8 digits by fake-quantised MLPs.

    | drawn per shape | range |
    |---|---|
    | hidden layers, width | 1 to 3, 16 to 128 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | bits of the weights | 2 to 8, with a scale for each output in half |
    | bits of the activations | 3 to 8 in half, else not quantised |
    | rows, batch size, horizon | as in `DigitsMLP` |
    """

    name = "digits-quantised"

    def sample_shape(self, generator: torch.Generator) -> Shape[QuantisedMLPShape]:
        """Draws architecture, bits, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = QuantisedMLPShape(
            mlp=draw_mlp(draw, inputs=64, hidden=(16, 128), depth=(1, 3), outputs=10),
            weight_bits=draw.integer(2, 8),
            activation_bits=draw.integer(3, 8) if draw.chance(0.5) else 0,
            per_row=draw.chance(0.5),
        )
        return Shape(model, draw_digits_job(draw))

    def build(self, shape: Shape[QuantisedMLPShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        return digits_task(
            shape.job,
            build_model=partial(build_quantised_mlp, shape.model),
            name=self.name,
            seed=Draw(generator).seed(),
        )


class DigitsDistilled(TaskFamily):
    """MLP students of the soft answers of a larger MLP that has learned the digits.

    The teacher (two layers of 128) saw all 1,000 train rows; the loss, on every split, is the
    Kullback-Leibler divergence of the student's class probabilities from the teacher's, both at
    one temperature. A student that equals its teacher would have none, but is too small for that.

    | drawn per shape | range |
    |---|---|
    | hidden layers, width | 1 to 2, 8 to 32 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | rows, batch size, horizon | as in `DigitsMLP` |

    | drawn per task | range |
    |---|---|
    | temperature | 2 to 6 |
    """

    name = "digits-distilled"

    def sample_shape(self, generator: torch.Generator) -> Shape[MLPShape]:
        """Draws the student's architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        model = draw_mlp(draw, inputs=64, hidden=(8, 32), depth=(1, 2), outputs=10)
        return Shape(model, draw_digits_job(draw))

    def build(self, shape: Shape[MLPShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in temperature, weights and batch order."""
        draw = Draw(generator)
        temperature = draw.log_uniform(2.0, 6.0)
        task = digits_task(
            shape.job,
            build_model=partial(Student, shape.model, temperature=temperature),
            name=self.name,
            seed=draw.seed(),
            loss=divergence,
            splits=distilled_splits(shape.job.num_train, temperature=temperature),
        )
        return replace(task, optimum=0.0)


class DigitsLong(TaskFamily):
    """Classification of 8 x 8 digits by small MLPs in 20,000 inner steps.

    | drawn per shape | range |
    |---|---|
    | hidden layers, width | 1 to 2, 8 to 16 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | rows of the train split | 1,000 |
    | batch size | 16 or 32 |
    | horizon | 20,000 inner steps |
    """

    name = "digits-long"

    def sample_shape(self, generator: torch.Generator) -> Shape[MLPShape]:
        """Draws architecture and batch size."""
        draw = Draw(generator)
        model = draw_mlp(draw, inputs=64, hidden=(8, 16), depth=(1, 2), outputs=10)
        batch_size = draw.choice((16, 32))
        return Shape(model, Job(num_train=1000, batch_size=batch_size, horizon=LONG_HORIZON))

    def build(self, shape: Shape[MLPShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        return digits_task(
            shape.job,
            build_model=partial(build_mlp, shape.model),
            name=self.name,
            seed=Draw(generator).seed(),
        )


@cache
def digit_images(num_train: int) -> Splits:
    """The digits of `digits_splits` as images, (rows, 1, 8, 8)."""
    flat = digits_splits(num_train)
    return Splits(*((images.view(-1, 1, 8, 8), labels) for images, labels in _batches(flat)))


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
        # In double precision: how sums are ordered on one machine or another is then no matter.
        teacher = build_mlp(_TEACHER).double()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(_TEACHER_STEPS):
        rows = torch.randint(len(labels), (_TEACHER_BATCH,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(teacher, (images[rows].double(), labels[rows])).backward()
        optimizer.step()
    return teacher.requires_grad_(False)


def _batches(splits: Splits) -> list[Batch]:
    return [getattr(splits, name) for name in SPLITS]
