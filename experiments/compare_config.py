"""Settings of a comparison, checked when they are made, and its tasks by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacesetter.experiments.rivals.baselines import default_arms
from pacesetter.inner_models.lookup import split_spec
from pacesetter.inner_models.registry import FROM_FILES, SETS, VALIDATION, fixed_task, is_own

if TYPE_CHECKING:
    from pacesetter.inner_models.task import Task

TASKS_PER_FAMILY = 8
"""Fixed tasks of a family that is named without a number."""
QUICK_TASKS_PER_FAMILY = 2
"""The same for a quick comparison."""
TUNING_SEEDS = (1_000_003, 1_000_033)
"""Seeds over which a setting's loss is averaged; far from those that reports use."""
BUDGETS = (1, 5, 20)
"""Numbers of trials that are reported, as far as a search has them, and all that it has."""


def budgets(trials: int) -> tuple[int, ...]:
    """The budgets that a search of some trials reports.

    >>> budgets(20), budgets(8), budgets(1)
    ((1, 5, 20), (1, 5, 8), (1,))
    """
    return tuple(sorted({*(budget for budget in BUDGETS if budget < trials), trials}))


def task_names(
    names: Sequence[str] = VALIDATION, *, per_family: int = TASKS_PER_FAMILY
) -> tuple[str, ...]:
    """Names of single tasks from names of tasks, families and sets such as ``"held-out"``.

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


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What decides the result of a comparison.

    Attributes:
        policy: file, or ``"default"`` for the shipped one.
        own_tasks: functions that make tasks of the user's own, each as ``"module:function"``.
        steps: inner steps of the user's own tasks; None: what they say themselves.
        arms: names of arms; the reference is always run. Some run only where they are named.
        num_seeds: seeds of the report, 0 to ``num_seeds - 1``, on every task.
        trials: settings that a tuned arm may try on each task, its default among them.
        start_lrs: learning rates from which the agent starts, one run each.
        replay_tasks: meta-train tasks whose mean schedule the open-loop replay plays back.
        seed: of these tasks, of what tuning tries, of random actions, and of the bootstrap.
        data: folder of the image files that tasks on MNIST, Fashion-MNIST and CIFAR-10 read; None:
            the one that the environment variable ``PACESETTER_DATA`` names.
        jobs: worker processes for arms that cannot be batched; it does not change the result.
        quick: whether the settings are those of a quick look; reports then say so.

    Raises:
        ValueError: a setting is out of its range.
    """

    policy: str = "default"
    tasks: tuple[str, ...] = task_names()
    own_tasks: tuple[str, ...] = ()
    steps: int | None = None
    arms: tuple[str, ...] = default_arms()
    num_seeds: int = 5
    trials: int = 20
    start_lrs: tuple[float, ...] = (1e-3,)
    replay_tasks: int = 64
    seed: int = 0
    device: str = "cpu"
    data: str | None = None
    jobs: int = 1
    quick: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_seeds <= min(TUNING_SEEDS):
            raise ValueError(f"num_seeds must be positive, but got {self.num_seeds}")
        if not self.start_lrs or any(not 0 < lr < math.inf for lr in self.start_lrs):
            raise ValueError(f"start_lrs must be positive numbers, but got {self.start_lrs}")
        for name in ("tasks", "arms", "start_lrs"):
            values = getattr(self, name)
            missing = not values and not (name == "tasks" and self.own_tasks)
            if missing or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each only once, but got {values}")
        for name in ("replay_tasks", "trials", "jobs", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, but got {value}")
        if self.steps is not None and not self.own_tasks:
            raise ValueError("steps are those of the user's own tasks, but there are none")

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of trials whose best settings are reported."""
        return budgets(self.trials)

    def deciding(self) -> dict[str, Any]:
        """Everything but what cannot change the result."""
        settings = asdict(self)
        del settings["jobs"]
        return settings


def families_in(data: str | Path | None) -> tuple[str, ...]:
    """Names of the families in `FROM_FILES` of whose data set a folder holds files, if any.

    FileNotFoundError where it holds none; the message has the files of all of them.
    """
    from pacesetter.inner_models.families.real import image_files

    if data is None:
        return ()
    folder = image_files.data_folder(Path(data))
    held = image_files.data_sets_in(folder)
    if not held:
        missing = image_files.what_is_missing
        lacking = "\n".join(missing(name, folder) for name in image_files.SOURCES)
        raise FileNotFoundError(f"{folder} holds no image files that are known:\n{lacking}")
    return tuple(name for name in FROM_FILES if name.rpartition("-")[0] in held)


def named_task(name: str, data: str | Path | None = None) -> Task:
    """A fixed task by its name, ``family/index``; `data` is as in `CompareConfig`.

    Raises:
        FileNotFoundError: image files are missing.
        ValueError: the name has another form, there is no such family, or an image file is damaged.

    >>> named_task("digits-mlp/x")
    Traceback (most recent call last):
    ...
    ValueError: a task is named family/number, such as digits-mlp/0, but got 'digits-mlp/x'
    """
    family, _, index = name.rpartition("/")
    if is_own(name) and not index.isdecimal():
        split_spec(name, "a family of your own is named module:attribute")  # refuses a path
    if not family or not index.isdecimal():
        raise ValueError(
            f"a task is named family/number, such as {VALIDATION[0]}/0, but got {name!r}"
        )
    options = {"data": Path(data)} if data is not None and family in FROM_FILES else {}
    return fixed_task(family, int(index), **options)
