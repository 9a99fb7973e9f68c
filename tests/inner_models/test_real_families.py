"""Families on real data: what the splits hold, and that models and losses are what they say."""

import sys
from collections import Counter

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn

from pacesetter.inner_models import registry
from pacesetter.inner_models.families.real import digits, photos, tabular
from pacesetter.inner_models.task import SPLITS

DIGITS = ("digits-convnet", "digits-vit", "digits-quantised", "digits-distilled")


def batches(splits):
    return [getattr(splits, name) for name in SPLITS]


@pytest.mark.parametrize("name", tabular.TABLES)
def test_a_table_is_split_by_rows_with_their_own_targets(name):
    table = tabular.TABLES[name]
    raw = getattr(sklearn.datasets, table.loader)()
    splits = tabular.table_splits(name)
    assert [splits.num_rows(s) for s in SPLITS] == list(table.sizes)
    inputs, targets = (np.concatenate(c) for c in zip(*batches(splits), strict=True))
    train = inputs[: table.sizes[0]].astype(np.float64)
    assert np.allclose(train.mean(0), 0, atol=1e-5)
    assert np.allclose(train.std(0), 1, atol=1e-5)
    # Any one affine map per column leads back to the table: take the one that keeps its extremes.
    low, high = inputs.min(0), inputs.max(0)
    back = (inputs - low) / (high - low)
    unit = (raw.data - raw.data.min(0)) / (raw.data.max(0) - raw.data.min(0))
    distance = np.abs(back[:, None] - unit[None]).max(2)
    row = distance.argmin(1)
    assert distance[np.arange(len(row)), row].max() < 1e-5
    assert len(set(row)) == len(row) == len(np.unique(raw.data, axis=0))
    if table.classification:
        assert (targets == raw.target[row]).all()
        assert len(np.unique(targets)) == table.outputs
    else:
        assert np.corrcoef(targets[:, 0], raw.target[row])[0, 1] == pytest.approx(1, abs=1e-6)
        assert targets[: table.sizes[0]].std() == pytest.approx(1, abs=1e-5)


def squares(images, side):
    """How often each square of a grid occurs in grey images."""
    return Counter(
        image[top : top + side, left : left + side].tobytes()
        for image in images
        for top in range(0, image.shape[0] - side + 1, side)
        for left in range(0, image.shape[1] - side + 1, side)
    )


@pytest.mark.parametrize("side", [3, 4, 32])
def test_every_tile_of_the_photographs_is_in_one_split_with_its_patches(side):
    whole = [sklearn.datasets.load_sample_image(name).mean(2) for name in photos.PHOTOS]
    tiles = photos.photo_patches(32)
    assert [len(part) for part in tiles] == [312, 52, 78, 78]
    assert squares(torch.cat(tiles).numpy(), 32) == squares(
        [np.rint(image).astype(np.int64) for image in whole], 32
    )
    for patches, part in zip(photos.photo_patches(side), tiles, strict=True):
        assert squares(patches.numpy(), side) == squares(part.numpy(), side)


def test_dequantised_patches_stay_within_a_level():
    generator = torch.Generator().manual_seed(0)
    splits = photos.dequantised_splits(3, num_train=2000, generator=generator)
    mean, spread = photos.pixel_statistics(photos.photo_patches(3)[0])
    for (rows,), patches in zip(batches(splits), photos.photo_patches(3), strict=True):
        beyond = rows.double() * spread + mean - patches[: len(rows)].flatten(1)
        assert -1e-4 < float(beyond.min()) < 0.01 < 0.99 < float(beyond.max()) < 1 + 1e-4


@pytest.mark.parametrize("side", [3, 4])
def test_density_is_that_of_the_change_of_variables(side):
    torch.manual_seed(3)
    shape = photos.FlowShape(side=side, couplings=4, hidden=7, activation="tanh")
    flow = photos.Flow(shape).double()

    def noise_of(row):
        rows = row[None]
        for layer in flow.layers:
            rows = layer(rows)[0]
        return rows[0]

    rows = torch.randn(4, side**2, dtype=torch.float64)
    densities = flow(rows)
    for row, density in zip(rows, densities, strict=True):
        jacobian = torch.autograd.functional.jacobian(noise_of, row)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise_of(row)).sum()
        assert torch.allclose(density, normal + torch.linalg.slogdet(jacobian)[1], rtol=1e-10)
    loss = photos.negative_log_likelihood(flow, (rows,))
    assert torch.allclose(loss, -densities.mean())
    # A pair of coupling layers moves every number.
    source, moved = torch.arange(side**2), set()
    for layer in flow.layers[:2]:
        source = source[layer.order]
        moved |= set(source[layer.kept :].tolist())
    assert moved == set(range(side**2))


@pytest.mark.parametrize("name", DIGITS)
def test_digits_families_have_the_rows_of_digits_mlp(name):
    task = registry.make_family(name).sample(torch.Generator().manual_seed(0))
    rows = digits.digits_splits(task.splits.num_rows("train"))
    for ours, theirs in zip(batches(task.splits), batches(rows), strict=True):
        assert torch.equal(ours[0].flatten(1), theirs[0])
        assert "distilled" in name or torch.equal(ours[1], theirs[1])


def test_the_teacher_knows_the_digits_and_is_the_same_every_time():
    teacher = digits.digits_teacher()
    images, labels = digits.digits_splits().test
    assert float((teacher(images.double()).argmax(1) == labels).float().mean()) > 0.95
    digits.digits_teacher.cache_clear()
    torch.manual_seed(1)
    state, again = torch.get_rng_state(), digits.digits_teacher()
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, teacher.parameters(), again.parameters()))


def test_divergence_is_that_of_student_and_teacher_and_zero_at_the_optimum():
    teacher = digits.digits_teacher()
    task = registry.make_family("digits-distilled").sample(torch.Generator().manual_seed(0))
    temperature = float(task.build_model().temperature)
    assert task.optimum == 0
    assert 2 <= temperature <= 6
    for images, chances, entropies in batches(task.splits):
        expected = torch.softmax(teacher(images.flatten(1).double()) / temperature, 1)
        assert torch.allclose(chances.double(), expected, atol=1e-6)
        batch = (images.flatten(1).double(), expected, entropies.double())
        student = nn.Linear(64, 10, dtype=torch.float64)
        theirs = nn.functional.kl_div(
            student(batch[0]).log_softmax(1), expected, reduction="batchmean"
        )
        assert torch.allclose(digits.divergence(student, batch), theirs, atol=1e-6)
        # One that answers as the teacher does has nothing left to learn.
        perfect = digits.divergence(lambda x: teacher(x) / temperature, batch)
        assert abs(float(perfect)) < 1e-6


def test_what_photographs_need_is_named_where_it_is_missing(monkeypatch):
    with pytest.raises(ValueError, match="between 1 and 32 pixels, but got 33"):
        photos.photo_patches(33)
    with pytest.raises(ValueError, match="did you mean 'wine'"):
        tabular.table_splits("wines")
    monkeypatch.setitem(sys.modules, "PIL", None)
    photos.photo_patches.cache_clear()
    with pytest.raises(ImportError, match=r"PIL is not .* pip install 'pacesetter\[train\]'"):
        photos.photo_patches(5)
