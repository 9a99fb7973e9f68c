"""Every registered task family passes the same suite; a new one is a new row of the registry."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models import registry
from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.engine.data import batch_stream
from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.base import JobRanges
from pacesetter.inner_models.families.real.digits import digits_splits
from pacesetter.inner_models.families.teachers.regression import TeacherRanges
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.task import OPTIMIZERS, SPLITS, ModuleTask, OptimizerConfig, Splits

FROM_FILES = getattr(registry, "FROM_FILES", ())
FAMILIES = [name for name in registry.family_names() if name not in FROM_FILES]
# Long sequences: the others show the same of quick families.
COSTLY = {"text-transformer", "text-gru", "source-gru", "digits-distilled"}
TRAINED = [pytest.param(n, marks=pytest.mark.slow) if n in COSTLY else n for n in FAMILIES]
RATES = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])


def sample_group(name, seed=0, num_tasks=2):
    generator = torch.Generator().manual_seed(seed)
    return registry.make_family(name).sample_group(num_tasks, generator)


def excess_left(task, steps=400):
    """Share of the excess loss that the best of some learning rates, under a cosine, leaves."""
    trainer = InnerTrainer([task], siblings=len(RATES))
    # Where the optimum is known it is that on new data; else the training loss has to fall.
    split = "train" if task.optimum is None else "outer_valid"
    optimum = task.optimum or 0.0
    start = trainer.evaluate(split)[0] - optimum
    decay = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    trainer.run(decay[:, None] * RATES, momentum=np.full(len(RATES), 0.9))
    return (np.nanmin(trainer.evaluate(split)) - optimum) / start


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_learnable(name):
    """Tuned AdamW halves the excess of the loss over its optimum: the median of three tasks."""
    count = 3 if name in registry.META_TRAIN else 1
    left = [excess_left(registry.fixed_task(name, i)) for i in range(count)]
    assert np.median(left) < 0.5
    # No run undercuts the optimum by more than chance in the rows.
    assert min(left) > -0.1


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batched_equals_reference(name, seed):
    tasks = sample_group(name, seed)
    trainer = InnerTrainer(tasks, siblings=2, dtype=torch.float64, traced=seed == 1)
    lr = 0.01 * tasks[1].optimizer.lr
    trainer.run(np.full((5, 4), lr), momentum=np.full(4, 0.9))
    assert trainer._program.batched
    twin = ReferenceRun(tasks[1], dtype=torch.float64)
    for _ in range(5):
        twin.step(lr=lr, momentum=0.9)
    weights = trainer.parameters(3)
    for name_, parameter in twin.model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(weights[name_], parameter.detach(), rtol=1e-7, atol=1e-9)
    for split in SPLITS:
        losses = trainer.evaluate(split)
        assert np.isfinite(losses).all()
        assert losses[3] == pytest.approx(twin.evaluate(split), rel=1e-9)


@pytest.mark.parametrize("name", TRAINED)
def test_siblings_at_zero_action_are_identical(name):
    runs = ScheduledRuns(sample_group(name, 5), siblings=3)
    features = [runs.begin(), *(runs.decide(np.zeros((6, 3))) for _ in range(2))]
    for seen in features:
        for task in range(2):
            assert (seen[3 * task : 3 * task + 3] == seen[3 * task]).all()
    weights = [runs.trainer.parameters(run) for run in range(6)]
    for run in (1, 2):
        assert all(torch.equal(weights[0][n], weights[run][n]) for n in weights[0])
    assert not all(torch.equal(weights[0][n], weights[3][n]) for n in weights[0])


class Recorder:
    """Ranges of a family that keep the names of those that are read."""

    def __init__(self, ranges):
        self.ranges, self.read = ranges, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.ranges, name)


@pytest.mark.parametrize("name", registry.META_TRAIN)
def test_every_range_is_drawn_from_and_a_bad_one_is_refused_with_what_came(name):
    family = registry.make_family(name)
    kind = type(family.ranges)
    recorder = Recorder(family.ranges)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        replace(family, ranges=recorder).sample(generator)
    own = {field.name for field in fields(kind)} - {field.name for field in fields(JobRanges)}
    # Compressed networks have teachers' data without clusters.
    assert own - recorder.read <= (
        {"separation"} if getattr(kind, "cluster_share", 1) == 0 else set()
    )
    for field in fields(kind):
        value = field.default
        bad = (value[1] + 1, value[0]) if isinstance(value, tuple) else -1.5
        with pytest.raises(ValueError, match=f"{field.name}.*{re.escape(str(bad))}"):
            kind(**{field.name: bad})
    for optimizer in ("adamw", "sgd", "rmsprop"):
        low, high = family.ranges.sensible_lr(optimizer)
        assert 3 <= high / low <= 30


@pytest.mark.parametrize("name", registry.META_TRAIN)
def test_every_generated_family_meets_every_kind_of_job(name):
    family = registry.make_family(name)
    generator = torch.Generator().manual_seed(0)
    jobs = [family.sample_shape(generator).job for _ in range(200)]
    assert {job.optimizer for job in jobs} == set(OPTIMIZERS)
    assert {job.endless for job in jobs} == {True, False}
    assert {job.valid_every > 0 for job in jobs} == {True, False}
    assert min(job.horizon for job in jobs) < 80 < 300 < max(job.horizon for job in jobs)
    assert min(job.batch_size for job in jobs) <= 16 < 128 <= max(job.batch_size for job in jobs)


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
    sets = [registry.META_TRAIN, registry.VALIDATION, registry.HELD_OUT, FROM_FILES]
    assert sorted(sum(sets, ())) == sorted(registry.family_names())


def test_an_endless_task_never_shows_a_row_twice():
    family = registry.make_family("teacher-mlp")
    generator = torch.Generator().manual_seed(0)
    shape = family.sample_shape(generator)
    shape = replace(shape, job=replace(shape.job, endless=True, batch_size=8, horizon=700))
    stream = batch_stream(family.build(shape, generator))
    # Asked for in any portions, the rows are the same.
    again = batch_stream(family.build(shape, torch.Generator().manual_seed(9)))
    assert not torch.equal(stream.take(1)[0], again.take(1)[0])
    inputs = torch.cat([stream.take(n)[0] for n in (1, 600, 3, 95)]).flatten(0, 1)
    assert len(torch.unique(inputs, dim=0)) == len(inputs) == 699 * 8


def test_fresh_rows_do_not_depend_on_the_portions_they_are_asked_for_in():
    task = next(t for i in range(20) if (t := sample_group("teacher-mlp", i)[0]).fresh_rows)
    whole, parts = batch_stream(task), batch_stream(task)
    expected = whole.take(50)[0]
    assert torch.equal(expected, torch.cat([parts.take(n)[0] for n in (1, 30, 19)]))


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


def test_splits_that_overlap_are_refused():
    x, y = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.arange(200)

    def part(rows):
        return x[rows], y[rows]

    parts = [part(slice(i, i + 50)) for i in range(0, 200, 50)]
    assert Splits(*parts).num_rows("test") == 50
    interleaved = [part(slice(i, None, 4)) for i in range(4)]
    assert Splits(*interleaved).num_rows("train") == 50
    # Views of the same memory, and copies of the same rows.
    for rows in (slice(49, 60), torch.arange(49, 60)):
        with pytest.raises(ValueError, match="'train' and 'test' share 1 rows"):
            Splits(parts[0], parts[1], parts[2], part(rows))
    with pytest.raises(ValueError, match="'train' and 'outer_valid' share 50 rows"):
        Splits(parts[0], parts[1], parts[0], parts[3])
    assert Splits(*[parts[0]] * 4, allow_overlap=True).num_rows("test") == 50
    # Sequences of integers recur by nature.
    words = [(torch.zeros(5, 3, dtype=torch.int64),) for _ in range(4)]
    assert Splits(*words).num_rows("train") == 5


class LargestDouble(TorchDispatchMode):
    """Keeps the size of the largest tensor in double precision that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("shape", [(100, 30), (100, 3, 10)])
