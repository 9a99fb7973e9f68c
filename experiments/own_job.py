"""A user's own training job as a task: ``pacesetter compare --task my_module:make_task``.

`make_task` takes no argument, or one named ``seed`` (of the comparison), and returns either a
`ModuleTask` or a plain tuple ``(model, loaders, loss)``, or ``(model, loaders, loss, options)``:

model
    A factory, ``() -> nn.Module``, called once per seed with torch's global generator seeded: every
    arm starts from the same weights, another seed from others. Or a module: then every run starts
    from the weights that it has (fine-tuning), and seeds differ in batch order and dropout alone.
loaders
    Train, valid and test, as a tuple in this order or a dict with these keys; a dict may have
    ``inner_valid``, which schedules look at, and ``outer_valid``, by which settings are chosen,
    instead of ``valid``, whose rows go to both in turn. Each is a `DataLoader`, a `Dataset`, or a
    tuple of tensors with one row per example. Every row is read once and kept in memory; the
    training loader's batch size is the runs'. What is drawn anew at every reading (augmentation)
    is refused: put it into the model, which has a training mode.
loss
    Returns one number, the mean over the rows of a batch. ``loss(output, target)``, such as
    ``nn.CrossEntropyLoss()``, is called with ``model(*inputs)`` and the last tensor of the batch,
    the inputs being all others; a batch of one tensor is both. ``loss(model, batch)`` is called
    with the model and the tuple of tensors. The second form is taken where the first parameter is
    called ``model``, ``module``, ``net`` or ``network``.
options
    A dict of further arguments of `ModuleTask`, such as ``{"horizon": 500, "batch_size": 64}``, and
    ``allow_overlap`` of `Splits`. Without a horizon, a run goes `EPOCHS` times through the training
    rows.

Before anything is trained, `check_task` runs it for a moment.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.lookup import call_failed, import_attribute, short, split_spec
from pacesetter.inner_models.losses import ACCURACY
from pacesetter.inner_models.task import SPLITS, Batch, LossFn, ModuleTask, SplitName, Splits, Task

EPOCHS = 10
"""Times that a run goes through the training rows where nothing says how long it is."""
BATCH_SIZE = 32
"""Rows of a batch where nothing says how many."""
MODEL_NAMES = ("model", "module", "net", "network")
"""First parameters of a loss that takes the model."""
PROBE_SEED = 0
"""Of the models that a task is tried with; the first seed of every report."""
PROBE_ROWS = 1024
"""Rows on which the loss is tried at a time."""

Result = TypeVar("Result")

_FORMS = (
    "a ModuleTask, or a tuple (model, loaders, loss) with loaders (train, valid, test); see the "
    "docstring of pacesetter.experiments.own_job"
)


def own_task(spec: str, *, seed: int = 0, steps: int | None = None) -> Task:
    """The task that a user's function ``"module:function"`` makes, checked.

    The module is looked for in the working directory as well. The seed is given to the function
    where it takes one, and to torch's global generator meanwhile.

    Raises:
        ValueError: there is no such function, or what it makes cannot be compared on; the message
            says what came and how to fix it.
    """
    make = import_attribute(
        *split_spec(spec, "--task must be module:function, such as my_module:make_task"),
        kind="function",
    )
    try:
        if not callable(make):
            raise ValueError(f"{spec} must be a function, but is a {type(make).__name__}")
        first, second = (_made(make, spec, seed) for _ in range(2))
        if first.splits.digest() != second.splits.digest():
            raise ValueError(
                f"{spec} must make the same data every time, but two calls made different ones. "
                "Draw and split them with a generator that has a seed of its own, such as "
                "torch.Generator().manual_seed(0) or random_state=0"
            )
        name = spec.replace(":", "/") if first.name == ModuleTask.name else first.name
        task = replace(first, name=name, horizon=steps or first.horizon)
        check_task(task)
    except ValueError:
        raise
    except Exception as error:
        raise call_failed(f"trying {spec}", error) from error
    return task


def _made(make: Callable[..., Any], spec: str, seed: int) -> Task:
    """What the function makes, as a task; torch's global generator is left as it was."""
    takes_seed = "seed" in _parameters(make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = make(seed=seed) if takes_seed else make()
        except Exception as error:
            raise call_failed(f"{spec}()", error) from error
        if isinstance(made, ModuleTask):
            return made
        if not isinstance(made, Sequence) or len(made) not in (3, 4):
            raise ValueError(f"{spec} must return {_FORMS}; but got {_what(made)}")
        return plain_task(*made)


def plain_task(
    model: nn.Module | Callable[[], nn.Module],
    loaders: Any,
    loss: Callable[..., Tensor],
    options: Mapping[str, Any] | None = None,
) -> Task:
    """A task from the parts of a training script; ValueError where one is missing or wrong."""
    options = dict(options or {})
    sources = _named(loaders)
    data = {name: _rows(source, name) for name, source in sources.items()}
    if "valid" in data:
        valid = data.pop("valid")
        if len(valid[0]) < 2:
            raise ValueError(f"the valid split needs two rows or more, but got {len(valid[0])}")
        data["inner_valid"] = tuple(t[0::2].clone() for t in valid)
        data["outer_valid"] = tuple(t[1::2].clone() for t in valid)
    splits = Splits(**data, allow_overlap=bool(options.pop("allow_overlap", False)))
    rows = splits.num_rows("train")
    size = getattr(sources["train"], "batch_size", None)
    size = options.setdefault("batch_size", min(size or BATCH_SIZE, rows))
    sound = isinstance(size, int) and size > 0  # else the task refuses it
    options.setdefault("horizon", EPOCHS * math.ceil(rows / size) if sound else 1)
    if _classifies(loss, splits.train):
        options.setdefault("metric", ACCURACY)
    try:
        task = ModuleTask(_factory(model), _loss(loss), splits, **options)
    except TypeError as error:
        known = list(inspect.signature(ModuleTask).parameters)[3:]
        raise ValueError(
            f"options must be arguments of ModuleTask ({', '.join(known)}) or allow_overlap, but "
            f"got {sorted(options)}: {error}"
        ) from error
    if isinstance(model, nn.Module):  # a lazy one can be copied only when it has its shapes
        build_model(replace(task, build_model=lambda: model, seed=PROBE_SEED))
    return task


def _named(loaders: Any) -> dict[str, Any]:
    if isinstance(loaders, Sequence) and len(loaders) == 3:
        loaders = dict(zip(("train", "valid", "test"), loaders, strict=True))
    if not isinstance(loaders, Mapping):
        raise ValueError(
            "loaders must be (train, valid, test) or a dict with these keys, but got "
            f"{_what(loaders)}. The validation split is what settings are chosen by: without one, "
            "cut it from the training data, such as with torch.utils.data.random_split"
        )
    wanted: tuple[str, ...] = ("train", "valid", "test")
    if "valid" not in loaders and {"inner_valid", "outer_valid"} & set(loaders):
        wanted = ("train", "inner_valid", "outer_valid", "test")
    missing = [name for name in wanted if loaders.get(name) is None]
    if missing or set(loaders) - set(wanted):
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
    loader = DataLoader(source, batch_size=256) if isinstance(source, Dataset) else source
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"{split} must be a DataLoader, a Dataset or a tuple of tensors such as "
            f"(inputs, targets), but got {_what(source)}"
        )
    data = loader.dataset
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"{split} must be a data set of known length, but got the IterableDataset "
            f"{type(data).__name__}: collect its rows, or return a ModuleTask with fresh_rows"
        )
    if isinstance(data, TensorDataset) and isinstance(source, Dataset):
        return tuple(data.tensors)
    in_order = DataLoader(data, batch_size=loader.batch_size or 256, collate_fn=loader.collate_fn)
    try:
        read = [*in_order, next(iter(in_order), None)]
    except Exception as error:
        raise _unreadable(data, loader.collate_fn, split, error) from error
    if len(read) < 2:
        raise ValueError(f"{split} has no rows")
    *batches, again = [_as_batch(batch, split) for batch in read]
    if not all(map(_same, batches[0], again)):
        raise ValueError(
            f"the rows of {split} change from one reading to the next (augmentation?). They are "
            "read once and kept: put what is random into the model, where it is off in evaluation"
        )
    try:
        return tuple(torch.cat(column) for column in zip(*batches, strict=True))
    except (RuntimeError, ValueError) as error:
        raise _unreadable(data, loader.collate_fn, split, error) from error


