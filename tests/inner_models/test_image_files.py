"""Image files of the user's: found where they lie, refused if damaged, and trained on."""

import gzip
import re

import numpy as np
import pytest
import torch
from image_files import CIFAR_NAMES, IDX_NAMES, idx_bytes, write_all, write_cifar, write_mnist

from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.compare_config import families_in, named_task
from pacesetter.inner_models import registry
from pacesetter.inner_models.families.real.image_files import (
    DATA_VARIABLE,
    data_sets_in,
    file_image_splits,
    fresh_rows,
    read_images,
)
from pacesetter.inner_models.task import SPLITS


@pytest.fixture
def data(tmp_path):
    """A folder with all three data sets."""
    write_all(tmp_path)
    return tmp_path


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("joint", [".idx", "-idx"])
def test_every_spelling_gives_the_bytes_that_were_written(tmp_path, joint, end):
    written = write_mnist(tmp_path / "mnist", spell=lambda n: n.replace("-idx", joint) + end)
    train, test = read_images("mnist", tmp_path)
    for found, expected in zip((*train, *test), written, strict=True):
        assert (found.squeeze(1) if found.ndim > 1 else found).tolist() == expected.tolist()
    assert train[0].shape == (60, 1, 28, 28)
    assert train[1].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "folder", "given"),
    [
        ("mnist", "mnist", (".", "mnist")),
        ("mnist", "MNIST/raw", (".", "MNIST", "MNIST/raw")),
        ("fashion-mnist", "fashion-mnist", (".",)),
        ("fashion-mnist", "FashionMNIST/raw", (".", "FashionMNIST")),
        ("cifar10", ".", (".",)),
        ("cifar10", "cifar-10-batches-bin", (".", "cifar-10-batches-bin")),
        ("cifar10", "cifar10/cifar-10-batches-bin", (".",)),
    ],
)
def test_files_are_found_in_the_usual_places(tmp_path, name, folder, given):
    (write_cifar if name == "cifar10" else write_mnist)(tmp_path / folder)
    for start in given:
        assert data_sets_in(tmp_path / start) == (name,)
        train, test = read_images(name, tmp_path / start)
        assert (len(train[1]), len(test[1])) == (60, 12 if name == "cifar10" else 20)


def test_cifar_has_the_bytes_that_were_written(tmp_path):
    parts = write_cifar(tmp_path)
    train, test = read_images("cifar10", tmp_path)
    for i in range(2):
        assert (train[i] == np.concatenate([part[i] for part in parts[:5]])).all()
        assert (test[i] == parts[5][i]).all()


def test_a_complete_folder_is_preferred_to_one_that_lacks_files(tmp_path):
    write_mnist(tmp_path / "mnist", seed=1)
    (tmp_path / "mnist" / IDX_NAMES[3]).unlink()
    images = write_mnist(tmp_path / "MNIST/raw", seed=2)[0]
    assert (read_images("mnist", tmp_path)[0][0][:, 0] == images).all()


# -- refusing -------------------------------------------------------------------------------------


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
    assert f"they go into {tmp_path / 'cifar-10-batches-bin'}" in said
    assert "the binary version, from cifar-10-binary.tar.gz" in said


def test_files_that_could_be_either_data_set_are_refused(tmp_path):
    write_mnist(tmp_path / "downloads")
    write_mnist(tmp_path / "MNIST")
    for name, folder in (("mnist", "downloads"), ("fashion-mnist", "downloads")):
        said = message(FileNotFoundError, name, tmp_path / folder)
        assert f"they go into {tmp_path / folder / name}" in said
    message(FileNotFoundError, "fashion-mnist", tmp_path / "MNIST")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (IDX_NAMES[0], lambda raw: b"\0\0\x08\x01" + raw[4:], "0x00000801; expected 0x00000803"),
        (IDX_NAMES[0], lambda raw: b"", "magic number 0x00000000"),
        (IDX_NAMES[0], lambda raw: raw[:9], r"shape \(28, 28\), but has"),
        (IDX_NAMES[3], lambda raw: raw + b"x", "must have 28 bytes for the 20 rows"),
        (
            IDX_NAMES[0],
            lambda raw: idx_bytes(np.zeros((60, 32, 32), np.uint8)),
            r"rows of the shape \(28, 28\), but has \[60, 32, 32\]",
        ),
        (IDX_NAMES[0], lambda raw: idx_bytes(np.zeros((0, 28, 28), np.uint8)), "one or more rows"),
        (
            IDX_NAMES[1],
            lambda raw: raw[:10] + b"\x0b\x0a" + raw[12:],
            "labels must lie between 0 and 9, but row 2 has 11",
        ),
        (
            IDX_NAMES[1],
            lambda raw: idx_bytes(np.zeros(59, np.uint8)),
            "must belong together, but have 60 images and 59 labels",
        ),
        (IDX_NAMES[0], lambda raw: gzip.compress(raw)[:200], "damaged gzip file of 200 bytes"),
        (CIFAR_NAMES[1], lambda raw: raw[:-1], f"3073 bytes for each row, .* has {12 * 3073 - 1}"),
        (CIFAR_NAMES[1], lambda raw: b"", "but has 0"),
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