def test_the_search_for_equal_rows_holds_few_numbers_at_a_time(monkeypatch, shape):
    monkeypatch.setattr("pacesetter.inner_models.task._CHUNK", 120)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts = list(zip(x.split(25), torch.arange(100).split(25), strict=True))
    with LargestDouble() as largest:
        Splits(*parts)
    assert 100 <= largest.numbers <= 120
    with pytest.raises(ValueError, match="'inner_valid' and 'test' share 2 rows"):
        Splits(*parts[:3], (torch.cat([x[48:50], x[75:]]), torch.tensor([48, 49, *range(75, 100)])))


def test_bad_input_is_refused_with_what_came():
    rows = (torch.zeros(4, 2), torch.zeros(4))
    splits = Splits(rows, rows, rows, rows, allow_overlap=True)
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
        ({"name": "adagrad"}, "one of adamw, adam, sgd, rmsprop, but got 'adagrad'"),
        ({"eps": -1e-8}, "eps must be zero or positive"),
    ):
        with pytest.raises(ValueError, match=message):
            OptimizerConfig(**changes)
    for changes, message in (
        ({"hidden": (64, 8)}, r"hidden of TeacherRanges .* low <= high, but got \(64, 8\)"),
        ({"horizon": ()}, r"horizon of TeacherRanges must be a pair .* but got \(\)"),
        ({"gain": (0.5, float("nan"))}, r"finite numbers .* but got \(0.5, nan\)"),
        ({"num_train": (4, 8)}, "smallest batch_size must not exceed the smallest num_train, 4"),
        ({"batch_size": (0, 8)}, r"batch_size must start at 1 or more, but got \(0, 8\)"),
        ({"sgd_share": 1.5}, r"sgd_share must lie in \[0, 1\], but got 1.5"),
        ({"sgd_share": 0.9}, "must not exceed 1 together"),
        ({"work": -1.0}, "work must be zero or positive"),
    ):
        with pytest.raises(ValueError, match=message):
            TeacherRanges(**changes)
    with pytest.raises(ValueError, match="did you mean 'digits-mlp'"):
        registry.make_family("digit-mlp")
    with pytest.raises(ValueError, match="zero or positive, but got -1"):
        registry.fixed_task("digits-mlp", -1)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        require("no_such_package_anywhere.part", extra="compare")


def test_the_page_on_families_has_every_name():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert [name for name in registry.family_names() if f"`{name}`" not in page] == []