def _unreadable(
    data: Any, collate: Callable[[Any], Any], split: str, error: Exception
) -> ValueError:
    """The error to raise where rows cannot be read, or laid together; it names the first one."""
    first = None
    for i in range(len(data) if hasattr(data, "__len__") else 0):
        try:
            shapes = [tuple(t.shape) for t in _as_batch(collate([data[i]]), split)]
        except Exception as reason:
            return ValueError(
                f"row {i} of {split} cannot be read: {type(reason).__name__}: {short(reason)}. "
                "Fix it or leave it out, such as with torch.utils.data.Subset"
            )
        first = shapes if first is None else first
        if shapes != first:
            was, now = ([shape[1:] for shape in row] for row in (first, shapes))
            return ValueError(
                f"all rows of {split} must have one shape, so that they can be kept as one tensor, "
                f"but row 0 has {was} and row {i} has {now}: pad or cut them to one length, in the "
                "data set or in a collate_fn of its loader"
            )
    return call_failed(f"reading the rows of {split}", error)


def _as_batch(batch: Any, split: str) -> Batch:
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, tuple | list) and all(isinstance(t, Tensor) for t in batch):
        return tuple(batch)
    raise ValueError(
        f"a batch of {split} must be a tensor or a tuple of tensors, but got {_what(batch)}; give "
        "the loader a collate_fn that returns one"
    )