def test_unknown_data_sets_are_refused(tmp_path):
    assert "did you mean 'mnist'" in message(ValueError, "minst", tmp_path)


# -- the families ---------------------------------------------------------------------------------


def group(name, data, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return registry.make_family(name, data=data).sample_group(2, generator)


@pytest.mark.parametrize(("flat", "shape"), [(True, (784,)), (False, (1, 28, 28))])
def test_splits_are_those_of_the_files_in_order(tmp_path, flat, shape):
    images, labels, test_images, test_labels = write_mnist(tmp_path / "mnist", train=120)
    splits = file_image_splits("mnist", tmp_path, num_train=50, flat=flat)
    assert [splits.num_rows(name) for name in SPLITS] == [50, 5, 10, 20]
    # 105 rows to learn from, then 5 and 10; scaled by the 105 even where 50 are asked for.
    pixels = images.astype(np.float64)
    scaled = (pixels - pixels[:105].mean()) / pixels[:105].std()
    rows = {"train": slice(50), "inner_valid": slice(105, 110), "outer_valid": slice(110, 120)}
    for name, part in rows.items():
        found, classes = getattr(splits, name)
        assert found.shape[1:] == shape
        assert np.allclose(found.reshape(-1, 28, 28), scaled[part], atol=1e-5)
        assert (classes.numpy() == labels[part]).all()
    scaled = (test_images - pixels[:105].mean()) / pixels[:105].std()
    assert np.allclose(splits.test[0].reshape(-1, 28, 28), scaled, atol=1e-5)
    assert (splits.test[1].numpy() == test_labels).all()
    with pytest.raises(ValueError, match="between 1 and 105, but got 106"):
        file_image_splits("mnist", tmp_path, num_train=106, flat=flat)


def test_channels_are_scaled_one_by_one(tmp_path):
    parts = write_cifar(tmp_path)
    pixels = np.concatenate([images for images, _ in parts[:5]]).astype(np.float64)
    train = 60 - 60 // 12 - 60 // 24
    splits = file_image_splits("cifar10", tmp_path, num_train=train, flat=False)
    axes = (0, 2, 3)
    mean = pixels[:train].mean(axes, keepdims=True)
    spread = pixels[:train].std(axes, keepdims=True)
    assert np.allclose(splits.outer_valid[0], ((pixels - mean) / spread)[-5:], atol=1e-5)


def test_images_that_recur_are_in_one_split_only(tmp_path):
    images, labels, test_images, test_labels = write_mnist(tmp_path / "mnist")
    images[3] = test_images[5]
    images[59] = images[0]
    (tmp_path / "mnist" / IDX_NAMES[0]).write_bytes(idx_bytes(images))
    splits = file_image_splits("mnist", tmp_path, num_train=52, flat=True)
    rows = [getattr(splits, name)[0] for name in SPLITS]
    assert sum(map(len, rows)) == 58 + 20
    assert len(torch.unique(torch.cat(rows), dim=0)) == 78
    assert splits.test[1].tolist() == test_labels.tolist()
    kept = np.delete(labels, [3, 59]).tolist()
    assert [label for name in SPLITS[:3] for label in getattr(splits, name)[1].tolist()] == kept
    assert fresh_rows(images, known=test_images) == [i for i in range(60) if i not in (3, 59)]


def test_train_splits_range_from_2000_rows_to_all(tmp_path):
    write_mnist(tmp_path / "mnist", train=6000)
    family = registry.make_family("mnist-mlp", data=tmp_path)
    generator = torch.Generator().manual_seed(0)
    rows = [family.sample_shape(generator).job.num_train for _ in range(300)]
    assert 2000 <= min(rows) < 2300 < 4700 < max(rows) <= 6000 - 500 - 250


def test_few_rows_are_enough_and_too_few_are_refused(tmp_path):
    for train in (3, 4, 13):
        write_mnist(tmp_path / str(train) / "mnist", train=train, test=1)
        task = group("mnist-mlp", tmp_path / str(train))[0]
        assert task.batch_size <= task.splits.num_rows("train") <= train - 2
        assert sum(task.splits.num_rows(name) for name in SPLITS) == train + 1
    write_mnist(tmp_path / "mnist", train=2)
    with pytest.raises(ValueError, match=r"at least 3 images that differ .* but hold 2"):
        group("mnist-mlp", tmp_path)


# -- the folder, from Python and from the command line --------------------------------------------


def test_the_folder_is_given_or_named_by_the_environment(data, monkeypatch, tmp_path):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"pass --data DIR .* or set PACESETTER_DATA"):
        registry.make_family("mnist-mlp")
    assert named_task("mnist-mlp/0", str(data)).splits.num_rows("test") == 20
    assert named_task("digits-mlp/0", data) is named_task("digits-mlp/0")
    monkeypatch.setenv(DATA_VARIABLE, str(data))
    assert registry.make_family("mnist-mlp").sample(torch.Generator()).name == "mnist-mlp"
    assert named_task("mnist-mlp/3").name == "mnist-mlp/3"
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "no"))
    with pytest.raises(FileNotFoundError, match="no, which PACESETTER_DATA names, does not exist"):
        registry.make_family("mnist-mlp")
    # What is given counts.
    assert registry.make_family("mnist-mlp", data=data).name == "mnist-mlp"
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(FileNotFoundError, match="file is not a folder"):
        registry.make_family("mnist-mlp", data=file)
    with pytest.raises(ValueError, match="did you mean 'mnist-mlp'"):
        registry.make_family("mnist-mpl", data=data)


