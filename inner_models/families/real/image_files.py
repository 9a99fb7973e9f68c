"""Classifiers of MNIST, Fashion-MNIST and CIFAR-10, from the standard files in a user's folder.

Nothing is downloaded and nothing is unpickled; a file that is missing, damaged or of another kind
is refused with what was expected and what came. The families are held out.
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, RealFamily, RealProblem, Shape
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, Splits

Bytes = NDArray[np.uint8]
Examples = tuple[Bytes, NDArray[np.int64]]
"""Images (rows, channels, height, width) and labels (rows,) from 0 to 9."""

DATA_VARIABLE = "PACESETTER_DATA"
"""Environment variable that names the folder of the files where the caller does not."""
CLASSES = 10
FEWEST_ROWS = 2000
"""Train splits have this many rows to all; all, where the files have fewer."""

_MAX_COST = 3e5  # multiply-adds of a convnet's forward pass of one image
_CIFAR_ROW = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes


@dataclass(frozen=True)
class ImageSource:
    """Names of a data set's files, and the folders that they may lie in, recommended one first."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


_IDX_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
_CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
SOURCES = {
    "mnist": ImageSource(_IDX_FILES, ("mnist", "MNIST/raw", "MNIST")),
    "fashion-mnist": ImageSource(_IDX_FILES, ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST")),
    "cifar10": ImageSource(
        _CIFAR_FILES, ("cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin", ".")
    ),
}
"""The data sets by name."""


def data_folder(data: str | Path | None = None) -> Path:
    """The folder that holds the data sets' files: `data`, or what ``PACESETTER_DATA`` names.

    Raises:
        FileNotFoundError: it does not exist or is no folder.
        ValueError: neither is given.
    """
    found = os.environ.get(DATA_VARIABLE) if data is None else data
    if not found:
        raise ValueError(
            "this needs a folder with the files of MNIST, Fashion-MNIST or CIFAR-10: pass "
            f"--data DIR (data=Path(...) in Python) or set {DATA_VARIABLE}"
        )
    folder = Path(found)
    if not folder.is_dir():
        origin = f", which {DATA_VARIABLE} names," if data is None else ""
        what = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"the folder of image files {folder}{origin} {what}")
    return folder


def data_sets_in(data: Path) -> tuple[str, ...]:
    """Names of the data sets of which `data` holds at least one file."""
    return tuple(name for name in SOURCES if any(_fullest(name, data)[1]))


def what_is_missing(name: str, data: Path) -> str:
    """Which files of a data set are missing, where they go, and where they were looked for."""
    source = SOURCES[name]
    place, found = _fullest(name, data)
    goal = place if any(found) else data / source.folders[0]
    missing = ", ".join(file for file, path in zip(source.files, found, strict=True) if not path)
    looked = ", ".join(map(str, _places(name, data)))
    hint = " (the binary version, from cifar-10-binary.tar.gz)" if name == "cifar10" else ""
    return f"{name} lacks {missing}: they go into {goal}. Looked in: {looked}{hint}"


def _places(name: str, data: Path) -> list[Path]:
    """The folders that are looked in; `data` itself may be one of them, by its name."""
    data = data.resolve()
    places = (
        base / folder
        for base in (data, data.parent, data.parent.parent)
        for folder in SOURCES[name].folders
    )
    return [place for place in places if place.is_relative_to(data)]


def _fullest(name: str, data: Path) -> tuple[Path, list[Path | None]]:
    """The place with the most files of a data set (the first of several), and its files."""

    def present(place: Path, file: str) -> Path | None:
        spellings = (file, file.replace("-idx", ".idx"))
        paths = (place / f"{spelling}{end}" for end in ("", ".gz") for spelling in spellings)
        return next(filter(Path.is_file, paths), None)

    found = {p: [present(p, file) for file in SOURCES[name].files] for p in _places(name, data)}
    return min(found.items(), key=lambda item: item[1].count(None))


def read_images(name: str, data: Path) -> tuple[Examples, Examples]:
    """The training files and the test files of a data set.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
        data: the folder that holds its files, directly or in one of the usual subfolders
            (`SOURCES`). Files may be gzipped; CIFAR-10 is the binary version.

    Raises:
        FileNotFoundError: files are missing; the message lists them and says where they go.
        ValueError: the name is unknown, or a file is damaged or of another kind.
    """
    check_name(name, SOURCES, kind="image data set")
    files = [path for path in _fullest(name, data)[1] if path]
    if len(files) < len(SOURCES[name].files):
        raise FileNotFoundError(what_is_missing(name, data))
    if name == "cifar10":
        *train, test = map(_read_cifar, files)
        images, labels = zip(*train, strict=True)
        return (np.concatenate(images), np.concatenate(labels)), test
    return _read_idx_pair(*files[:2]), _read_idx_pair(*files[2:])


def _read_idx_pair(images: Path, labels: Path) -> Examples:
    """The format is described at http://yann.lecun.com/exdb/mnist."""
    pixels, numbers = _read_idx(images, (28, 28)), _read_idx(labels, ())
    if len(pixels) != len(numbers):
        raise ValueError(
            f"{images} and {labels} must belong together, but have {len(pixels)} images and "
            f"{len(numbers)} labels"
        )
    return pixels[:, None], _checked_labels(numbers, labels)