def _factory(model: Any) -> Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return partial(copy.deepcopy, model)
    if not callable(model):
        raise ValueError(
            "model must be a function without arguments that makes an nn.Module, or an nn.Module, "
            f"but got {_what(model)}"
        )
    return model  # type: ignore[no-any-return]


def _loss(loss: Any) -> LossFn:
    if not callable(loss):
        raise ValueError(f"loss must be a function, but got {_what(loss)}")
    first = "" if isinstance(loss, nn.Module) else next(iter(_parameters(loss)), "")
    return loss if first in MODEL_NAMES else partial(_output_loss, loss)


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin has no signature
        return []


def _classifies(loss: Any, batch: Batch) -> bool:
    """Whether accuracy means something: cross entropy of one label per row."""
    known = isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy
    return known and len(batch) == 2 and batch[1].ndim == 1 and not batch[1].is_floating_point()


def _output_loss(loss: Callable[[Any, Tensor], Tensor], model: nn.Module, batch: Batch) -> Tensor:
    return loss(model(*(batch[:-1] or batch)), batch[-1])


def _what(value: Any) -> str:
    kind = f"a {type(value).__name__}"
    if isinstance(value, tuple | list):
        kind += f" of {len(value)} ({', '.join({type(v).__name__: 0 for v in value})})"
    return kind + " (torch.from_numpy makes a tensor of an array)" * ("ndarray" in kind)


def check_task(task: Task) -> None:
    """Builds the task's model, takes its loss on all rows of every split and one gradient.

    Raises:
        ValueError: the factory makes no module, nothing in it can be trained, or its weights differ
            between two calls under one seed; the loss fails, is not one number, is not finite at
            the start, changes between two readings of the same rows, adds up over rows, or does
            not depend on the weights. The message says what came and how to fix it.
    """
    model, again = (_build(task) for _ in range(2))
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"the model of {task.name!r} has no parameter to train")
    state, other = model.state_dict(), again.state_dict()
    changed = [
        name
        for name in dict.fromkeys((*state, *other))
        if name not in state or name not in other or not _same(state[name], other[name])
    ]
    if changed:
        raise ValueError(
            f"the model factory of {task.name!r} must make the same weights under the same seed, "
            f"but {', '.join(changed[:3])} differed between two calls. torch's global generator is "
            "seeded for it: draw from that alone, not from NumPy's, Python's or one of your own"
        )
    model.eval()
    # Of test too, where nothing but an error is read off: better now than after all tuning.
    for split in SPLITS:
        starts = range(0, task.splits.num_rows(split), PROBE_ROWS)
        values = [_loss_from(task, model, split, start) for start in (*starts, 0)]
        if not _same(values[0], values[-1]):
            raise ValueError(
                f"the loss of {task.name!r} on the same rows of {split} and the same weights came "
                "out differently the second time, in evaluation mode. Randomness belongs into "
                "modules that are off in evaluation, such as nn.Dropout"
            )
    batch = _probe_rows(task, "train", 0, task.batch_size)
    once = float(_probe_loss(task, model, batch, "train"))
    thrice = float(_probe_loss(task, model, tuple(torch.cat([t] * 3) for t in batch), "train"))
    if once and math.isclose(thrice, 3 * once, rel_tol=1e-3):
        raise ValueError(
            f"the loss of {task.name!r} must be the mean over the rows of a batch, but it adds up: "
            f"{len(batch[0])} rows of train have {once:.4g}, the same rows three times over have "
            f"{thrice:.4g}. Use reduction='mean', or divide by the number of rows"
        )
    model.train()
    loss = _probe_loss(task, model, batch, "train")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of {task.name!r} does not depend on the model's parameters: look for "
            "detach(), item() or no_grad() in the loss"
        )
    grads: Sequence[Tensor | None] = _or_else(
        lambda: torch.autograd.grad(loss, trained, allow_unused=True),
        f"the gradient of the loss of {task.name!r} cannot be taken",
    )
    known = [g.to_dense() for g in grads if g is not None]
    if not known or not all(bool(torch.isfinite(g).all()) for g in known):
        raise ValueError(
            f"the gradient of {task.name!r} must be finite at the start, but it is not: look for "
            "a square root or a logarithm of zero in the loss"
        )
    if not any(bool(g.any()) for g in known):
        raise ValueError(
            f"the gradient of {task.name!r} is zero at the start, so that nothing would be "
            "learned: look for rounding or argmax in the loss, and for weights that are all zero"
        )


