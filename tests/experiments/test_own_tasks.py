"""A user's own job as a task: what is accepted, exactly how, and what is refused."""

import random
import sys
import textwrap
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pacesetter.experiments.own_job import BATCH_SIZE, EPOCHS, check_task, own_task, plain_task
from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.losses import metric_of


def rows(num, *, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 4, generator=generator)
    return inputs, (inputs.sum(1) > 0).long()


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))


TRAIN, VALID, TEST = rows(60, seed=0), rows(21, seed=1), rows(20, seed=2)
LOADERS = (TRAIN, VALID, TEST)


def loader(part, **options):
    return DataLoader(TensorDataset(*part), batch_size=12, **options)


def classification(model=build, loaders=LOADERS, options=None):
    return plain_task(model, loaders, nn.CrossEntropyLoss(), options)


def trained(task):
    trainer = InnerTrainer([task.with_seed(0)])
    trainer.run(np.full((5, 1), 1e-2), momentum=np.array([0.9]))
    return trainer.evaluate("outer_valid")[0]


def test_loaders_data_sets_and_tensors_are_the_same_task():
    tensors = classification(options={"batch_size": 12})
    for other in (
        tuple(loader(part) for part in LOADERS),
        {"test": loader(TEST), "train": loader(TRAIN, shuffle=True), "valid": loader(VALID)},
        [loader(TRAIN), TensorDataset(*VALID), list(TEST)],
    ):
        task = plain_task(build, other, F.cross_entropy)
        assert task.splits.digest() == tensors.splits.digest()
        assert (task.batch_size, task.horizon) == (12, EPOCHS * 5)
        assert trained(task) == pytest.approx(trained(tensors), rel=1e-6)
    assert classification().batch_size == BATCH_SIZE


def test_rows_of_valid_go_in_turn_to_the_two_splits():
    splits = classification().splits
    for i, tensor in enumerate(VALID):
        assert torch.equal(splits.inner_valid[i], tensor[0::2])
        assert torch.equal(splits.outer_valid[i], tensor[1::2])
    named = {"train": TRAIN, "inner_valid": VALID, "outer_valid": rows(9, seed=3), "test": TEST}
    assert classification(loaders=named).splits.num_rows("outer_valid") == 9


def test_both_forms_of_a_loss_are_the_same_loss():
    def of_model(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    forms = [nn.CrossEntropyLoss(), F.cross_entropy, of_model]
    losses = [trained(plain_task(build, LOADERS, loss)) for loss in forms]
    assert len(set(losses)) == 1


def test_one_tensor_is_input_and_target_and_many_are_many_inputs():
    images = tuple((part[0],) for part in LOADERS)
    task = plain_task(lambda: nn.Linear(4, 4), images, nn.MSELoss())
    model = build_model(task.with_seed(0))
    assert task.loss(model, TRAIN[:1]) == (model(TRAIN[0]) - TRAIN[0]).square().mean()
    tensors = tuple(part[0] for part in LOADERS)
    same = plain_task(lambda: nn.Linear(4, 4), tensors, nn.MSELoss())
    assert same.splits.digest() == task.splits.digest()
    three = tuple((part[0], part[0] + 1, part[0][:, :1]) for part in LOADERS)
    check_task(plain_task(lambda: nn.Bilinear(4, 4, 1), three, nn.MSELoss()))


def test_a_module_keeps_its_weights_and_a_factory_draws_them_by_seed():
    module = build()
    fresh, model = classification(), build_model(classification(module).with_seed(1))
    assert model is not module
    assert torch.equal(model[0].weight, module[0].weight)
    weights = [build_model(fresh.with_seed(seed))[0].weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_accuracy_is_told_where_it_means_something():
    assert metric_of(classification()).name == "accuracy"
    soft = tuple((x, F.one_hot(y, 2).float()) for x, y in LOADERS)
    assert metric_of(classification(loaders=soft)) is None


def test_options_are_those_of_a_module_task():
    task = classification(options={"horizon": 7, "batch_size": 3, "name": "mine"})
    assert (task.horizon, task.batch_size, task.name) == (7, 3, "mine")
    with pytest.raises(ValueError, match=r"horizon.*but got.*epochs"):
        classification(options={"epochs": 3})
    same = (TRAIN, TRAIN, TEST)
    with pytest.raises(ValueError, match="allow_overlap=True"):
        classification(loaders=same)
    classification(loaders=same, options={"allow_overlap": True})


class Made(Dataset):
    """Ten rows, each made anew when it is read."""

    def __init__(self, row):
        self.row = row

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.row(i)


NOISY = Made(lambda i: (torch.randn(4), torch.tensor(i % 2)))
RAGGED = Made(lambda i: (torch.zeros(1 + i), torch.tensor(0)))
NAMED = Made(lambda i: {"x": torch.zeros(4), "y": 1})


class Stream(IterableDataset):
    def __iter__(self):
        return count()


BROKEN = (VALID[0].index_fill(0, torch.tensor([3]), torch.nan), VALID[1])


@pytest.mark.parametrize(
    ("loaders", "message"),
    [
        ((TRAIN, TEST), r"loaders must be \(train, valid, test\).*validation split.*random_split"),
        ({"train": TRAIN, "test": TEST}, "valid is missing; got train, test.*cut what is missing"),
        ((TRAIN, "abc", TEST), "valid must be a DataLoader, a Dataset or a tuple.*got a str"),
        ((TRAIN, rows(1, seed=0), TEST), "two rows or more, but got 1"),
        ((NOISY, VALID, TEST), "rows of train change from one reading to the next"),
        ((DataLoader(RAGGED, batch_size=1), VALID, TEST), "must have one shape"),
        ((DataLoader(NAMED), VALID, TEST), "tuple of tensors, but got a dict.*collate_fn"),
        ((Stream(), VALID, TEST), "IterableDataset"),
        ((TRAIN, BROKEN, TEST), r"row 1 of outer_valid \(row 3 of valid\) of 'task' has NaN"),
        ((TRAIN, VALID, (TEST[0][:, :3], TEST[1])), r"failed on test with .*Error"),
    ],
)
def test_bad_loaders_are_refused(loaders, message):
    with pytest.raises(ValueError, match=message):
        check_task(classification(loaders=loaders))


DRAWS = count()


def unseeded():
    model = build()
    nn.init.constant_(model[0].weight, next(DRAWS))
    return model


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (3, F.cross_entropy, r"model must be a function.*got a int"),
        (build, "mse", r"loss must be a function.*got a str"),
        (unseeded, F.cross_entropy, "same weights under the same seed, but 0.weight differed"),
        (lambda: build().requires_grad_(False), F.cross_entropy, "no parameter to train"),
        (build, lambda *b: F.cross_entropy(*b) / 0, "must be finite at the start, but on train"),
        (build, lambda output, _: output[:, 0], r"one number.*on train it is shape \(60,\).*mean"),
        (build, lambda *b: F.cross_entropy(*b) + random.random(), "differently the second time"),
        (build, lambda *b: F.cross_entropy(*b).detach(), "does not depend on the model's param"),
        (build, lambda output, _: (output.sum() * 0).sqrt(), "gradient of 'task' must be finite"),
        (build, lambda output: output, r"failed on train with TypeError.*loss\(output, target\)"),
        (lambda: 3, F.cross_entropy, "must return an nn.Module, but got int"),
        (lambda: 1 / 0, F.cross_entropy, "factory of 'task' failed with ZeroDivisionError"),
    ],
)
def test_tasks_that_cannot_be_compared_on_are_refused(model, loss, message):
    with pytest.raises(ValueError, match=message):
        check_task(plain_task(model, LOADERS, loss))


