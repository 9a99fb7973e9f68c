"""Names of task families, and the only place that says which set a family belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from pacesetter.inner_models.digits import DigitsMLP
from pacesetter.inner_models.mlp import TeacherMLP
from pacesetter.inner_models.names import check_name
from pacesetter.inner_models.task import Task, TaskFamily

META_TRAIN: tuple[str, ...] = ("teacher-mlp",)
"""Families to learn from: generated data only."""
VALIDATION: tuple[str, ...] = ("digits-mlp",)
"""Families to choose a policy by, and to tune on."""
HELD_OUT: tuple[str, ...] = ()
"""Families that only reports read."""

_FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "teacher-mlp": TeacherMLP,
    "digits-mlp": DigitsMLP,
}


def family_names() -> tuple[str, ...]:
    """Names of all bundled families."""
    return tuple(_FAMILIES)


def make_family(name: str) -> TaskFamily:
    """A bundled family by name.

    Raises:
        ValueError: there is no such family; the message has the nearest names.
    """
    check_name(name, _FAMILIES, kind="task family")
    return _FAMILIES[name]()


@cache
def fixed_task(family: str, index: int) -> Task:
    """Task number `index` of a family: the same one on every machine and in every report.

    The task starts AdamW at 1e-3, whatever start the family draws; it is named ``family/index``.

    Raises:
        ValueError: the family is unknown or the index negative.
    """
    if index < 0:
        raise ValueError(f"index of a fixed task must be zero or positive, but got {index}")
    digest = hashlib.sha256(f"{family}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    task = make_family(family).sample(generator)
    task = replace(task, name=f"{family}/{index}")
    return task.with_optimizer(name="adamw", lr=1e-3)
