"""Tasks and their parts: splits that do not overlap, ranges, losses, bad input."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.teachers.regression import TeacherRanges
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits


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


def test_draws_lie_in_their_ranges():
    draw = Draw(torch.Generator().manual_seed(0))
    values = [draw.equal_cost(10, 1000) for _ in range(1000)]
    assert 10 <= min(values) < 100 < max(values) <= 1000
    assert {draw.integer(2, 4) for _ in range(100)} == {2, 3, 4}


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


ROWS = (torch.zeros(4, 2), torch.zeros(4))


def make_task(horizon=5, batch_size=2, train=ROWS, test=ROWS):
    splits = Splits(train, ROWS, ROWS, test, allow_overlap=True)
    return ModuleTask(
        torch.nn.Identity, lambda m, b: b[0].sum(), splits, horizon=horizon, batch_size=batch_size
    )


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (make_task, {"batch_size": 5}, "between 1 and the 4 rows of the train split, but got 5"),
        (make_task, {"horizon": 0}, "positive number of steps, but got 0"),
        (
            make_task,
            {"test": (torch.zeros(0, 2), torch.zeros(0))},
            "'test' needs the same positive",
        ),
        (make_task, {"train": ROWS[0]}, "'train' must be a non-empty tuple of tensors"),
        (OptimizerConfig, {"lr": -1.0}, "lr must be a positive number, but got -1.0"),
        (OptimizerConfig, {"momentum": 1.0}, r"momentum must lie in \[0, 1\), but got 1.0"),
        (OptimizerConfig, {"name": "adagrad"}, "of adamw, adam, sgd, rmsprop, but got 'adagrad'"),
        (OptimizerConfig, {"eps": -1e-8}, "eps must be zero or positive"),
        (TeacherRanges, {"hidden": (64, 8)}, r"hidden of .* low <= high, but got \(64, 8\)"),
        (TeacherRanges, {"horizon": ()}, r"horizon of .* must be a pair .* but got \(\)"),
        (TeacherRanges, {"gain": (0.5, math.nan)}, r"finite numbers .* but got \(0.5, nan\)"),
        (TeacherRanges, {"num_train": (4, 8)}, "batch_size must not .* smallest num_train, 4"),
        (TeacherRanges, {"batch_size": (0, 8)}, r"must start at 1 or more, but got \(0, 8\)"),
        (TeacherRanges, {"sgd_share": 1.5}, r"sgd_share must lie in \[0, 1\], but got 1.5"),
        (TeacherRanges, {"sgd_share": 0.9}, "must not exceed 1 together"),
        (TeacherRanges, {"work": -1.0}, "work must be zero or positive"),
    ],
)
def test_bad_input_is_refused_with_what_came(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        require("no_such_package_anywhere.part", extra="compare")