JOB = """
    import random
    import torch
    from torch import nn
    from pacesetter.inner_models import ModuleTask, Splits

    def rows(num, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(num, 4, generator=generator)
        return x, x.sum(1, keepdim=True).sin()

    def build():
        return nn.Linear(4, 1)

    def plain():
        return build, [rows(40, 0), rows(20, 1), rows(20, 2)], nn.MSELoss()

    def by_seed(*, seed):
        parts = [rows(40, 10 * seed + i) for i in range(3)]
        return build, parts, nn.MSELoss(), {"horizon": 9, "name": f"seed {seed}"}

    def module_task():
        def loss(model, batch):
            return (model(batch[0]) - batch[1]).abs().mean()
        parts = [rows(20, i) for i in range(4)]
        return ModuleTask(build, loss, Splits(*parts), horizon=11, batch_size=5)

    def from_torch():
        return build, [(torch.randn(20, 4), torch.randn(20, 1)) for _ in range(3)], nn.MSELoss()

    def unseeded():
        parts = [rows(40, random.randrange(10**9)) for i in range(3)]
        return build, parts, nn.MSELoss()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A module in the working directory, where Python does not look by itself."""
    (tmp_path / "own_job.py").write_text(textwrap.dedent(JOB))
    (tmp_path / "own_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *sys.path])
    yield "own_job"
    for name in ("own_job", "own_broken"):
        sys.modules.pop(name, None)


def test_function_of_a_module_becomes_a_task(job):
    task = own_task(f"{job}:plain")
    assert (task.name, task.horizon, task.batch_size) == ("own_job/plain", 20, 32)
    assert own_task(f"{job}:plain", steps=5).horizon == 5
    task = own_task(f"{job}:module_task")
    assert (task.name, task.horizon, task.batch_size) == ("own_job/module_task", 11, 5)


def test_function_may_take_the_seed(job):
    zero, one = (own_task(f"{job}:by_seed", seed=seed) for seed in (0, 1))
    assert (zero.name, one.name) == ("seed 0", "seed 1")
    assert zero.splits.digest() != one.splits.digest()
    # What torch's global generator gives depends on the seed alone.
    torch.manual_seed(7)
    digests = [own_task(f"{job}:from_torch", seed=seed).splits.digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.initial_seed() == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_job", "module:function, such as my_module:make_task, but got 'own_job'"),
        ("own_jop:plain", "no module 'own_jop'.*folder of own_jop.py"),
        ("own_broken:plain", "importing own_broken failed with ModuleNotFoundError.*no_such"),
        ("own_job:plane", "unknown function of own_job 'plane'; did you mean 'plain'"),
        ("own_job:build", r"must return a ModuleTask, or a tuple.*but got a Linear"),
        ("own_job:rows", r"own_job:rows\(\) failed with TypeError"),
        ("own_job:unseeded", "must make the same data every time.*random_state=0"),
    ],
)
def test_wrong_specs_are_refused(job, spec, message):
    with pytest.raises(ValueError, match=message):
        own_task(spec)
