"""Names of task families, and the only place that says which set a family belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from pacesetter.inner_models.families.autoencoder import Autoencoders
from pacesetter.inner_models.families.images import ImageConvnet
from pacesetter.inner_models.families.languages import LanguageTransformer
from pacesetter.inner_models.families.logistic import LogisticRegression
from pacesetter.inner_models.families.quadratic import Quadratic
from pacesetter.inner_models.families.ratings import Ratings
from pacesetter.inner_models.families.real.digits import DigitsMLP
from pacesetter.inner_models.families.real.digits_nets import (
    DigitsConvnet,
    DigitsDistilled,
    DigitsLong,
    DigitsQuantised,
    DigitsViT,
)
from pacesetter.inner_models.families.real.file_images import FileImages
from pacesetter.inner_models.families.real.image_sources import data_folder
from pacesetter.inner_models.families.real.photo_flow import PhotoFlow
from pacesetter.inner_models.families.real.photos import PhotoDenoiser
from pacesetter.inner_models.families.real.tabular import TabularMLP
from pacesetter.inner_models.families.real.text import SourceGRU, TextGRU, TextTransformer
from pacesetter.inner_models.families.sequences import SequenceRNN
from pacesetter.inner_models.families.teachers.compressed import PrunedMLP, QuantisedMLP
from pacesetter.inner_models.families.teachers.distillation import DistilledMLP
from pacesetter.inner_models.families.teachers.hard_labels import HardLabelsMLP
from pacesetter.inner_models.families.teachers.multitask import Multitask
from pacesetter.inner_models.families.teachers.pretrained import FineTunedMLP
from pacesetter.inner_models.families.teachers.regression import TeacherMLP
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.own_families import is_own, own_family
from pacesetter.inner_models.task import Task, TaskFamily

META_TRAIN: tuple[str, ...] = (
    "teacher-mlp",
    "quadratic",
    "logistic",
    "ratings",
    "autoencoder",
    "multitask",
    "distilled-mlp",
    "image-convnet",
    "quantised-mlp",
    "pruned-mlp",
    "fine-tuned-mlp",
    "hard-labels-mlp",
    "language-transformer",
    "sequence-rnn",
)
"""Families to learn from: generated data only."""
VALIDATION: tuple[str, ...] = ("digits-mlp", "tabular-mlp", "photo-denoiser")
"""Families to choose a policy by, and to tune on."""
HELD_OUT: tuple[str, ...] = (
    "digits-convnet",
    "digits-vit",
    "digits-quantised",
    "digits-distilled",
    "digits-long",
    "photo-flow",
    "text-transformer",
    "text-gru",
    "source-gru",
)
"""Families that only reports read."""
FROM_FILES: tuple[str, ...] = (
    "mnist-mlp",
    "mnist-convnet",
    "fashion-mnist-mlp",
    "fashion-mnist-convnet",
    "cifar10-convnet",
)
"""Held out too, on image files that the user brings: made only with a folder that has them."""

_FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "teacher-mlp": TeacherMLP,
    "quadratic": Quadratic,
    "logistic": LogisticRegression,
    "ratings": Ratings,
    "autoencoder": Autoencoders,
    "multitask": Multitask,
    "distilled-mlp": DistilledMLP,
    "image-convnet": ImageConvnet,
    "quantised-mlp": QuantisedMLP,
    "pruned-mlp": PrunedMLP,
    "fine-tuned-mlp": FineTunedMLP,
    "hard-labels-mlp": HardLabelsMLP,
    "language-transformer": LanguageTransformer,
    "sequence-rnn": SequenceRNN,
    "digits-mlp": DigitsMLP,
    "tabular-mlp": TabularMLP,
    "photo-denoiser": PhotoDenoiser,
    "digits-convnet": DigitsConvnet,
    "digits-vit": DigitsViT,
    "digits-quantised": DigitsQuantised,
    "digits-distilled": DigitsDistilled,
    "digits-long": DigitsLong,
    "photo-flow": PhotoFlow,
    "text-transformer": TextTransformer,
    "text-gru": TextGRU,
    "source-gru": SourceGRU,
}
_FILE_FAMILIES: dict[str, Callable[[Path], TaskFamily]] = {
    "mnist-mlp": partial(FileImages, "mnist", "mlp"),
    "mnist-convnet": partial(FileImages, "mnist", "convnet"),
    "fashion-mnist-mlp": partial(FileImages, "fashion-mnist", "mlp"),
    "fashion-mnist-convnet": partial(FileImages, "fashion-mnist", "convnet"),
    "cifar10-convnet": partial(FileImages, "cifar10", "convnet"),
}


def family_names() -> tuple[str, ...]:
    """Names of all families; those in `FROM_FILES` need a folder of the user's."""
    return (*_FAMILIES, *_FILE_FAMILIES)


def make_family(name: str, *, data: str | Path | None = None) -> TaskFamily:
    """A family by name.

    Args:
        name: one of `family_names`, or ``module:attribute`` for one of the user's own (see
            `pacesetter.inner_models.own_families`).
        data: folder with the files of a family in `FROM_FILES`; None: the one that the environment
            variable ``PACESETTER_DATA`` names. The other families take no notice of it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: there is no such family (the message has the nearest names), it needs a folder
            and none is given, or an own one cannot be imported.
    """
    if is_own(name):
        return own_family(name)
    check_name(name, family_names(), kind="task family")
    if name in _FILE_FAMILIES:
        return _FILE_FAMILIES[name](data_folder(data))
    return _FAMILIES[name]()


@cache
def fixed_task(family: str, index: int, *, data: str | Path | None = None) -> Task:
    """Task number `index` of a family: the same one on every machine and in every report.

    The task starts AdamW at 1e-3, whatever start the family draws; it is named ``family/index``.

    Args:
        family: its name, as for `make_family`.
        index: of the task.
        data: see `make_family`; a process reads the environment variable once for each task.

    Raises:
        FileNotFoundError: files of a family in `FROM_FILES` are missing.
        ValueError: the family is unknown, the index negative, or a file damaged.
    """
    if index < 0:
        raise ValueError(f"index of a fixed task must be zero or positive, but got {index}")
    digest = hashlib.sha256(f"{family}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    task = make_family(family, data=data).sample(generator)
    task = replace(task, name=f"{family}/{index}")
    return task.with_optimizer(name="adamw", lr=1e-3)
