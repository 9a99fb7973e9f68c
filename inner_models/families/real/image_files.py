"""Reads MNIST, Fashion-MNIST and CIFAR-10 from the standard files, which the user brings.

Nothing is downloaded and nothing is unpickled; a file that is missing, damaged or of another kind
is refused with what was expected, what came, and how to mend it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pacesetter.inner_models.families.real.image_sources import SOURCES, find_files
from pacesetter.inner_models.lookup import check_name

Bytes = NDArray[np.uint8]
CLASSES = 10
"""All three data sets have ten, numbered from 0."""

_IDX_MAGIC = {"images": 0x803, "labels": 0x801}  # 08: unsigned bytes; 03, 01: dimensions
_CIFAR_ROW = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes
_GZIP, _PICKLE = b"\x1f\x8b", b"\x80"


@dataclass(frozen=True)
class ImageData:
    """A data set as its files have it.

    Attributes:
        train_images: unsigned bytes (rows, channels, height, width).
        train_labels: int64 (rows,), from 0 to 9.
        test_images: the same of the test files.
        test_labels: the same of the test files.
    """

    train_images: Bytes
    train_labels: NDArray[np.int64]
    test_images: Bytes
    test_labels: NDArray[np.int64]


def read_images(name: str, data: Path) -> ImageData:
    """Reads a data set.

    Args:
        name: ``"mnist"``, ``"fashion-mnist"`` or ``"cifar10"``.
        data: the folder that holds its files, directly or in one of the usual subfolders
            (`SOURCES`). IDX files may be gzipped; CIFAR-10 is the binary version.

    Raises:
        FileNotFoundError: files are missing; the message lists them and says where they go.
        ValueError: the name is unknown, or a file is damaged or of another kind.
    """
    check_name(name, SOURCES, kind="image data set")
    files = find_files(name, data)
    if name == "cifar10":
        *train, test = [_read_cifar(path) for path in files]
        images, labels = zip(*train, strict=True)
        if len({len(part) for part in labels}) > 1:  # as after a cut between two rows
            rows = ", ".join(
                f"{f.name} {len(part)}" for f, part in zip(files, labels, strict=False)
            )
            raise ValueError(
                f"the training files in {files[0].parent} must have the same number of rows, but "
                f"have {rows}; unpack or fetch them again"
            )
        return ImageData(np.concatenate(images), np.concatenate(labels), *test)
    train_images, train_labels, test_images, test_labels = files
    return ImageData(
        *_read_idx_pair(train_images, train_labels), *_read_idx_pair(test_images, test_labels)
    )


# -- IDX: http://yann.lecun.com/exdb/mnist --------------------------------------------------------


def _read_idx_pair(images: Path, labels: Path) -> tuple[Bytes, NDArray[np.int64]]:
    pixels, numbers = _read_idx(images, "images"), _read_idx(labels, "labels")
    if len(pixels) != len(numbers):
        raise ValueError(
            f"{images} and {labels} must belong together, but have {len(pixels)} images and "
            f"{len(numbers)} labels"
        )
    return pixels[:, None], _checked_labels(numbers, labels)


def _read_idx(path: Path, kind: str) -> Bytes:
    raw = _unzipped(path)
    magic = _IDX_MAGIC[kind]
    dims = magic & 0xFF
    start = 4 * (1 + dims)
    if len(raw) < start:
        raise ValueError(
            f"{path} is truncated: expected a header of {start} bytes, but got {len(raw)} in all; "
            "fetch the file again"
        )
    got, *shape = np.frombuffer(raw, ">u4", 1 + dims).tolist()
    if got != magic:
        raise ValueError(
            f"{path} has the magic number {got:#010x}; expected {magic:#010x}, that of an IDX file "
            f"of {kind}. Is it another file under this name?"
        )
    if shape[1:] not in ([], [28, 28]) or not shape[0]:
        size = " x ".join(map(str, shape))
        raise ValueError(f"{path} holds {size} numbers; expected one or more rows of 28 x 28")
    if len(raw) - start != prod(shape):
        what = "truncated" if len(raw) - start < prod(shape) else "too long"
        raise ValueError(
            f"{path} is {what}: expected {start + prod(shape)} bytes for the {shape[0]} rows that "
            f"its header names, but got {len(raw)}; fetch the file again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _unzipped(path: Path) -> bytes:
    """The file's bytes; whether they are gzipped is read off them, not off the name."""
    raw = path.read_bytes()
    if raw[:2] != _GZIP:
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged gzip file of {len(raw)} bytes ({error}); fetch the file again"
        ) from error


def _checked_labels(labels: Bytes, path: Path) -> NDArray[np.int64]:
    wrong: Sequence[int] = np.flatnonzero(labels >= CLASSES).tolist()
    if wrong:
        raise ValueError(
            f"{path}: labels must lie between 0 and {CLASSES - 1}, but row {wrong[0]} has "
            f"{labels[wrong[0]]} ({len(wrong)} such rows of {len(labels)})"
        )
    return labels.astype(np.int64)


# -- CIFAR-10, binary version: https://www.cs.toronto.edu/~kriz/cifar.html ------------------------


def _read_cifar(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    raw = path.read_bytes()
    if raw[:1] == _PICKLE:  # as a label, that byte would be out of range anyway
        raise ValueError(
            f"{path} begins with the byte 0x80, as a pickle does, where a label from 0 to 9 is "
            "expected; pickles are never read: take the binary version of CIFAR-10"
        )
    rows, rest = divmod(len(raw), _CIFAR_ROW)
    if rest or not rows:
        raise ValueError(
            f"{path} is truncated or too long: expected {_CIFAR_ROW} bytes for each row, "
            f"{10_000 * _CIFAR_ROW} in the original, but got {len(raw)}, which is {rows} rows and "
            f"{rest} bytes; fetch the file again"
        )
    table = np.frombuffer(raw, np.uint8).reshape(rows, _CIFAR_ROW)
    return table[:, 1:].reshape(rows, 3, 32, 32), _checked_labels(table[:, 0], path)
