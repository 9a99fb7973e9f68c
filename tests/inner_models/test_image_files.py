"""Image files of the user's: found where they lie, refused if damaged, and trained on."""

import gzip
import re

import numpy as np
import pytest
import torch
from image_files import CIFAR_NAMES, IDX_NAMES, idx_bytes, write_all, write_cifar, write_mnist

from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.compare_config import named_task
from pacesetter.inner_models import registry
from pacesetter.inner_models.families.real.image_files import (
    DATA_VARIABLE,
    data_sets_in,
    file_image_splits,
    read_images,
)
from pacesetter.inner_models.task import SPLITS


@pytest.fixture
def data(tmp_path):
    """A folder with all three data sets."""
    write_all(tmp_path)
    return tmp_path


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [".idx", ".idx.gz", "-idx", "-idx.gz"])
def test_every_spelling_gives_the_bytes_that_were_written(tmp_path, spelling):
    joint, end = spelling[:4], spelling[4:]
    written = write_mnist(tmp_path / "mnist", spell=lambda n: n.replace("-idx", joint) + end)
    train, test = read_images("mnist", tmp_path)
    assert train[0].shape == (60, 1, 28, 28)
    for found, expected in zip((*train, *test), written, strict=True):
        assert (found.reshape(expected.shape) == expected).all()


@pytest.mark.parametrize(
    ("name", "folder", "given"),
    [
        ("mnist", "mnist", (".", "mnist")),
        ("mnist", "MNIST/raw", (".", "MNIST", "MNIST/raw")),
        ("fashion-mnist", "FashionMNIST/raw", (".", "FashionMNIST")),
        ("cifar10", ".", (".",)),
        ("cifar10", "cifar10/cifar-10-batches-bin", (".",)),
    ],
)
def test_files_are_found_in_the_usual_places(tmp_path, name, folder, given):
    (write_cifar if name == "cifar10" else write_mnist)(tmp_path / folder)
    for start in given:
        assert data_sets_in(tmp_path / start) == (name,)
        assert len(read_images(name, tmp_path / start)[0][1]) == 60


# -- refusing -------------------------------------------------------------------------------------


def zeros(*shape):
    return idx_bytes(np.zeros(shape, np.uint8))


def message(kind, name, data):
    with pytest.raises(kind) as failure:
        read_images(name, data)
    return str(failure.value)