def _build(task: Task) -> nn.Module:
    model: object = _or_else(
        lambda: build_model(task.with_seed(PROBE_SEED)),
        f"the model factory of {task.name!r} failed",
    )
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the model factory of {task.name!r} must return an nn.Module, but got "
            f"{type(model).__name__}"
        )
    return model.float()  # as the runs have it


def _probe_rows(task: Task, split: SplitName, start: int, count: int) -> Batch:
    batch: Batch = getattr(task.splits, split)
    part = (t[start : start + count] for t in batch)
    return tuple(t.float() if t.is_floating_point() else t for t in part)


def _loss_from(task: Task, model: nn.Module, split: SplitName, start: int) -> Tensor:
    """The loss on rows from `start` on; an error names the first row that is at fault by itself."""
    batch, failed = _probe_rows(task, split, start, PROBE_ROWS), []
    try:
        return _probe_loss(task, model, batch, split)
    except ValueError:
        for i in range(len(batch[0])):
            row = start + i
            # The rows of valid go in turn to two splits.
            given = {"inner_valid": 2 * row, "outer_valid": 2 * row + 1}.get(split)
            where = f"row {row} of {split}" + (f" (row {given} of valid)" if given else "")
            try:
                _probe_loss(task, model, tuple(t[i : i + 1] for t in batch), where)
            except ValueError as error:
                failed.append(error)
        if 0 < len(failed) < len(batch[0]):
            raise failed[0] from None
        raise


def _probe_loss(task: Task, model: nn.Module, batch: Batch, where: str) -> Tensor:
    if not all(bool(t.isfinite().all()) for t in batch if t.is_floating_point()):
        raise ValueError(
            f"{where} of {task.name!r} has NaN or infinity in it: fill the gaps, or leave rows out"
        )
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(model.training):
        value: object = _or_else(
            lambda: task.loss(model, batch),
            f"the loss of {task.name!r} failed on {where}",
            "look at the row, or at the loss: it is called as loss(output, target), or as "
            "loss(model, batch) where its first parameter is called model",
        )
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the loss of {task.name!r} must be a tensor with one number, the mean over the rows "
            f"of a batch, but on {where} it is {came}: use reduction='mean', or .mean()"
        )
    if not bool(value.isfinite()):
        raise ValueError(
            f"the loss of {task.name!r} must be finite at the start, but on {where} it is "
            f"{value.item()}. Look for targets out of range, for logarithms of zero, and for "
            "weights that start too large"
        )
    return value


def _or_else(call: Callable[[], Result], what: str, hint: str = "") -> Result:
    """What a user's code returns; whatever it raises becomes an error of the user's."""
    try:
        return call()
    except Exception as error:
        reason = f"{what} with {type(error).__name__}: {short(error)}"
        raise ValueError(reason + (f" ({hint})" if hint else "")) from error


def _same(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # NaN is not equal to itself; what is not finite is refused elsewhere.
    return torch.equal(one.detach().nan_to_num(), other.detach().nan_to_num())
