"""Which tasks a comparison runs on, by name."""

from __future__ import annotations

from collections.abc import Sequence

from pacesetter.inner_models.registry import VALIDATION, fixed_task
from pacesetter.inner_models.task import Task

TASKS_PER_FAMILY = 8
"""Fixed tasks of a family that is named without a number."""
QUICK_TASKS_PER_FAMILY = 2
"""The same for a quick comparison."""


def task_names(
    names: Sequence[str] = VALIDATION, *, per_family: int = TASKS_PER_FAMILY
) -> tuple[str, ...]:
    """Names of single tasks from names of tasks and families.

    Args:
        names: each a task, such as ``"digits-mlp/0"``, or a family.
        per_family: tasks that a family stands for.

    >>> task_names(["digits-mlp/5", "teacher-mlp"], per_family=2)
    ('digits-mlp/5', 'teacher-mlp/0', 'teacher-mlp/1')
    """
    single: list[str] = []
    for name in names:
        single += [name] if "/" in name else [f"{name}/{i}" for i in range(per_family)]
    return tuple(dict.fromkeys(single))


def named_task(name: str) -> Task:
    """A fixed task by its name, ``family/index``.

    Raises:
        ValueError: the name has another form, or there is no such family.

    >>> named_task("digits-mlp/x")
    Traceback (most recent call last):
    ...
    ValueError: a task is named family/number, such as digits-mlp/0, but got 'digits-mlp/x'
    """
    family, _, index = name.rpartition("/")
    if not family or not index.isdecimal():
        raise ValueError(
            f"a task is named family/number, such as {VALIDATION[0]}/0, but got {name!r}"
        )
    return fixed_task(family, int(index))