def test_missing_files_are_listed_with_their_place(tmp_path):
    said = message(FileNotFoundError, "mnist", tmp_path)
    assert all(name in said for name in IDX_NAMES)
    assert f"they go into {tmp_path / 'mnist'}" in said
    assert str(tmp_path / "MNIST/raw") in said
    write_mnist(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw" / IDX_NAMES[1]).unlink()
    said = message(FileNotFoundError, "mnist", tmp_path)
    assert f"mnist lacks {IDX_NAMES[1]}: they go into {tmp_path / 'MNIST/raw'}." in said
    said = message(FileNotFoundError, "cifar10", tmp_path)
    assert ", ".join(CIFAR_NAMES) in said
    assert "the binary version, from cifar-10-binary.tar.gz" in said
    assert "did you mean 'mnist'" in message(ValueError, "minst", tmp_path)


def test_files_that_could_be_either_data_set_are_refused(tmp_path):
    write_mnist(tmp_path)
    for name in ("mnist", "fashion-mnist"):
        said = message(FileNotFoundError, name, tmp_path)
        assert f"they go into {tmp_path / name}" in said


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (IDX_NAMES[0], lambda raw: b"\0\0\x08\x01" + raw[4:], "0x00000801; expected 0x00000803"),
        (IDX_NAMES[0], lambda raw: b"", "magic number 0x00000000"),
        (IDX_NAMES[0], lambda raw: raw[:9], r"shape \(28, 28\), but has"),
        (IDX_NAMES[3], lambda raw: raw + b"x", "must have 28 bytes for the 20 rows"),
        (IDX_NAMES[0], lambda raw: zeros(60, 32, 32), r"\(28, 28\), but has \[60, 32, 32\]"),
        (IDX_NAMES[0], lambda raw: zeros(0, 28, 28), "one or more rows"),
        (IDX_NAMES[1], lambda raw: raw[:10] + b"\x0b\x0a" + raw[12:], "0 and 9, but row 2 has 11"),
        (IDX_NAMES[1], lambda raw: zeros(59), "belong together, but have 60 images and 59 labels"),
        (IDX_NAMES[0], lambda raw: gzip.compress(raw)[:200], "damaged gzip file of 200 bytes"),
        (CIFAR_NAMES[1], lambda raw: raw[:-1], f"3073 bytes for each row, .* has {12 * 3073 - 1}"),
        (CIFAR_NAMES[1], lambda raw: b"\x80\x02}q\x01.", "fetch the binary version"),
        (CIFAR_NAMES[1], lambda raw: b"\x0a" + raw[1:], "row 0 has 10"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, change, expected):
    write_all(tmp_path)
    (path,) = tmp_path.glob(f"*/{name}") if name in CIFAR_NAMES else [tmp_path / "mnist" / name]
    path.write_bytes(change(path.read_bytes()))
    said = message(ValueError, "cifar10" if name in CIFAR_NAMES else "mnist", tmp_path)
    assert re.search(expected, said), said
    assert str(path) in said


# -- the families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flat", "shape"), [(True, (784,)), (False, (1, 28, 28))])
def test_splits_are_those_of_the_files_in_order(tmp_path, flat, shape):
    images, labels, test_images, test_labels = write_mnist(tmp_path / "mnist", train=120)
    splits = file_image_splits("mnist", tmp_path, num_train=50, flat=flat)
    # 105 rows to learn from, then 5 and 10; scaled by the 105 even where 50 are asked for.
    known = images[:105].astype(np.float64)
    for name, pixels, classes in (
        ("train", images[:50], labels[:50]),
        ("inner_valid", images[105:110], labels[105:110]),
        ("outer_valid", images[110:], labels[110:]),
        ("test", test_images, test_labels),
    ):
        found, found_classes = getattr(splits, name)
        assert found.shape[1:] == shape
        scaled = (pixels - known.mean()) / known.std()
        assert np.allclose(found.reshape(-1, 28, 28), scaled, atol=1e-5)
        assert (found_classes.numpy() == classes).all()
    with pytest.raises(ValueError, match="between 1 and 105, but got 106"):
        file_image_splits("mnist", tmp_path, num_train=106, flat=flat)


def test_cifar_has_the_bytes_that_were_written_and_channels_are_scaled_one_by_one(tmp_path):
    parts = write_cifar(tmp_path)
    images, labels = (np.concatenate([part[i] for part in parts[:5]]) for i in range(2))
    (found, found_labels), test = read_images("cifar10", tmp_path)
    assert (found == images).all()
    assert (found_labels == labels).all()
    assert all((test[i] == parts[5][i]).all() for i in range(2))
    train = 60 - 60 // 12 - 60 // 24
    splits = file_image_splits("cifar10", tmp_path, num_train=train, flat=False)
    pixels = images[:train].astype(np.float64)
    mean, spread = (f((0, 2, 3), keepdims=True) for f in (pixels.mean, pixels.std))
    assert np.allclose(splits.outer_valid[0], ((images - mean) / spread)[-5:], atol=1e-5)


def test_images_that_recur_are_in_one_split_only(tmp_path):
    images, labels, test_images, test_labels = write_mnist(tmp_path / "mnist")
    images[3] = test_images[5]
    images[59] = images[0]
    (tmp_path / "mnist" / IDX_NAMES[0]).write_bytes(idx_bytes(images))
    splits = file_image_splits("mnist", tmp_path, num_train=52, flat=True)
    rows, classes = (torch.cat(c) for c in zip(*(getattr(splits, s) for s in SPLITS), strict=True))
    assert len(rows) == len(torch.unique(rows, dim=0)) == 58 + 20
    assert classes.tolist() == [*np.delete(labels, [3, 59]), *test_labels]


@pytest.mark.parametrize("train", [2, 3, 4, 13])
def test_few_rows_are_enough_and_too_few_are_refused(tmp_path, train):
    write_mnist(tmp_path / "mnist", train=train, test=1)
    family, generator = registry.make_family("mnist-mlp", data=tmp_path), torch.Generator()
    if train == 2:
        with pytest.raises(ValueError, match=r"at least 3 images that differ .* but hold 2"):
            family.sample(generator)
        return
    task = family.sample(generator)
    assert task.batch_size <= task.splits.num_rows("train") <= train - 2
    assert sum(task.splits.num_rows(name) for name in SPLITS) == train + 1


# -- the folder, from Python and from the command line --------------------------------------------


def test_the_folder_is_given_or_named_by_the_environment(data, monkeypatch):
    make = registry.make_family
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"pass --data DIR .* or set PACESETTER_DATA"):
        make("mnist-mlp")
    assert named_task("mnist-mlp/0", str(data)).splits.num_rows("test") == 20
    assert named_task("digits-mlp/0", data) is named_task("digits-mlp/0")
    monkeypatch.setenv(DATA_VARIABLE, str(data))
    assert named_task("mnist-mlp/3").name == "mnist-mlp/3"
    monkeypatch.setenv(DATA_VARIABLE, str(data / "no"))
    with pytest.raises(FileNotFoundError, match="no, which PACESETTER_DATA names, does not exist"):
        make("mnist-mlp")
    assert make("mnist-mlp", data=data).name == "mnist-mlp"  # what is given counts
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        make("mnist-mlp", data=data / "cifar-10-batches-bin" / "test_batch.bin")
    with pytest.raises(ValueError, match="did you mean 'mnist-mlp'"):
        make("mnist-mpl", data=data)


def test_compare_says_what_is_missing_before_any_work(data, tmp_path, capsys):
    (data / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    for tasks in (["--tasks", "digits-mlp/0", "cifar10-convnet/0"], []):
        argv = ["compare", "--out", str(tmp_path / "out"), "--data", str(data), *tasks]
        assert cli.main(argv) == 2
        assert "cifar10 lacks test_batch.bin: they go into" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_compare_hands_the_folder_on(data, tmp_path, monkeypatch):
    asked = []

    def compare(config, out, **kwargs):
        asked.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("pacesetter.experiments.comparison.compare", compare)
    monkeypatch.chdir(data.parent)
    given = ["--data", data.name]
    for argv in ([*given, "--quick"], [*given, "--tasks", "mnist-mlp/1"], []):
        assert cli.main(["compare", "--out", str(tmp_path / "out"), *argv]) == 2
    everything, one, nothing = asked
    names = {name.partition("/")[0] for name in everything.tasks}
    assert names == {*registry.VALIDATION, *registry.FROM_FILES}
    assert one.tasks == ("mnist-mlp/1",)
    assert everything.data == one.data == str(data.resolve())
    assert nothing.data is None
    assert not {name.partition("/")[0] for name in nothing.tasks} & set(registry.FROM_FILES)
