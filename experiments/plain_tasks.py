"""A task from the parts of an ordinary training script: a model, loaders and a loss.

What each part may be is defined in `own_tasks`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pacesetter.experiments.task_checks import same_batches
from pacesetter.inner_models.lookup import short
from pacesetter.inner_models.losses import ACCURACY
from pacesetter.inner_models.task import Batch, LossFn, ModuleTask, Splits, Task

EPOCHS = 10
"""Times that a run goes through the training rows where nothing says how long it is."""
BATCH_SIZE = 32
"""Rows of a batch where nothing says how many."""
MODEL_NAMES = ("model", "module", "net", "network")
"""First parameters of a loss that takes the model."""


def plain_task(
    model: nn.Module | Callable[[], nn.Module],
    loaders: Any,
    loss: Callable[..., Tensor],
    options: Mapping[str, Any] | None = None,
) -> Task:
    """A task from the parts of an ordinary training script; the module's docstring defines them.

    Args:
        model: a factory or a module.
        loaders: train, valid and test.
        loss: ``loss(output, target)`` or ``loss(model, batch)``.
        options: further arguments of `ModuleTask`, and ``allow_overlap``.

    Raises:
        ValueError: a part is missing or of the wrong kind.
    """
    options = dict(options or {})
    sources = _named(loaders)
    data = {name: _rows(source, name) for name, source in sources.items()}
    if "valid" in data:
        valid = data.pop("valid")
        if len(valid[0]) < 2:
            raise ValueError(f"the valid split needs two rows or more, but got {len(valid[0])}")
        data["inner_valid"] = tuple(t[0::2].clone() for t in valid)
        data["outer_valid"] = tuple(t[1::2].clone() for t in valid)
    splits = Splits(
        data["train"],
        data["inner_valid"],
        data["outer_valid"],
        data["test"],
        allow_overlap=bool(options.pop("allow_overlap", False)),
    )
    rows = splits.num_rows("train")
    size = getattr(sources["train"], "batch_size", None)
    options.setdefault("batch_size", min(size or BATCH_SIZE, rows))
    options.setdefault("horizon", EPOCHS * math.ceil(rows / options["batch_size"]))
    if _classifies(loss, splits.train):
        options.setdefault("metric", ACCURACY)
    try:
        return ModuleTask(_factory(model), _loss(loss), splits, **options)
    except TypeError as error:
        known = [p for p in inspect.signature(ModuleTask).parameters if p not in _POSITIONAL]
        raise ValueError(
            f"options must be arguments of ModuleTask ({', '.join(known)}) or allow_overlap, but "
            f"got {sorted(options)}: {error}"
        ) from error


_POSITIONAL = ("build_model", "loss", "splits")


def _named(loaders: Any) -> dict[str, Any]:
    """Loaders by the name of their split."""
    if isinstance(loaders, Sequence) and len(loaders) == 3:
        loaders = dict(zip(("train", "valid", "test"), loaders, strict=True))
    if not isinstance(loaders, Mapping):
        raise ValueError(
            "loaders must be (train, valid, test) or a dict with these keys, but got "
            f"{what(loaders)}. The validation split is what settings are chosen by: without one, "
            "cut it from the training data, such as with torch.utils.data.random_split"
        )
    wanted: tuple[str, ...] = ("train", "inner_valid", "outer_valid", "test")
    if "valid" in loaders:
        wanted = ("train", "valid", "test")
    missing = [name for name in wanted if loaders.get(name) is None]
    if "valid" not in loaders and {"inner_valid", "outer_valid"} <= set(missing):
        missing = ["valid", *(name for name in missing if "valid" not in name)]
    unknown = sorted(str(name) for name in set(loaders) - set(wanted))
    if missing or unknown:
        raise ValueError(
            f"loaders must have train, valid and test, but {', '.join(missing) or 'none'} is "
            f"missing; got {', '.join(map(str, loaders))}. Settings are chosen on valid and "
            "reported on test: cut what is missing from the training data, such as with "
            "torch.utils.data.random_split"
        )
    return {name: loaders[name] for name in wanted}


def _rows(source: Any, split: str) -> Batch:
    """All rows of a split, each tensor (num_rows, ...)."""
    if isinstance(source, Tensor):
        return (source,)
    if isinstance(source, tuple | list) and source and all(isinstance(t, Tensor) for t in source):
        return tuple(source)
    loader = source
    if isinstance(source, Dataset):
        loader = DataLoader(source, batch_size=256)
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"{split} must be a DataLoader, a Dataset or a tuple of tensors such as "
            f"(inputs, targets), but got {what(source)}"
        )
    data = loader.dataset
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{split} must be a data set of known length, but got the IterableDataset "
            f"{type(data).__name__}: collect its rows, or return a ModuleTask with fresh_rows"
        )
    if isinstance(data, TensorDataset) and isinstance(source, Dataset):
        return tuple(data.tensors)
    size = loader.batch_size or 256
    in_order = DataLoader(data, batch_size=size, collate_fn=loader.collate_fn)
    try:
        batches = [_as_batch(batch, split) for batch in in_order]
        again = _as_batch(next(iter(in_order)), split)
    except StopIteration:
        raise ValueError(f"{split} has no rows") from None
    if not same_batches(batches[0], again):
        raise ValueError(
            f"the rows of {split} change from one reading to the next (augmentation?). They are "
            "read once and kept: put what is random into the model, where it is off in evaluation"
        )
    try:
        return tuple(torch.cat(column) for column in zip(*batches, strict=True))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"all rows of {split} must have one shape, so that they can be kept as one tensor, but "
            f"got an error: {short(error)}"
        ) from error


def _as_batch(batch: Any, split: str) -> Batch:
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, tuple | list) and all(isinstance(t, Tensor) for t in batch):
        return tuple(batch)
    raise ValueError(
        f"a batch of {split} must be a tensor or a tuple of tensors, but got {what(batch)}; give "
        "the loader a collate_fn that returns one"
    )


def _factory(model: Any) -> Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return partial(copy.deepcopy, model)
    if not callable(model):
        raise ValueError(
            "model must be a function without arguments that makes an nn.Module, or an nn.Module, "
            f"but got {what(model)}"
        )
    return model  # type: ignore[no-any-return]


def _loss(loss: Any) -> LossFn:
    if not callable(loss):
        raise ValueError(f"loss must be a function, but got {what(loss)}")
    first = ""
    if not isinstance(loss, nn.Module):
        try:
            first = next(iter(inspect.signature(loss).parameters), "")
        except (TypeError, ValueError):  # a builtin has no signature
            first = ""
    return loss if first in MODEL_NAMES else partial(_output_loss, loss)


def _classifies(loss: Any, batch: Batch) -> bool:
    """Whether accuracy means something: cross entropy of one label per row."""
    known = isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy
    return known and len(batch) == 2 and batch[1].ndim == 1 and not batch[1].is_floating_point()


def _output_loss(loss: Callable[[Any, Tensor], Tensor], model: nn.Module, batch: Batch) -> Tensor:
    return loss(model(*(batch[:-1] or batch)), batch[-1])


def what(value: Any) -> str:
    """What kind of thing came, for a message."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
