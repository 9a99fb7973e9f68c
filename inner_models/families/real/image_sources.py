"""Where the files of MNIST, Fashion-MNIST and CIFAR-10 lie in a folder that the user names.

The folders are those that the usual tools unpack to; what is missing is named, with its place.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DATA_VARIABLE = "PACESETTER_DATA"
"""Environment variable that names the folder where the caller does not."""

_IDX_STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR_TEST = "test_batch.bin"


@dataclass(frozen=True)
class ImageSource:
    """Where a data set's files may lie, and what they are called.

    Attributes:
        files: accepted spellings of each file.
        folders: subfolders that are looked in, the recommended one first.
        own_names: the folder itself is looked in if it has one of these names, or is a folder
            ``raw`` within one that has; None: whatever its name.
    """

    files: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    own_names: tuple[str, ...] | None = None

    def present(self, folder: Path) -> list[Path | None]:
        """For each file the path of the spelling that `folder` holds, or None."""
        return [
            next((folder / name for name in names if (folder / name).is_file()), None)
            for names in self.files
        ]

    def places(self, data: Path) -> list[Path]:
        """The folders that are looked in."""
        places = [data / name for name in self.folders]
        whole = data.resolve()
        name = whole.parent.name if whole.name == "raw" else whole.name
        if self.own_names is None or name.lower() in self.own_names:
            places[:0] = [data, data / "raw"] if self.own_names else [data]
        return places


_IDX_FILES = tuple(
    tuple(
        f"{stem}{joint}idx{3 if 'images' in stem else 1}-ubyte{end}"
        for end in ("", ".gz")
        for joint in ("-", ".")
    )
    for stem in _IDX_STEMS
)
SOURCES: dict[str, ImageSource] = {
    "mnist": ImageSource(_IDX_FILES, ("mnist", "MNIST/raw", "MNIST"), ("mnist",)),
    "fashion-mnist": ImageSource(
        _IDX_FILES,
        ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
        ("fashion-mnist", "fashion_mnist", "fashionmnist"),
    ),
    "cifar10": ImageSource(
        tuple((name,) for name in (*_CIFAR_TRAIN, _CIFAR_TEST)),
        ("cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"),
    ),
}
"""The data sets by name.

MNIST and Fashion-MNIST have the same file names: where such files lie directly in the user's
folder, the folder's own name must say which they are.
"""


def data_folder(data: str | Path | None = None) -> Path:
    """The folder that holds the data sets' files: `data`, or what ``PACESETTER_DATA`` names.

    Raises:
        FileNotFoundError: it does not exist or is no folder.
        ValueError: neither is given.
    """
    origin = ""
    data = None if data is None else Path(data)
    if data is None:
        found = os.environ.get(DATA_VARIABLE)
        if not found:
            raise ValueError(
                "this needs a folder with the files of MNIST, Fashion-MNIST or CIFAR-10: pass "
                f"--data DIR (data=Path(...) in Python) or set {DATA_VARIABLE}"
            )
        data, origin = Path(found), f", which {DATA_VARIABLE} names,"
    if not data.is_dir():
        what = "is not a folder" if data.exists() else "does not exist"
        raise FileNotFoundError(f"the folder of image files {data}{origin} {what}")
    return data


def data_sets_in(data: Path) -> tuple[str, ...]:
    """Names of the data sets of which `data` holds at least one file."""
    return tuple(
        name
        for name, source in SOURCES.items()
        if any(path for place in source.places(data) for path in source.present(place))
    )


def find_files(name: str, data: Path) -> list[Path]:
    """The files of a data set, in the order of its `ImageSource`.

    Raises:
        FileNotFoundError: files are missing.
    """
    paths = list(filter(None, _fullest(name, data)[1]))
    if len(paths) < len(SOURCES[name].files):
        raise FileNotFoundError(what_is_missing(name, data))
    return paths


def what_is_missing(name: str, data: Path) -> str:
    """Which files of a data set are missing, where they go, and where they were looked for."""
    source = SOURCES[name]
    place, found = _fullest(name, data)
    goal = place if any(found) else data / source.folders[0]
    pairs = zip(source.files, found, strict=True)
    missing = ", ".join(names[0] for names, path in pairs if path is None)
    looked = ", ".join(str(place) for place in source.places(data))
    gz = "" if name == "cifar10" else " (as they are or with .gz)"
    hint = _cifar_hint(data, goal) if name == "cifar10" else _idx_hint(source, data)
    return f"{name} lacks {missing}{gz}: they go into {goal}. Looked in: {looked}{hint}"


def _fullest(name: str, data: Path) -> tuple[Path, list[Path | None]]:
    """The place with the most files of a data set (the first of several), and its files."""
    source = SOURCES[name]
    found = {place: source.present(place) for place in source.places(data)}
    return min(found.items(), key=lambda item: item[1].count(None))


def _idx_hint(source: ImageSource, data: Path) -> str:
    if any(source.present(data)) and data not in source.places(data):
        return (
            f". Files of these names lie directly in {data}, but MNIST and Fashion-MNIST have the "
            f"same names: move them to {data / 'mnist'} or {data / 'fashion-mnist'}"
        )
    return ""


def _cifar_hint(data: Path, goal: Path) -> str:
    places = (data, goal, data / "cifar-10-batches-py", data / "cifar10" / "cifar-10-batches-py")
    python = [place for place in places if (place / "data_batch_1").is_file()]
    if python:
        return (
            f". {python[0]} holds the Python version, whose pickles are never read: take the "
            "binary version, cifar-10-binary.tar.gz"
        )
    if (data / "cifar-10-binary.tar.gz").is_file():
        return f". Unpack it first: tar -xzf cifar-10-binary.tar.gz, in {data}"
    return ""
