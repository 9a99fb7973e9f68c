"""What decides the result of a comparison, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pacesetter.experiments.rivals.baselines import arm_names
from pacesetter.experiments.tasks import task_names
from pacesetter.experiments.tuning import TUNING_SEEDS, budgets


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What decides the result of a comparison.

    Attributes:
        policy: file, or ``"default"`` for the shipped one.
        tasks: names of fixed tasks.
        own_tasks: functions that make tasks of the user's own, each as ``"module:function"``.
        steps: inner steps of the user's own tasks; None: what they say themselves.
        arms: names of arms; the reference is always run.
        num_seeds: seeds of the report, 0 to ``num_seeds - 1``, on every task.
        trials: settings that a tuned arm may try on each task, its default among them.
        start_lrs: learning rates from which the agent starts, one run each.
        replay_tasks: meta-train tasks whose mean schedule the open-loop replay plays back.
        seed: of these tasks, of what tuning tries, and of the bootstrap.
        device: where the runs live.
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
    arms: tuple[str, ...] = arm_names()
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