def _read_idx(path: Path, size: tuple[int, ...]) -> Bytes:
    raw = _unzipped(path)
    start = 4 * (2 + len(size))
    expected = 0x801 + len(size)  # 08: unsigned bytes; then the number of dimensions
    header = np.frombuffer(raw[:start].ljust(start, b"\0"), ">u4").tolist()
    if header[0] != expected:
        raise ValueError(
            f"{path} has the magic number {header[0]:#010x}; expected {expected:#010x}. Is it "
            "another file under this name?"
        )
    shape = header[1:]
    if tuple(shape[1:]) != size or not shape[0]:
        raise ValueError(f"{path} must hold one or more rows of the shape {size}, but has {shape}")
    if len(raw) != start + prod(shape):
        raise ValueError(
            f"{path} must have {start + prod(shape)} bytes for the {shape[0]} rows that its header "
            f"names, but has {len(raw)}; fetch the file again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _read_cifar(path: Path) -> Examples:
    """The binary version, described at https://www.cs.toronto.edu/~kriz/cifar.html."""
    raw = _unzipped(path)
    if not raw or len(raw) % _CIFAR_ROW:
        raise ValueError(
            f"{path} must have {_CIFAR_ROW} bytes for each row, {10_000 * _CIFAR_ROW} in the "
            f"original, but has {len(raw)}; fetch the binary version of CIFAR-10 again"
        )
    table = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR_ROW)
    return table[:, 1:].reshape(-1, 3, 32, 32), _checked_labels(table[:, 0], path)


def _unzipped(path: Path) -> bytes:
    """The file's bytes; whether they are gzipped is read off them, not off the name."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged gzip file of {len(raw)} bytes ({error}); fetch the file again"
        ) from error


def _checked_labels(labels: Bytes, path: Path) -> NDArray[np.int64]:
    if labels.max() >= CLASSES:
        row = int((labels >= CLASSES).argmax())
        raise ValueError(
            f"{path}: labels must lie between 0 and {CLASSES - 1}, but row {row} has {labels[row]}"
        )
    return labels.astype(np.int64)


class FileImages(RealFamily[MLPShape | ConvShape]):
    """Classification of the images of a folder that the user names, by MLPs or by convnets.

    MLPs have 1 or 2 hidden layers of 16 to 64 units; convnets are those of `draw_convnet`. Train
    splits have 2,000 rows to all; batches 16 to 128; horizons 200 to 2,000 steps.

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

    def draw_model(self, draw: Draw) -> MLPShape | ConvShape:
        _, channels, side, _ = self._train_shape()
        if self.model == "mlp":
            pixels = channels * side**2
            return draw_mlp(draw, inputs=pixels, hidden=(16, 64), depth=(1, 2), outputs=CLASSES)
        return draw_convnet(draw, image=(channels, side), classes=CLASSES, max_cost=_MAX_COST)

    def draw_job(self, draw: Draw, model: MLPShape | ConvShape) -> Job:
        rows = self._train_shape()[0]
        num_train = draw.log_integer(min(FEWEST_ROWS, rows), rows)
        return Job(
            num_train=num_train,
            batch_size=min(draw.power_of_two(16, 128), num_train),
            horizon=draw.log_integer(200, 2000),
        )

    def draw_problem(self, shape: Shape[MLPShape | ConvShape], draw: Draw) -> RealProblem:
        model, rows = shape.model, shape.job.num_train
        flat = isinstance(model, MLPShape)
        return RealProblem(
            build_model=partial(build_mlp, model)
            if isinstance(model, MLPShape)
            else partial(build_convnet, model),
            loss=cross_entropy,
            splits=file_image_splits(self.data_set, self.data, num_train=rows, flat=flat),
        )

    def _train_shape(self) -> torch.Size:
        return _parts(self.data_set, self.data)[0][0].shape


@lru_cache(maxsize=64)
def file_image_splits(data_set: str, data: Path, *, num_train: int, flat: bool) -> Splits:
    """The splits of a data set, scaled per channel to mean 0 and spread 1 over all training rows.

    `test` is the test files. Of the rows of the training files, in their order, the last twelfth
    is `outer_valid`, the twenty-fourth before it `inner_valid`, and the first `num_train` are
    `train`. Left out of the training files are images that were there before or are in the test
    files (Fashion-MNIST and CIFAR-10 have a few).

    Images are (rows, channels, side, side), or rows of pixels where `flat` is set.

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
    return Splits(*parts, allow_overlap=True)  # `_parts` has checked them, on the bytes


@lru_cache(maxsize=3)
def _parts(data_set: str, data: Path) -> tuple[Batch, Batch, Batch, Batch]:
    """All rows of the four splits; smaller train splits are views of these."""
    (train_images, train_labels), (test_images, test_labels) = read_images(data_set, data)
    kept = fresh_rows(train_images, known=test_images)
    rows = len(kept)
    outer, inner = max(1, rows // 12), max(1, rows // 24)
    if rows <= outer + inner:
        raise ValueError(
            f"the training files of {data_set} in {data} must hold at least 3 images that differ "
            f"from each other and from those of the test files, but hold {rows}"
        )
    images = torch.from_numpy(train_images[kept]).float()
    test = torch.from_numpy(test_images.copy()).float()
    labels = torch.from_numpy(train_labels[kept])
    sizes = (rows - outer - inner, inner, outer)
    spread, mean = torch.std_mean(images[: sizes[0]], dim=(0, 2, 3), correction=0, keepdim=True)
    for tensor in (images, test):
        tensor.sub_(mean[0]).div_(spread[0].clamp(min=1e-6))
    train, inner_valid, outer_valid = zip(images.split(sizes), labels.split(sizes), strict=True)
    return train, inner_valid, outer_valid, (test, torch.from_numpy(test_labels))


def fresh_rows(images: Bytes, *, known: Bytes) -> list[int]:
    """Numbers of the images that are neither among `known` nor equal to one before them."""

    def digest(image: Bytes) -> bytes:
        return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()

    seen = {digest(image) for image in known}
    first: dict[bytes, int] = {}
    for i, image in enumerate(images):
        first.setdefault(digest(image), i)
    return [i for key, i in first.items() if key not in seen]
