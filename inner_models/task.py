"""What an inner run trains: model, data, loss and the settings that the user's job would fix.

A `ModuleTask` brings any ``nn.Module`` factory and a loss written as a user writes it. A
`TaskFamily` is a distribution of tasks, sampled in two stages: a *shape* (everything that decides
the sizes of tensors) and then any number of tasks of that shape, so that runs of one shape can be
trained as a single tensor program.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import combinations
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Tensors that share their first dimension, one row per example."""

LossFn = Callable[[nn.Module, Batch], Tensor]
"""``loss(model, batch)``, returning one number: the mean over the rows of the batch."""

Finish = Callable[[float], float]
"""From a mean over all rows to what is reported."""

RowsFn = Callable[[int, torch.Generator], Batch]
"""``rows(count, generator)``: `count` fresh rows of a task's data."""

SplitName = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "inner_valid", "outer_valid", "test")

OptimizerName = Literal["adamw", "adam", "sgd", "rmsprop"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adam", "sgd", "rmsprop")

_CHUNK = 2**20  # numbers that the search for equal rows holds in double precision at a time


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The base optimizer of an inner run, as the user's job would have set it up.

    Attributes:
        name: ``"adamw"``, ``"adam"``, ``"sgd"`` or ``"rmsprop"`` (the last two with momentum).
        lr: learning rate at the start, per inner step.
        momentum: ``betas[0]`` of AdamW and Adam, ``momentum`` of SGD and RMSprop.
        beta2: second-moment decay, RMSprop's ``alpha``; SGD ignores it.
        eps: denominator constant; SGD ignores it.
        weight_decay: decoupled for AdamW, added to the gradient for the others, as in
            `torch.optim`.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer name must be one of {', '.join(OPTIMIZERS)}, but got {self.name!r}"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, but got {self.lr!r}")
        for name in ("momentum", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), but got {value!r}")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be zero or positive, but got {value!r}")


@dataclass(frozen=True)
class Splits:
    """The four data splits of a task, each a tuple of tensors with one row per example.

    Attributes:
        train: what the inner run learns from.
        inner_valid: what the agent may observe while the run goes on.
        outer_valid: the reward, the choice of a policy, the tuning of baselines.
        test: read once, for reported results.
        allow_overlap: accept splits that share memory or rows: data in which rows recur by nature.

    Raises:
        ValueError: a split is empty, its tensors differ in their number of rows, or two splits
            overlap.
    """

    train: Batch
    inner_valid: Batch
    outer_valid: Batch
    test: Batch
    _: KW_ONLY
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for name in SPLITS:
            split = getattr(self, name)
            if not isinstance(split, tuple | list) or not split:
                raise ValueError(
                    f"split {name!r} must be a non-empty tuple of tensors, such as "
                    f"(inputs, targets), but got {type(split).__name__}"
                )
            rows = [len(t) for t in split]
            if min(rows) == 0 or len(set(rows)) > 1:
                raise ValueError(
                    f"every tensor of split {name!r} needs the same positive number of rows, "
                    f"but got {rows}"
                )
        if not self.allow_overlap:
            check_disjoint({name: getattr(self, name) for name in SPLITS})

    def digest(self) -> str:
        """SHA-256 of the data: of shapes, types and every byte of every split."""
        total = hashlib.sha256()
        for name in SPLITS:
            for tensor in getattr(self, name):
                array = tensor.detach().cpu().contiguous().numpy()
                total.update(f"{name} {array.dtype} {array.shape}".encode())
                total.update(array.tobytes())
        return total.hexdigest()

    def num_rows(self, split: SplitName) -> int:
        batch: Batch = getattr(self, split)
        return len(batch[0])


@dataclass(frozen=True)
class Metric:
    """What people quote of a model of this task, beside its loss.

    Attributes:
        name: such as ``"accuracy"``.
        measure: ``measure(model, batch)``, one number like a loss: a mean over the rows of the
            batch, by operations that `torch.func.vmap` batches.
        finish: applied to the mean over a whole split; None: nothing is.
        higher_is_better: whether more of it is better.
    """

    name: str
    measure: LossFn
    finish: Finish | None = None
    _: KW_ONLY
    higher_is_better: bool = True

    def value(self, mean: float) -> float:
        return mean if self.finish is None else self.finish(mean)


@dataclass(frozen=True)
class ModuleTask:
    """One task: any `nn.Module`, its data and its loss.

    Attributes:
        build_model: makes a freshly initialised module. It is called with torch's global generator
            seeded from `seed` (and restored afterwards): ordinary initialisation code works.
        loss: ``loss(model, batch)``, one number.
        splits: the data.
        horizon: inner steps of a run.
        batch_size: rows per inner step, at most the rows of ``splits.train``.
        optimizer: the base optimizer.
        name: how tables call the task.
        seed: fixes initial weights, batch order and dropout masks. None: drawn per episode.
        valid_every: intervals between losses on ``inner_valid`` that the agent observes; 0: none.
        fresh_rows: draws training rows anew for every step, so that none is seen twice; the train
            split is then only for evaluation. None: batches are drawn from the train split.
        optimum: least possible expected loss on new data, where it is known; excess losses are
            measured from it.
        metric: what is reported beside the loss. None: what `losses.metric_of` knows of its loss.

    Raises:
        ValueError: a setting is out of its range.
    """

    build_model: Callable[[], nn.Module]
    loss: LossFn
    splits: Splits
    _: KW_ONLY
    horizon: int
    batch_size: int = 32
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    name: str = "task"
    seed: int | None = None
    valid_every: int = 0
    fresh_rows: RowsFn | None = None
    optimum: float | None = None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        for name, (kind, what) in _FIELDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                came = value if isinstance(value, str | int | float) else type(value).__name__
                raise ValueError(f"{name} must be {what}, but got {came!r}")
        rows = self.splits.num_rows("train")
        if self.horizon < 1:
            raise ValueError(f"horizon must be a positive number of steps, but got {self.horizon}")
        if not 1 <= self.batch_size <= rows:
            raise ValueError(
                f"batch_size must lie between 1 and the {rows} rows of the train split, "
                f"but got {self.batch_size}"
            )
        if self.valid_every < 0:
            raise ValueError(f"valid_every must be zero or positive, but got {self.valid_every}")

    def with_seed(self, seed: int) -> ModuleTask:
        """The same task with other initial weights, batch order and dropout masks."""
        return replace(self, seed=seed)

    def with_optimizer(self, **changes: Any) -> ModuleTask:
        """The same task with some settings of its base optimizer replaced."""
        return replace(self, optimizer=replace(self.optimizer, **changes))


