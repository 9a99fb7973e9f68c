"""Which tasks a comparison runs on, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pacesetter.inner_models.families.real.image_sources import (
    SOURCES,
    data_folder,
    data_sets_in,
    what_is_missing,
)
from pacesetter.inner_models.registry import FROM_FILES, SETS, VALIDATION, fixed_task
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
        names: each a task, such as ``"digits-mlp/0"``, a family, or a set of families, such as
            ``"held-out"``.
        per_family: tasks that a family stands for.

    >>> task_names(["digits-mlp/5", "teacher-mlp"], per_family=2)
    ('digits-mlp/5', 'teacher-mlp/0', 'teacher-mlp/1')
    """
    single: list[str] = []
    for name in names:
        if "/" in name:
            single.append(name)
        else:
            single += [f"{f}/{i}" for f in SETS.get(name, (name,)) for i in range(per_family)]
    return tuple(dict.fromkeys(single))


def families_in(data: str | Path | None) -> tuple[str, ...]:
    """Names of the families in `FROM_FILES` of whose data set a folder holds files.

    Args:
        data: the folder; None: there are no such families.

    Raises:
        FileNotFoundError: it holds none; the message has the files of all of them.
    """
    if data is None:
        return ()
    folder = data_folder(Path(data))
    held = data_sets_in(folder)
    if not held:
        lacking = "\n".join(what_is_missing(name, folder) for name in SOURCES)
        raise FileNotFoundError(f"{folder} holds no image files that are known:\n{lacking}")
    return tuple(name for name in FROM_FILES if name.rpartition("-")[0] in held)


def named_task(name: str, data: str | Path | None = None) -> Task:
    """A fixed task by its name, ``family/index``.

    Args:
        name: of the task.
        data: folder of the image files, for a task of a family in `FROM_FILES`; None: the one that
            the environment variable ``PACESETTER_DATA`` names.

    Raises:
        FileNotFoundError: image files are missing.
        ValueError: the name has another form, there is no such family, or an image file is damaged.

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
    if data is None or family not in FROM_FILES:
        return fixed_task(family, int(index))
    return fixed_task(family, int(index), data=Path(data))
