"""Tasks and their parts: splits that do not overlap, ranges, losses, bad input."""

import numpy as np
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
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        require("no_such_package_anywhere.part", extra="compare")
