"""The trainings that the agent learns on: tasks, batched optimizers, and their trainer.

`ModuleTask` makes a task of any module, data and loss; a `TaskFamily` is a distribution of tasks,
and a `GeneratedFamily` one that only has to say what is learned: the job around it is drawn.
`InnerTrainer` runs many trainings of equal shape as one tensor program. `make_family` makes a
registered family by its name, one of `family_names`. Names load at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_EXPORTS = {
    "Draw": "draw",
    "GeneratedFamily": "generated",
    "InnerTrainer": "trainer",
    "JobRanges": "job",
    "ModuleTask": "task",
    "OptimizerConfig": "task",
    "Problem": "generated",
    "Shape": "generated",
    "Splits": "task",
    "Task": "task",
    "TaskFamily": "task",
    "family_names": "registry",
    "make_family": "registry",
}
__all__ = [
    "Draw",
    "GeneratedFamily",
    "InnerTrainer",
    "JobRanges",
    "ModuleTask",
    "OptimizerConfig",
    "Problem",
    "Shape",
    "Splits",
    "Task",
    "TaskFamily",
    "family_names",
    "make_family",
]

if TYPE_CHECKING:
    from pacesetter.inner_models.draw import Draw
    from pacesetter.inner_models.generated import GeneratedFamily, Problem, Shape
    from pacesetter.inner_models.job import JobRanges
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
