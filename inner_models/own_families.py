"""A user's own task family by its name: ``my_module:my_family``, wherever a family is named.

The attribute is a `TaskFamily`, or a class or function that gives one when it is called without
arguments. Names are what configurations and run folders hold: they can be written to a file and
read in another process, which imports the module again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch

from pacesetter.inner_models.lookup import call_failed, import_attribute
from pacesetter.inner_models.task import TaskFamily


def is_own(name: str) -> bool:
    """Whether the name of a family is ``module:attribute``, not that of a bundled one.

    >>> is_own("my_module:Spirals"), is_own("teacher-mlp")
    (True, False)
    """
    return ":" in name


def own_family(spec: str) -> TaskFamily:
    """The family that ``module:attribute`` names.

    Args:
        spec: the name; the module is looked for in the working directory as well.

    Raises:
        ValueError: the module or the attribute does not exist, fails, or is no family.

    >>> own_family("pacesetter.inner_models.families.teachers.regression:TeacherMLP").name
    'teacher-mlp'
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute or ":" in attribute or module_name.endswith(".py"):
        raise ValueError(
            "a family of your own is named module:attribute, such as my_module:my_family for "
            f"my_family in my_module.py, but got {spec!r}"
        )
    found = import_attribute(module_name, attribute, kind="task family", fits=_gives_a_family)
    if callable(found) and not isinstance(found, TaskFamily):
        found = _called(found, spec)
    if not isinstance(found, TaskFamily):
        raise ValueError(
            f"{spec} must be a TaskFamily, or a class or function that gives one when it is called "
            f"without arguments, but got {_described(found)}"
        )
    return found


def _called(make: Callable[[], object], spec: str) -> object:
    # What draws from torch's global generator is then the same family in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return make()
        except Exception as error:
            raise call_failed(f"{spec}()", error) from error


def _gives_a_family(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, TaskFamily) and not inspect.isabstract(value)
    return isinstance(value, TaskFamily) or hasattr(value, "__code__")


def _described(value: object) -> str:
    """A task in place of a family is the likeliest mistake."""
    kind = type(value).__name__
    return f"a {kind}, one task: a family draws many" if kind == "ModuleTask" else f"a {kind}"