def test_families_in_a_folder(data, tmp_path):
    assert families_in(data) == registry.FROM_FILES
    assert families_in(None) == ()
    write_mnist(tmp_path / "one" / "mnist")
    assert families_in(tmp_path / "one") == ("mnist-mlp", "mnist-convnet")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError) as failure:
        families_in(empty)
    said = str(failure.value)
    for name, folder in (
        ("mnist", "mnist"),
        ("fashion-mnist", "fashion-mnist"),
        ("cifar10", "cifar-10-batches-bin"),
    ):
        assert re.search(rf"^{name} lacks .* they go into {empty / folder}\.", said, re.MULTILINE)


def test_compare_says_what_is_missing_before_any_work(data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    out = tmp_path / "out"

    def failure(*argv):
        assert cli.main(["compare", "--out", str(out), *map(str, argv)]) == 2
        return capsys.readouterr().err

    task = ("--tasks", "digits-mlp/0", "cifar10-convnet/0")
    assert "pass --data DIR" in failure(*task)
    assert "does not exist" in failure(*task, "--data", tmp_path / "no")
    (data / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    expected = f"cifar10 lacks test_batch.bin: they go into {data / 'cifar-10-batches-bin'}"
    assert expected in failure(*task, "--data", data)
    # Without --tasks, all that the folder has are compared on: this one is not whole.
    assert expected in failure("--data", data)
    assert not out.exists()


def test_compare_hands_the_folder_on(data, tmp_path, capsys, monkeypatch):
    asked = []

    def compare(config, out, **kwargs):
        asked.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("pacesetter.experiments.comparison.compare", compare)
    monkeypatch.chdir(data.parent)
    for argv in (["--quick"], ["--tasks", "mnist-mlp/1"]):
        given = ["compare", "--out", str(tmp_path / "out"), "--data", data.name, *argv]
        assert cli.main(given) == 2
    assert cli.main(["compare", "--out", str(tmp_path / "out")]) == 2
    assert "enough" in capsys.readouterr().err
    everything, one, nothing = asked
    assert {name.partition("/")[0] for name in everything.tasks} == {
        *registry.VALIDATION,
        *registry.FROM_FILES,
    }
    assert one.tasks == ("mnist-mlp/1",)
    assert everything.data == one.data == str(data.resolve())
    assert nothing.data is None
    assert not {name.partition("/")[0] for name in nothing.tasks} & set(registry.FROM_FILES)
