"""Refuses tasks that a comparison cannot be made on, before hours are spent on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.task import SPLITS, Batch, SplitName, Task

PROBE_SEED = 0
"""Of the models that a task is tried with; the first seed of every report."""
PROBE_ROWS = 1024
"""Rows of a split, training aside, on which the loss is tried."""

Result = TypeVar("Result")


def check_task(task: Task) -> None:
    """Builds the task's model, takes its loss on every split and one gradient.

    Args:
        task: a user's, or a bundled one.

    Raises:
        ValueError: the factory makes no module, nothing in it can be trained, or its weights differ
            between two calls under one seed; the loss is not one number, is not finite at the
            start, changes between two readings of the same rows, or does not depend on the
            weights. The message says what came and how to mend it.
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
            f"but {_some(changed)} differed between two calls. torch's global generator is seeded "
            "for it: draw from that, and from no generator of your own, of NumPy's or of Python's"
        )
    for split in SPLITS:
        rows: Batch = getattr(task.splits, split)
        numbers = [t for t in rows if t.is_floating_point()]
        if not all(bool(torch.isfinite(t).all()) for t in numbers):
            raise ValueError(f"the rows of {split} of {task.name!r} have NaN or infinity in them")
    model.eval()
    # Of test too, where nothing but an error is read off: better now than after all tuning.
    for split in SPLITS:
        value = _loss(task, model, _rows(task, split), split)
        if not bool(torch.isfinite(value)):
            raise ValueError(
                f"the loss of {task.name!r} must be finite at the start, but on {split} it is "
                f"{value.item()}. Look for NaN in the data, for targets out of range, and for "
                "weights that start too large"
            )
        if not _same(value, _loss(task, model, _rows(task, split), split)):
            raise ValueError(
                f"the loss of {task.name!r} on the same rows of {split} and the same weights came "
                "out differently the second time, in evaluation mode. Randomness belongs into "
                "modules that are off in evaluation, such as nn.Dropout"
            )
    model.train()
    loss = _loss(task, model, _rows(task, "train"), "train")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of {task.name!r} does not depend on the model's parameters: look for "
            "detach(), item() or no_grad() in the loss"
        )
    grads: Sequence[Tensor | None] = _or_else(
        lambda: torch.autograd.grad(loss, trained, allow_unused=True),
        f"the gradient of the loss of {task.name!r} cannot be taken",
    )
    known = [g for g in grads if g is not None]
    if not known or not all(bool(torch.isfinite(g).all()) for g in known):
        raise ValueError(
            f"the gradient of {task.name!r} must be finite at the start, but it is not: look for "
            "a square root or a logarithm of zero in the loss"
        )


def same_batches(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same numbers; NaN equals NaN."""
    return len(one) == len(other) and all(map(_same, one, other))


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
    return model


def _rows(task: Task, split: SplitName) -> Batch:
    """The first batch of the train split, as one would train on it; more rows of the others."""
    batch: Batch = getattr(task.splits, split)
    return tuple(t[: task.batch_size if split == "train" else PROBE_ROWS] for t in batch)


def _loss(task: Task, model: nn.Module, batch: Batch, split: SplitName) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(split == "train"):
        value: object = _or_else(
            lambda: task.loss(model, batch),
            f"the loss of {task.name!r} failed on {split}",
            # The usual mistake: a loss of the other form.
            "a loss is called as loss(output, target), or as loss(model, batch) where its first "
            "parameter is called model",
        )
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the loss of {task.name!r} must be a tensor with one number, the mean over the rows "
            f"of a batch, but on {split} it is {came}: use reduction='mean', or .mean()"
        )
    return value


def _or_else(call: Callable[[], Result], what: str, hint: str = "") -> Result:
    """What a user's code returns; whatever it raises becomes an error of the user's."""
    try:
        return call()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ValueError(
            f"{what} with {type(error).__name__}: {reason}" + (f" ({hint})" if hint else "")
        ) from error


def _same(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # NaN is not equal to itself; what is not finite is refused elsewhere.
    return torch.equal(one.detach().nan_to_num(), other.detach().nan_to_num())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
