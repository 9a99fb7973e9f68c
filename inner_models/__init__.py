"""The trainings that the agent learns on: tasks, batched optimizers, and their trainer.

A `TaskFamily` is a distribution of `Task`s and `ModuleTask` makes a task of any module, data and
loss; `InnerTrainer` runs many trainings of equal shape as one tensor program. `make_family` makes
a registered family by its name, one of `family_names`. Names load at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_EXPORTS = {
    "InnerTrainer": "trainer",
    "ModuleTask": "task",
    "OptimizerConfig": "task",
    "Splits": "task",
    "Task": "task",
    "TaskFamily": "task",
    "family_names": "registry",
    "make_family": "registry",
}
__all__ = [
    "InnerTrainer",
    "ModuleTask",
    "OptimizerConfig",
    "Splits",
    "Task",
    "TaskFamily",
    "family_names",
    "make_family",
]

if TYPE_CHECKING:
    from pacesetter.inner_models.registry import family_names, make_family
    from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits, Task, TaskFamily
    from pacesetter.inner_models.trainer import InnerTrainer
else:

    def __getattr__(name: str) -> object:
        """Imports a public name from its module at first use."""
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
