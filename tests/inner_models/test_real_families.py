"""Families on real data: what the splits hold, and that models and losses are what they say."""

import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn

from pacesetter.inner_models import registry
from pacesetter.inner_models.families.real import digits, photos, tabular
from pacesetter.inner_models.task import SPLITS

DIGITS = ("digits-convnet", "digits-vit", "digits-quantised", "digits-distilled")


def shapes_of(name, count=80):
    generator = torch.Generator().manual_seed(0)
    family = registry.make_family(name)
    return [family.sample_shape(generator) for _ in range(count)]


def tasks_of(name, count=8):
    generator = torch.Generator().manual_seed(0)
    return [registry.make_family(name).sample(generator) for _ in range(count)]


def batches(splits):
    return [getattr(splits, name) for name in SPLITS]


# -- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tabular.TABLES)
def test_a_table_is_split_by_rows_with_their_own_targets(name):
    table = tabular.TABLES[name]
    raw = getattr(sklearn.datasets, table.loader)()
    splits = tabular.table_splits(name)
    assert [splits.num_rows(s) for s in SPLITS] == list(table.sizes)
    assert sum(table.sizes) == len(np.unique(raw.data, axis=0))
    inputs, targets = (np.concatenate(c) for c in zip(*batches(splits), strict=True))
    assert inputs.shape[1] == table.inputs
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
    assert len(set(row)) == len(row)
    if table.classification:
        assert (targets == raw.target[row]).all()
        assert len(np.unique(targets)) == table.outputs
    else:
        assert targets.shape == (len(row), 1)
        assert np.corrcoef(targets[:, 0], raw.target[row])[0, 1] == pytest.approx(1, abs=1e-6)
        assert targets[: table.sizes[0]].std() == pytest.approx(1, abs=1e-5)


def test_equal_rows_of_a_table_are_kept_once(monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 13))
    twice = SimpleNamespace(data=np.concatenate([data, data[:7]]), target=np.arange(47))
    monkeypatch.setattr(sklearn.datasets, "load_wine", lambda: twice)
    small = tabular.Table("load_wine", 13, 47, sizes=(20, 5, 5, 10), seed=0)
    monkeypatch.setitem(tabular.TABLES, "small", small)
    splits = tabular.table_splits("small")
    assert sorted(torch.cat([targets for _, targets in batches(splits)]).tolist()) == [*range(40)]
    with pytest.raises(ValueError, match="did you mean 'wine'"):
        tabular.table_splits("wines")


# -- photographs ----------------------------------------------------------------------------------


def test_every_tile_of_the_photographs_is_in_one_split():
    tiles = [tile.numpy().tobytes() for part in photos.photo_patches(32) for tile in part]
    expected = Counter()
    for name in photos.PHOTOS:
        grey = np.rint(sklearn.datasets.load_sample_image(name).mean(2)).astype(np.int64)
        for top in range(0, 427 - 31, 32):
            for left in range(0, 640 - 31, 32):
                expected[grey[top : top + 32, left : left + 32].tobytes()] += 1
    assert Counter(tiles) == expected
    assert [len(part) for part in photos.photo_patches(32)] == [312, 52, 78, 78]


@pytest.mark.parametrize("side", [3, 4, 8])
def test_patches_lie_within_the_tiles_of_their_split(side):
    for patches, tiles in zip(photos.photo_patches(side), photos.photo_patches(32), strict=True):
        expected = Counter()
        for tile in tiles.numpy():
            for top in range(0, 32 - side + 1, side):
                for left in range(0, 32 - side + 1, side):
                    expected[tile[top : top + side, left : left + side].tobytes()] += 1
        assert Counter(patch.tobytes() for patch in patches.numpy()) == expected


def test_patches_have_a_side_that_fits():
    with pytest.raises(ValueError, match="between 1 and 32 pixels, but got 33"):
        photos.photo_patches(33)


def test_noise_has_the_spread_asked_for_and_is_drawn_from_the_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return photos.noisy_splits(num_train=500, noise=0.3, generator=generator)

    splits = draw(0)
    assert [splits.num_rows(name) for name in SPLITS] == [500, 832, 1248, 1248]
    mean, spread = photos.pixel_statistics(photos.photo_patches(8)[0])
    for (noisy, clean), patches in zip(batches(splits), photos.photo_patches(8), strict=True):
        pixels = patches[: len(clean)].double()
        assert torch.allclose(clean[:, 0].double() * spread + mean, pixels, atol=1e-3)
        noise = (noisy - clean).flatten()
        assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
        assert abs(float(noise.mean())) < 0.01
    assert torch.equal(draw(0).train[0], splits.train[0])
    assert not torch.equal(draw(1).train[0], splits.train[0])


@pytest.mark.parametrize("residual", [True, False])
def test_a_residual_denoiser_subtracts_what_its_layers_give(residual):
    torch.manual_seed(0)
    shape = photos.DenoiserShape(channels=5, layers=2, activation="gelu", residual=residual)
    model = photos.Denoiser(shape)
    noisy = torch.randn(3, 1, 8, 8)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [5, 5, 1]
    given = model.layers(noisy)
    assert torch.equal(model(noisy), noisy - given if residual else given)


# -- the flow -------------------------------------------------------------------------------------


def random_flow(side, couplings=4):
    torch.manual_seed(3)
    return photos.Flow(
        photos.FlowShape(side=side, couplings=couplings, hidden=7, activation="tanh")
    ).double()


@pytest.mark.parametrize("side", [3, 4])
def test_density_is_that_of_the_change_of_variables(side):
    flow = random_flow(side)

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