_FIELDS: dict[str, tuple[Any, str]] = {
    "build_model": (Callable, "a function that makes an nn.Module"),
    "loss": (Callable, "a function"),
    "splits": (Splits, "Splits"),
    **dict.fromkeys(("horizon", "batch_size", "valid_every"), (Integral, "a whole number")),
    "optimizer": (
        OptimizerConfig,
        "an OptimizerConfig, such as OptimizerConfig(name='sgd', lr=0.1)",
    ),
    "name": (str, "a text"),
    "seed": (Integral | None, "a whole number, or None"),
    "fresh_rows": (Callable | None, "a function, or None"),
    "optimum": (Real | None, "a number, or None"),
    "metric": (Metric | None, "a Metric, or None"),
}
"""Kinds of a task's settings."""

Task = ModuleTask
"""Every task is a module task: signatures say `Task`, who brings a task says `ModuleTask`."""


def check_shapes(tasks: Sequence[Task]) -> None:
    """Checks that tasks can be trained as one tensor program.

    Raises:
        ValueError: they differ in something that all of it has to share.
    """

    def shape(task: Task) -> tuple[object, ...]:
        rows = tuple(task.splits.num_rows(name) for name in SPLITS)
        o = task.optimizer
        settings = (o.name, o.beta2, o.eps, o.weight_decay)
        return task.horizon, task.batch_size, rows, settings, task.fresh_rows is not None

    first = shape(tasks[0])
    for task in tasks[1:]:
        if shape(task) != first:
            raise ValueError(
                "tasks trained together must agree in (horizon, batch size, rows of splits, "
                f"optimizer, endless data), but got {first} and {shape(task)}"
            )


class TaskFamily(ABC):
    """A distribution of tasks.

    Subclasses say how to draw a *shape* and how to build a task of a given shape. Tasks of one
    shape agree in everything that decides tensor sizes or code paths (architecture, rows of each
    split, batch size, horizon, kind of optimizer) and differ in everything else.
    """

    name: str

    @abstractmethod
    def sample_shape(self, generator: torch.Generator) -> Any:
        """Draws what all tasks of one group share."""

    @abstractmethod
    def build(self, shape: Any, generator: torch.Generator) -> Task:
        """Builds one task of the given shape, with a seed of its own."""

    def sample(self, generator: torch.Generator) -> Task:
        """Draws one task."""
        return self.build(self.sample_shape(generator), generator)

    def sample_group(self, num_tasks: int, generator: torch.Generator) -> list[Task]:
        """Draws `num_tasks` tasks of one shape, which one `InnerTrainer` can train together."""
        shape = self.sample_shape(generator)
        return [self.build(shape, generator) for _ in range(num_tasks)]


def check_disjoint(splits: Mapping[str, Batch]) -> None:
    """Checks that no row is in two splits: a test loss on training rows would be worth nothing.

    Splits that share memory overlap, whatever they hold. Equal rows are looked for where the data
    have real numbers in them; rows of integers alone (text, say) recur by nature.

    Args:
        splits: tensors with one row per example, by the split's name.

    Raises:
        ValueError: two splits overlap; the message says by how many rows.
    """
    sums = {name: _fingerprints(batch) for name, batch in splits.items()}
    for (first, left), (second, right) in combinations(splits.items(), 2):
        shared = _shared_memory(left[0], right[0])
        own, other = sums[first], sums[second]
        if not shared and own is not None and other is not None:
            shared = int(torch.isin(own, other).sum())
        if shared:
            raise ValueError(
                f"splits must not overlap, but {first!r} and {second!r} share {shared} rows; where "
                "rows recur by nature, say so with Splits(..., allow_overlap=True)"
            )


def _shared_memory(left: Tensor, right: Tensor) -> int:
    """Rows of `left` that begin where a row of `right` does."""
    if left.device != right.device:
        return 0
    return int(torch.isin(_row_addresses(left), _row_addresses(right)).sum())


def _row_addresses(tensor: Tensor) -> Tensor:
    stride = tensor.stride(0) * tensor.element_size() if tensor.ndim else 0
    return tensor.data_ptr() + stride * torch.arange(len(tensor))


def _fingerprints(batch: Batch) -> Tensor | None:
    """One number per row, equal for equal rows; None where no tensor holds real numbers."""
    if not any(t.is_floating_point() for t in batch):
        return None
    total = torch.zeros(len(batch[0]), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for tensor in batch:
        rows = tensor.detach().flatten(1) if tensor.ndim > 1 else tensor.detach()[:, None]
        weights = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
        step = max(1, _CHUNK // max(1, rows.shape[1]))
        for part, sums in zip(rows.split(step), total.split(step), strict=True):
            # Not a matrix product: its rounding may depend on how many rows there are.
            sums += (part.to("cpu", torch.float64) * weights).sum(1)
    return total
