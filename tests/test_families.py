"""Every registered task family passes the same suite; a new one is a new row of the registry."""

import numpy as np
import pytest
import torch

from pacesetter.inner_models import registry
from pacesetter.inner_models.digits import digits_splits
from pacesetter.inner_models.extras import require
from pacesetter.inner_models.mlp import Draw, TeacherRanges, cross_entropy
from pacesetter.inner_models.reference import ReferenceRun
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits
from pacesetter.inner_models.trainer import InnerTrainer

FAMILIES = registry.family_names()
SPLITS = ("train", "inner_valid", "outer_valid", "test")


def sample_group(name, seed=0, num_tasks=2):
    generator = torch.Generator().manual_seed(seed)
    return registry.make_family(name).sample_group(num_tasks, generator)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_losses_are_finite_at_the_start(name, seed):
    trainer = InnerTrainer(sample_group(name, seed))
    for split in SPLITS:
        assert np.isfinite(trainer.evaluate(split)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_learnable(name):
    """Some constant learning rate of AdamW halves the training loss's excess over its best."""
    task = registry.fixed_task(name, 0)
    rates = [1e-3, 3e-3, 1e-2, 3e-2]
    trainer = InnerTrainer([task], siblings=len(rates))
    start = trainer.evaluate("train")[0]
    trainer.run(np.tile(rates, (task.horizon, 1)), momentum=np.full(len(rates), 0.9))
    assert np.nanmin(trainer.evaluate("train")) < start / 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_batched_equals_reference(name, seed):
    tasks = sample_group(name, seed)
    trainer = InnerTrainer(tasks, siblings=2, dtype=torch.float64)
    trainer.run(np.full((5, 4), 1e-3), momentum=np.full(4, 0.9))
    twin = ReferenceRun(tasks[1], dtype=torch.float64)
    for _ in range(5):
        twin.step(lr=1e-3, momentum=0.9)
    weights = trainer.parameters(3)
    for name_, parameter in twin.model.named_parameters():
        assert torch.allclose(weights[name_], parameter.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_generator_state_gives_one_task_and_another_gives_another(name):
    one, two, other = sample_group(name, 1), sample_group(name, 1), sample_group(name, 2)
    assert one[0].seed == two[0].seed != other[0].seed
    assert one[0].seed != one[1].seed
    assert torch.equal(one[0].splits.train[0], two[0].splits.train[0])
    assert one[0].optimizer == two[0].optimizer
    torch.manual_seed(0)
    state = torch.get_rng_state()
    InnerTrainer(sample_group(name, 3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_fixed_tasks_are_the_same_on_every_call(name):
    registry.fixed_task.cache_clear()
    one = registry.fixed_task(name, 1)
    registry.fixed_task.cache_clear()
    two = registry.fixed_task(name, 1)
    assert (one.name, one.seed, one.horizon) == (two.name, two.seed, two.horizon)
    assert one.name == f"{name}/1"
    assert one.optimizer.lr == 1e-3
    assert torch.equal(one.splits.test[0], two.splits.test[0])


def test_the_three_sets_are_disjoint_and_complete():
    sets = [registry.META_TRAIN, registry.VALIDATION, registry.HELD_OUT]
    assert sorted(sum(sets, ())) == sorted(FAMILIES)


def test_teacher_tasks_differ_in_what_the_docstring_says():
    generator = torch.Generator().manual_seed(0)
    family = registry.make_family("teacher-mlp")
    shapes = [family.sample_shape(generator) for _ in range(300)]
    r = family.ranges
    assert {s.activation for s in shapes} == {"relu", "tanh", "gelu", "silu"}
    assert {len(s.widths) - 2 for s in shapes} == {0, 1, 2, 3, 4}
    assert {s.optimizer for s in shapes} == {"adamw", "sgd"}
    assert {s.classification for s in shapes} == {True, False}
    assert min(s.num_train for s in shapes) < 200 < 4000 < max(s.num_train for s in shapes)
    horizons = np.array([s.horizon for s in shapes])
    assert r.horizon[0] <= horizons.min() < 100 < 600 < horizons.max() <= r.horizon[1]
    tasks = [family.sample(generator) for _ in range(60)]
    starts = [t.optimizer.lr for t in tasks if t.optimizer.name == "adamw"]
    assert 3e-4 <= min(starts) < 2e-3 < 5e-2 < max(starts) <= 0.3
    assert {t.valid_every > 0 for t in tasks} == {True, False}


def test_our_cross_entropy_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    logits = 200 * torch.randn(50, 7, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.randint(7, (50,), generator=generator)
    ours = cross_entropy(torch.nn.Identity(), (logits, labels))
    theirs = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*grads, rtol=1e-10, atol=1e-15)


def test_digits_are_split_without_overlap():
    splits = digits_splits()
    rows = [splits.num_rows(name) for name in SPLITS]
    assert rows == [1000, 197, 300, 300]
    images = torch.cat([getattr(splits, name)[0] for name in SPLITS])
    assert len(torch.unique(images, dim=0)) == 1797
    assert digits_splits(200).num_rows("train") == 200
    assert torch.equal(digits_splits(200).test[0], splits.test[0])
    with pytest.raises(ValueError, match="between 1 and 1000, but got 1001"):
        digits_splits(1001)


def test_draws_lie_in_their_ranges():
    draw = Draw(torch.Generator().manual_seed(0))
    values = np.array([draw.equal_cost(10, 1000) for _ in range(4000)])
    assert 10 <= values.min() <= values.max() <= 1000
    # Each decade costs the same: the total over [10, 100] equals that over [100, 1000].
    low, high = values[values < 100].sum(), values[values >= 100].sum()
    assert low / high == pytest.approx(1, abs=0.25)
    integers = {draw.integer(2, 4) for _ in range(100)}
    assert integers == {2, 3, 4}


def test_bad_input_is_refused_with_what_came():
    rows = (torch.zeros(4, 2), torch.zeros(4))
    splits = Splits(rows, rows, rows, rows)
    build = torch.nn.Identity
    with pytest.raises(ValueError, match="between 1 and the 4 rows of the train split, but got 5"):
        ModuleTask(build, lambda m, b: b[0].sum(), splits, horizon=5, batch_size=5)
    with pytest.raises(ValueError, match="positive number of steps, but got 0"):
        ModuleTask(build, lambda m, b: b[0].sum(), splits, horizon=0, batch_size=2)
    with pytest.raises(ValueError, match="'test' needs the same positive number of rows"):
        Splits(rows, rows, rows, (torch.zeros(0, 2), torch.zeros(0)))
    with pytest.raises(ValueError, match="'train' must be a non-empty tuple of tensors"):
        Splits(rows[0], rows, rows, rows)
    for changes, message in (
        ({"lr": -1.0}, "lr must be a positive number, but got -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), but got 1.0"),
        ({"name": "adagrad"}, "'adamw' or 'sgd', but got 'adagrad'"),
        ({"eps": -1e-8}, "eps must be zero or positive"),
    ):
        with pytest.raises(ValueError, match=message):
            OptimizerConfig(**changes)
    with pytest.raises(ValueError, match="must be ordered"):
        TeacherRanges(hidden=(64, 8))
    with pytest.raises(ValueError, match="did you mean 'digits-mlp'"):
        registry.make_family("digit-mlp")
    with pytest.raises(ValueError, match="zero or positive, but got -1"):
        registry.fixed_task("digits-mlp", -1)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        require("no_such_package_anywhere.part", extra="compare")
