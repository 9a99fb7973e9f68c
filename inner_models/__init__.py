"""The trainings that the agent learns on: tasks, task families, and their batched trainer.

`ModuleTask` makes a task of any module, data and loss; a `TaskFamily` is a distribution of tasks,
and a `GeneratedFamily` draws everything but the model and its problem by itself. `InnerTrainer`
runs many trainings of equal shape as one tensor program. `make_family` makes a registered family
by its name, one of `family_names`. Names load at first use.
"""

from typing import TYPE_CHECKING

from pacesetter.inner_models.lookup import lazy_exports

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
    from pacesetter.inner_models.engine.trainer import InnerTrainer
    from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
    from pacesetter.inner_models.registry import family_names, make_family
    from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits, Task, TaskFamily
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Draw": "draw",
            "GeneratedFamily": "families.base",
            "InnerTrainer": "engine.trainer",
            "JobRanges": "families.base",
            "ModuleTask": "task",
            "OptimizerConfig": "task",
            "Problem": "families.base",
            "Shape": "families.base",
            "Splits": "task",
            "Task": "task",
            "TaskFamily": "task",
            "family_names": "registry",
            "make_family": "registry",
        },
    )
