"""Every registered task family passes the same tests; a new one is a new row of the registry."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_all

from pacesetter.inner_models import registry
from pacesetter.inner_models.engine.data import batch_stream, build_model
from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.base import JobRanges
from pacesetter.inner_models.families.real.image_files import DATA_VARIABLE
from pacesetter.inner_models.task import OPTIMIZERS, SPLITS, Splits

FAMILIES = registry.family_names()
RATES = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])


@pytest.fixture(scope="module", autouse=True)
def _image_files(tmp_path_factory):
    """Files for the families that need some."""
    write_all(tmp_path_factory.mktemp("images"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, str(tmp_path_factory.getbasetemp() / "images0"))
        yield
    registry.fixed_task.cache_clear()


def sample_group(name, seed=0, num_tasks=2):
    generator = torch.Generator().manual_seed(seed)
    return registry.make_family(name).sample_group(num_tasks, generator)


# -- what every family promises ----------------------------------------------------------------


def shrunk(task, rows=8):
    """The same task on few rows, all in one batch: a step of it costs next to nothing."""
    parts = [tuple(tensor[:rows] for tensor in getattr(task.splits, name)) for name in SPLITS]
    splits = Splits(*parts, allow_overlap=True)
    return replace(task, splits=splits, batch_size=splits.num_rows("train"), fresh_rows=None)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def assert_equals_plain_run(trainer, run, task, *, steps, lr):
    plain = ReferenceRun(task, dtype=torch.float64)
    for _ in range(steps):
        plain.step(lr=lr, momentum=0.9)
    weights = trainer.parameters(run)
    for name, parameter in plain.model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(weights[name], parameter.detach(), rtol=1e-7, atol=1e-9), name
    for split in SPLITS:
        loss = trainer.evaluate(split)[run]
        assert np.isfinite(loss)
        assert loss == pytest.approx(plain.evaluate(split), rel=1e-9)


@dataclass
class Trained:
    """Two tasks of a family, and two steps of three siblings each in float64."""

    name: str

    def __post_init__(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self.tasks = sample_group(self.name)
        self.few = [shrunk(task) for task in self.tasks]
        self.trainer = InnerTrainer(self.few, siblings=3, dtype=torch.float64)
        self.lr = 0.01 * self.few[1].optimizer.lr
        rates = self.lr * np.array([1.0, 1.0, 30.0] * 2)
        statistics = self.trainer.run(np.tile(rates, (2, 1)), momentum=np.full(6, 0.9))
        self.losses = statistics.losses
        self.random_state_kept = torch.equal(before, torch.get_rng_state())

    def weights(self):
        return [self.trainer.parameters(i) | self.trainer.buffers(i) for i in range(6)]


# Recurrence over long texts is slow.
SLOW = ("text-gru", "source-gru")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES],
)
def run(request, _image_files):
    return Trained(request.param)


def test_a_seed_gives_one_task_and_tasks_of_a_group_differ(run):
    one, two = run.tasks
    torch.manual_seed(1)  # which no family may depend on
    (again,) = sample_group(run.name, num_tasks=1)
    assert again.splits.digest() == one.splits.digest()
    described = [(t.name, t.seed, t.horizon, t.batch_size, t.optimizer) for t in (one, again)]
    assert described[0] == described[1]
    assert same(build_model(one).state_dict(), build_model(again).state_dict())
    assert one.name == run.name
    assert one.seed != two.seed
    assert run.random_state_kept  # tasks and training have generators of their own
    if run.name not in registry.META_TRAIN:
        assert (one.optimizer.name, one.optimizer.lr, one.fresh_rows) == ("adamw", 1e-3, None)
    if one.fresh_rows is not None:
        batch = [part[0] for part in batch_stream(one).take(1)]
        for fresh, row in zip(batch, one.splits.train, strict=True):
            assert (fresh.shape, fresh.dtype) == ((one.batch_size, *row.shape[1:]), row.dtype)


def test_batched_runs_equal_plain_ones(run):
    assert run.trainer._program.batched
    assert_equals_plain_run(run.trainer, 3, run.few[1], steps=2, lr=run.lr)


def test_siblings_are_alike_and_tasks_differ(run):
    weights = run.weights()
    assert same(weights[0], weights[1])
    assert same(weights[3], weights[4])
    assert not same(weights[0], weights[2])
    assert not same(weights[0], weights[3])


def test_losses_fall_and_evaluation_changes_nothing(run):
    fallen = run.losses[1:].min(axis=0) < run.losses[0]  # of the same rows
    assert fallen.reshape(2, 3).any(axis=1).all()
    before = run.weights()
    one, two = (run.trainer.evaluate("inner_valid") for _ in range(2))
    assert np.array_equal(one, two, equal_nan=True)
    assert all(same(old, new) for old, new in zip(before, run.weights(), strict=True))


# Quick families; the rest are slow.


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_traced_runs_equal_plain_ones_at_full_size(name):
    tasks = sample_group(name, 1)
    trainer = InnerTrainer(tasks, siblings=2, dtype=torch.float64, traced=True)
    lr = 0.01 * tasks[1].optimizer.lr
    trainer.run(np.full((5, 4), lr), momentum=np.full(4, 0.9))
    assert_equals_plain_run(trainer, 3, tasks[1], steps=5, lr=lr)


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


# -- generated families --------------------------------------------------------------------------


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
    unread = {field.name for field in fields(kind)} - {field.name for field in fields(JobRanges)}
    if getattr(kind, "cluster_share", 1) == 0:
        unread.discard("separation")  # compressed networks have teachers' data without clusters
    recorder, generator = Recorder(family.ranges), torch.Generator().manual_seed(0)
    for _ in range(30):
        if not unread <= recorder.read:
            replace(family, ranges=recorder).sample(generator)
    assert unread <= recorder.read
    for field in fields(kind):
        value = field.default
        bad = (value[1] + 1, value[0]) if isinstance(value, tuple) else -1.5
        with pytest.raises(ValueError, match=f"{field.name}.*{re.escape(str(bad))}"):
            kind(**{field.name: bad})


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


def test_an_endless_task_never_shows_a_row_twice():
    family, generator = registry.make_family("teacher-mlp"), torch.Generator().manual_seed(0)
    shape = family.sample_shape(generator)
    shape = replace(shape, job=replace(shape.job, endless=True, batch_size=8, horizon=700))
    task, other = (family.build(shape, generator) for _ in range(2))
    # Asked for in any portions, the rows are the same.
    stream = batch_stream(task)
    inputs = torch.cat([stream.take(n)[0] for n in (1, 600, 3, 95)])
    assert torch.equal(batch_stream(task).take(699)[0], inputs)
    assert len(torch.unique(inputs.flatten(0, 1), dim=0)) == 699 * 8
    assert not torch.equal(batch_stream(other).take(1)[0], inputs[:1])


# -- the registry ----------------------------------------------------------------------------------


def test_the_sets_are_disjoint_and_complete_and_the_manual_has_every_name():
    sets = [registry.META_TRAIN, registry.VALIDATION, registry.HELD_OUT, registry.FROM_FILES]
    assert sorted(sum(sets, ())) == sorted(FAMILIES)
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", ["teacher-mlp", "digits-mlp"])
def test_fixed_tasks_are_the_same_on_every_call(name):
    one = registry.fixed_task(name, 1)
    assert registry.fixed_task(name, 1) is one
    registry.fixed_task.cache_clear()
    two = registry.fixed_task(name, 1)
    assert one.splits.digest() == two.splits.digest()
    assert (one.name, one.optimizer.lr) == (f"{name}/1", 1e-3)
    assert one.seed == two.seed != registry.fixed_task(name, 0).seed


def test_unknown_families_and_tasks_are_refused():
    with pytest.raises(ValueError, match="did you mean 'digits-mlp'"):
        registry.make_family("digit-mlp")
    with pytest.raises(ValueError, match="zero or positive, but got -1"):
        registry.fixed_task("digits-mlp", -1)