@pytest.mark.parametrize("side", [3, 4])
def test_a_pair_of_coupling_layers_moves_every_number(side):
    flow = random_flow(side, couplings=2)
    orders = [layer.order for layer in flow.layers]
    assert all(order.sort().values.tolist() == list(range(side**2)) for order in orders)
    source = torch.arange(side**2)
    moved = set()
    for layer in flow.layers:
        source = source[layer.order]
        moved |= set(source[layer.kept :].tolist())
    assert moved == set(range(side**2))


def gaussian_loss(train, rows):
    """Loss in nats per row of the Gaussian that has the mean and covariance of the train rows."""
    train, rows = train.double().numpy(), rows.double().numpy()
    centred = rows - train.mean(0)
    covariance = np.cov(train, rowvar=False, bias=True)
    mahalanobis = (centred @ np.linalg.inv(covariance) * centred).sum(1)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return float(0.5 * (mahalanobis + log_det).mean())


@pytest.mark.parametrize("side", photos.BEST_KNOWN)
def test_the_best_known_flow_is_better_than_a_gaussian_on_every_split(side):
    generator = torch.Generator().manual_seed(0)
    rows = len(photos.photo_patches(side)[0])
    splits = photos.dequantised_splits(side, num_train=rows, generator=generator)
    losses = [gaussian_loss(splits.train[0], part[0]) for part in batches(splits)]
    assert photos.BEST_KNOWN[side] < min(losses) < 0
    # Nor can it be less than if every grey level were known beforehand: what is left is uniform
    # over one level, 1 / spread wide.
    spread = photos.pixel_statistics(photos.photo_patches(side)[0])[1]
    assert photos.BEST_KNOWN[side] > -(side**2) * np.log(spread)


def test_dequantisation_stays_within_a_level():
    generator = torch.Generator().manual_seed(0)
    splits = photos.dequantised_splits(3, num_train=2000, generator=generator)
    mean, spread = photos.pixel_statistics(photos.photo_patches(3)[0])
    for (rows,), patches in zip(batches(splits), photos.photo_patches(3), strict=True):
        levels = patches[: len(rows)].flatten(1)
        beyond = rows.double() * spread + mean - levels
        assert -1e-4 < float(beyond.min()) < 0.01 < 0.99 < float(beyond.max()) < 1 + 1e-4
        assert float(beyond.mean()) == pytest.approx(0.5, abs=0.02)


# -- digits ---------------------------------------------------------------------------------------


def test_digit_images_are_the_digits():
    for (images, labels), (rows, same) in zip(
        batches(digits.digit_images(200)), batches(digits.digits_splits(200)), strict=True
    ):
        assert images.shape == (len(rows), 1, 8, 8)
        assert torch.equal(images.flatten(1), rows)
        assert labels is same


@pytest.mark.parametrize("name", DIGITS)
def test_digits_families_have_the_job_and_the_rows_of_digits_mlp(name):
    jobs = [s.job for s in shapes_of(name)]
    assert {job.num_train for job in jobs} == {200, 500, 1000}
    assert {job.batch_size for job in jobs} == {16, 32, 64, 128}
    assert all(200 <= job.horizon <= 1500 for job in jobs)
    task = tasks_of(name, 1)[0]
    rows = digits.digits_splits(task.splits.num_rows("train"))
    for ours, theirs in zip(batches(task.splits), batches(rows), strict=True):
        assert torch.equal(ours[0].flatten(1), theirs[0])


def test_the_teacher_knows_the_digits_and_is_the_same_every_time():
    teacher = digits.digits_teacher()
    images, labels = digits.digits_splits().test
    with torch.no_grad():
        right = teacher(images.double()).argmax(1) == labels
    assert float(right.float().mean()) > 0.95
    digits.digits_teacher.cache_clear()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = digits.digits_teacher()
    assert torch.equal(state, torch.get_rng_state())
    for one, two in zip(teacher.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_divergence_is_that_of_student_and_teacher(temperature):
    teacher = digits.digits_teacher()
    splits = digits.distilled_splits(500, temperature=temperature)
    for images, chances, entropies in batches(splits):
        expected = torch.softmax(teacher(images.double()) / temperature, 1)
        assert torch.allclose(chances.double(), expected, atol=1e-6)
        batch = (images.double(), expected, entropies.double())
        student = nn.Linear(64, 10, dtype=torch.float64)
        theirs = nn.functional.kl_div(
            student(batch[0]).log_softmax(1), expected, reduction="batchmean"
        )
        assert torch.allclose(digits.divergence(student, batch), theirs, atol=1e-6)
        # One that answers as the teacher does has nothing left to learn: the optimum.
        perfect = digits.divergence(lambda x: teacher(x) / temperature, batch)
        assert abs(float(perfect)) < 1e-6
    assert splits.num_rows("train") == 500


def test_distilled_tasks_know_their_optimum_and_their_temperature():
    tasks = tasks_of("digits-distilled", 10)
    assert {task.optimum for task in tasks} == {0.0}
    temperatures = []
    for task in tasks:
        temperature = float(task.build_model().temperature)
        again = digits.distilled_splits(task.splits.num_rows("train"), temperature=temperature)
        assert torch.allclose(again.test[1], task.splits.test[1], atol=1e-6)
        temperatures.append(temperature)
    assert 2 <= min(temperatures) < 3 < 4.5 < max(temperatures) <= 6


def test_what_photographs_need_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    photos.photo_patches.cache_clear()
    with pytest.raises(ImportError, match=r"PIL is not .* pip install 'pacesetter\[train\]'"):
        photos.photo_patches(5)
