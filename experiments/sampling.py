"""Draws AdamW tasks from families, in groups that one trainer can train together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import torch

from pacesetter.inner_models.task import Task, TaskFamily

TASKS_PER_GROUP = 4
"""Tasks of one shape that are drawn together."""
MAX_MISSES = 200
"""Groups of other optimizers in a row before giving up."""


def adamw_groups(
    families: Sequence[TaskFamily], *, num_tasks: int, generator: torch.Generator
) -> Iterator[list[Task]]:
    """Yields groups of `TASKS_PER_GROUP` tasks of one shape, from each family in turn.

    Args:
        families: to draw from. Tasks of another optimizer than AdamW are passed over.
        num_tasks: how many in all, rounded up to whole groups.
        generator: of the draws.

    Raises:
        ValueError: there is no family, or a family has hardly any AdamW task.
    """
    if not families or num_tasks < 1:
        raise ValueError(
            f"need a family and at least one task, but got {len(families)} and {num_tasks}"
        )
    turn = cycle(families)
    for _ in range(-(-num_tasks // TASKS_PER_GROUP)):
        family = next(turn)
        for _ in range(MAX_MISSES):
            tasks = family.sample_group(TASKS_PER_GROUP, generator)
            if tasks[0].optimizer.name == "adamw":
                yield tasks
                break
        else:
            raise ValueError(f"family {family.name!r} has hardly any task with AdamW")
