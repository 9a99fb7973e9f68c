"""Classifiers of MNIST, Fashion-MNIST and CIFAR-10: held-out families where the user has the files.

They are the data sets that everybody knows, so that a report says something to everybody; nothing
here downloads them (`image_files.py` reads what the user brings).
"""

from __future__ import annotations

from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.real.image_files import CLASSES, Bytes, read_images
from pacesetter.inner_models.families.real.image_sources import SOURCES
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, OptimizerConfig, Splits, Task, TaskFamily

FEWEST_ROWS = 2000
"""Train splits have this many rows to all; all, where the files have fewer."""

_MAX_COST = 3e5  # multiply-adds of a convnet's forward pass of one image


class FileImages(TaskFamily):
    """Classification of the images of a folder that the user names, by MLPs or by convnets.

    | drawn per shape | range |
    |---|---|
    | MLP: hidden layers, width | 1 to 2, 16 to 64 |
    | MLP: activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | convnet | see `draw_convnet`: 1 to 3 layers of 4 to 16 channels, doubled or not |
    | rows of the train split | 2,000 to all |
    | batch size | 16 to 128 |
    | horizon | 200 to 2,000 inner steps |

    Args:
        data_set: ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
        model: ``"mlp"`` or ``"convnet"``.
        data: the folder with the files; they are read when a task is first drawn, which raises
            `FileNotFoundError` or `ValueError` if they are missing or damaged (`read_images`).

    Raises:
        ValueError: there is no such data set.
    """

    def __init__(self, data_set: str, model: Literal["mlp", "convnet"], data: Path) -> None:
        check_name(data_set, SOURCES, kind="image data set")
        self.data_set, self.model, self.data = data_set, model, data
        self.name = f"{data_set}-{model}"

    def sample_shape(self, generator: torch.Generator) -> Shape[MLPShape | ConvShape]:
        """Draws architecture, training-set size, batch size and horizon."""
        draw = Draw(generator)
        images = _parts(self.data_set, self.data)[0][0]
        rows, channels, side, _ = images.shape
        model: MLPShape | ConvShape
        if self.model == "mlp":
            pixels = channels * side**2
            model = draw_mlp(draw, inputs=pixels, hidden=(16, 64), depth=(1, 2), outputs=CLASSES)
        else:
            image = (channels, side)
            model = draw_convnet(draw, image=image, classes=CLASSES, max_cost=_MAX_COST)
        num_train = draw.log_integer(min(FEWEST_ROWS, rows), rows)
        job = Job(
            num_train=num_train,
            batch_size=min(draw.power_of_two(16, 128), num_train),
            horizon=draw.log_integer(200, 2000),
        )
        return Shape(model, job)

    def build(self, shape: Shape[MLPShape | ConvShape], generator: torch.Generator) -> Task:
        """Builds one task; tasks of a shape differ in initial weights and batch order."""
        model, job = shape.model, shape.job
        flat = isinstance(model, MLPShape)
        return Task(
            partial(build_mlp, model)
            if isinstance(model, MLPShape)
            else partial(build_convnet, model),
            cross_entropy,
            file_image_splits(self.data_set, self.data, num_train=job.num_train, flat=flat),
            horizon=job.horizon,
            batch_size=job.batch_size,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=job.weight_decay),
            name=self.name,
            seed=Draw(generator).seed(),
        )


@lru_cache(maxsize=64)
def file_image_splits(data_set: str, data: Path, *, num_train: int, flat: bool) -> Splits:
    """The splits of a data set, scaled per channel to mean 0 and spread 1 over all training rows.

    `test` is the test files. Of the rows of the training files, in their order, the last twelfth
    is `outer_valid`, the twenty-fourth before it `inner_valid`, and the first `num_train` are
    `train`. Left out of the training files are images that were there before or are in the test
    files (Fashion-MNIST and CIFAR-10 have a few).

    Args:
        data_set: its name.
        data: the folder with the files.
        num_train: rows of the train split.
        flat: whether images are rows of pixels, (rows, pixels), or (rows, channels, side, side).

    Raises:
        ValueError: `num_train` is out of range, or see `read_images`.
        FileNotFoundError: see `read_images`.
    """
    train, *others = _parts(data_set, data)
    if not 1 <= num_train <= len(train[0]):
        raise ValueError(f"num_train must lie between 1 and {len(train[0])}, but got {num_train}")
    parts = [(train[0][:num_train], train[1][:num_train]), *others]
    if flat:
        parts = [(images.flatten(1), labels) for images, labels in parts]
    # Checked above, on the bytes: a check of so many real numbers would take gigabytes.
    return Splits(*parts, allow_overlap=True)


@lru_cache(maxsize=3)
def _parts(data_set: str, data: Path) -> tuple[Batch, Batch, Batch, Batch]:
    """All rows of the four splits; smaller train splits are views of these."""
    found = read_images(data_set, data)
    kept = fresh_rows(found.train_images, known=found.test_images)
    rows = len(kept)
    outer, inner = max(1, rows // 12), max(1, rows // 24)
    if rows <= outer + inner:
        raise ValueError(
            f"the training files of {data_set} in {data} must hold at least 3 images that differ "
            f"from each other and from those of the test files, but hold {rows}"
        )
    images = torch.from_numpy(found.train_images[kept]).float()
    test = torch.from_numpy(found.test_images.copy()).float()
    labels = torch.from_numpy(found.train_labels[kept])
    sizes = (rows - outer - inner, inner, outer)
    mean, spread = _channel_statistics(images[: sizes[0]])
    for tensor in (images, test):
        tensor.sub_(mean).div_(spread)
    train, inner_valid, outer_valid = zip(images.split(sizes), labels.split(sizes), strict=True)
    return train, inner_valid, outer_valid, (test, torch.from_numpy(found.test_labels))


def fresh_rows(images: Bytes, *, known: Bytes) -> list[int]:
    """Numbers of the images that are neither among `known` nor equal to one before them.

    Args:
        images: bytes (rows, ...).
        known: bytes (any number of rows, ...).
    """
    seen = {_digest(image) for image in known}
    rows: list[int] = []
    for i, image in enumerate(images):
        digest = _digest(image)
        if digest not in seen:
            seen.add(digest)
            rows.append(i)
    return rows


def _digest(image: Bytes) -> bytes:
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel, both (channels, 1, 1)."""
    spread, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    return mean[:, None, None], spread.clamp(min=1e-6)[:, None, None]
