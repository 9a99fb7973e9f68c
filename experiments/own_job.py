"""A user's own training job as a task: `pacesetter compare --task my_module:make_task`.

`make_task` takes no argument, or one named ``seed`` (of the comparison), and returns either a
`ModuleTask` or a plain tuple ``(model, loaders, loss)``, or ``(model, loaders, loss, options)``:

model
    A factory, ``() -> nn.Module``, called once per seed with torch's global generator seeded: every
    arm starts from the same weights, another seed from others. Or a module: then every run starts
    from the weights that it has (fine-tuning), and seeds differ in batch order and dropout alone.
loaders
    Train, valid and test, as a tuple in this order or a dict with these keys; a dict may have
    ``inner_valid`` and ``outer_valid`` instead of ``valid``. Each is a `DataLoader`, a `Dataset`,
    or a tuple of tensors with one row per example, such as ``(inputs, targets)``. Every row is read
    once and kept in memory; the training loader's batch size is the runs'. What is drawn anew at
    every reading (augmentation) is refused: put it into the model, which has a training mode. The
    rows of valid go in turn to *inner_valid*, which schedules may look at while they train, and to
    *outer_valid*, by which settings are chosen. Test is read once, when a run is over.
loss
    Returns one number, the mean over the rows of a batch. ``loss(output, target)``, such as
    ``nn.CrossEntropyLoss()``, is called with ``model(*inputs)`` and the last tensor of the batch,
    the inputs being all others; a batch of one tensor is both. ``loss(model, batch)`` is called
    with the model and the tuple of tensors. The second form is taken where the first parameter is
    called ``model``, ``module``, ``net`` or ``network``.
options
    A dict of further arguments of `ModuleTask`, such as ``{"horizon": 500, "batch_size": 64}``, and
    ``allow_overlap`` of `Splits`. Without a horizon, a run goes `plain_tasks.EPOCHS` times through
    the training rows.

Before anything is trained `check_task` runs it for a moment; see there for what is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pacesetter.experiments.plain_tasks import plain_task, what
from pacesetter.experiments.task_checks import check_task
from pacesetter.inner_models.lookup import call_failed, import_attribute
from pacesetter.inner_models.task import ModuleTask, Task

_FORMS = (
    "a ModuleTask, or a tuple (model, loaders, loss) with loaders (train, valid, test); see the "
    "docstring of pacesetter.experiments.own_job"
)


def own_task(spec: str, *, seed: int = 0, steps: int | None = None) -> Task:
    """The task that a user's function makes, checked.

    Args:
        spec: ``"module:function"``; the module is looked for in the working directory as well.
        seed: given to the function where it takes one, and to torch's global generator meanwhile.
        steps: inner steps of a run, instead of the task's own horizon.

    Raises:
        ValueError: there is no such function, or what it makes cannot be compared on; the message
            says what came and how to mend it.
    """
    make = _find(spec)
    first, second = (_made(make, spec, seed) for _ in range(2))
    name = first.name
    if name == ModuleTask.name:
        name = spec.replace(":", "/")
    if first.splits.digest() != second.splits.digest():
        raise ValueError(
            f"{spec} must make the same data every time, but two calls made different ones. Draw "
            "and split them with a generator that has a seed of its own, such as "
            "torch.Generator().manual_seed(0) or random_state=0"
        )
    task = replace(first, name=name, horizon=steps or first.horizon)
    check_task(task)
    return task


def _find(spec: str) -> Callable[..., Any]:
    module_name, _, function = spec.partition(":")
    if not module_name or not function or ":" in function or module_name.endswith(".py"):
        raise ValueError(
            f"--task must be module:function, such as my_module:make_task, but got {spec!r}"
        )
    make: Callable[..., Any] = import_attribute(module_name, function, kind="function")
    if not callable(make):
        raise ValueError(f"{spec} must be a function, but is a {type(make).__name__}")
    return make


def _made(make: Callable[..., Any], spec: str, seed: int) -> Task:
    """What the function makes, as a task; torch's global generator is left as it was."""
    try:
        takes_seed = "seed" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        takes_seed = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = make(seed=seed) if takes_seed else make()
        except Exception as error:
            raise call_failed(f"{spec}()", error) from error
        if isinstance(made, ModuleTask):
            return made
        if not isinstance(made, Sequence) or len(made) not in (3, 4):
            raise ValueError(f"{spec} must return {_FORMS}; but got {what(made)}")
        return plain_task(*made)
