"""Task families by name: the bundled ones in their three sets, and a user's own.

A user's own family is named ``module:attribute`` wherever a family is named; the attribute is a
`TaskFamily`, or a class or function that gives one when it is called without arguments. Names are
what configurations and run folders hold: another process imports the module again.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacesetter.inner_models.lookup import call_failed, check_name, import_attribute, split_spec

if TYPE_CHECKING:
    from pacesetter.inner_models.task import Task, TaskFamily

_META_TRAIN = {
    "teacher-mlp": "teachers.regression:TeacherMLP",
    "quadratic": "convex:Quadratic",
    "logistic": "convex:LogisticRegression",
    "ratings": "latent:Ratings",
    "autoencoder": "latent:Autoencoders",
    "multitask": "teachers.multitask:Multitask",
    "distilled-mlp": "teachers.transfer:DistilledMLP",
    "image-convnet": "images:ImageConvnet",
    "quantised-mlp": "teachers.compressed:QuantisedMLP",
    "pruned-mlp": "teachers.compressed:PrunedMLP",
    "fine-tuned-mlp": "teachers.transfer:FineTunedMLP",
    "hard-labels-mlp": "teachers.hard_labels:HardLabelsMLP",
    "language-transformer": "languages:LanguageTransformer",
    "sequence-rnn": "sequences:SequenceRNN",
}
_VALIDATION = {
    "digits-mlp": "real.digits:DigitsMLP",
    "tabular-mlp": "real.tabular:TabularMLP",
    "photo-denoiser": "real.photos:PhotoDenoiser",
}
_HELD_OUT = {
    "digits-convnet": "real.digits:DigitsConvnet",
    "digits-vit": "real.digits:DigitsViT",
    "digits-quantised": "real.digits:DigitsQuantised",
    "digits-distilled": "real.digits:DigitsDistilled",
    "digits-long": "real.digits:DigitsLong",
    "photo-flow": "real.photos:PhotoFlow",
    "text-transformer": "real.text:TextTransformer",
    "text-gru": "real.text:TextGRU",
    "source-gru": "real.text:SourceGRU",
}

META_TRAIN: tuple[str, ...] = tuple(_META_TRAIN)
"""Families to learn from: generated data only."""
VALIDATION: tuple[str, ...] = tuple(_VALIDATION)
"""Families to choose a policy by, and to tune on."""
HELD_OUT: tuple[str, ...] = tuple(_HELD_OUT)
"""Families that only reports read."""
FROM_FILES: tuple[str, ...] = (
    "mnist-mlp",
    "mnist-convnet",
    "fashion-mnist-mlp",
    "fashion-mnist-convnet",
    "cifar10-convnet",
)
"""Held out too, on image files that the user brings: made only with a folder that has them."""
SETS: dict[str, tuple[str, ...]] = {
    "meta-train": META_TRAIN,
    "validation": VALIDATION,
    "held-out": HELD_OUT,
}
"""Sets of families by name; the families in `FROM_FILES` are named one by one."""


def _bundled(spec: str, *args: str | Path) -> TaskFamily:
    module, _, attribute = spec.partition(":")
    family = getattr(import_module(f"pacesetter.inner_models.families.{module}"), attribute)
    made: TaskFamily = family(*args)
    return made


_FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    name: partial(_bundled, spec)
    for name, spec in {**_META_TRAIN, **_VALIDATION, **_HELD_OUT}.items()
}


def family_names(*names: str) -> tuple[str, ...]:
    """Names of single families, from names of families and of sets of them.

    Args:
        names: each a family, one of the user's own, or a set: ``"meta-train"``, ``"validation"``
            or ``"held-out"``. None: all bundled families.

    Raises:
        ValueError: a name is neither (the message has the nearest ones).

    >>> family_names("my_module:Spirals", "validation")
    ('my_module:Spirals', 'digits-mlp', 'tabular-mlp', 'photo-denoiser')
    """
    known = (*_FAMILIES, *FROM_FILES)
    if not names:
        return known
    for name in names:
        if not is_own(name):
            check_name(name, (*SETS, *known), kind="task family")
    return tuple(dict.fromkeys(part for name in names for part in SETS.get(name, (name,))))


def make_family(name: str, *, data: str | Path | None = None) -> TaskFamily:
    """A family by name.

    Args:
        name: one of `family_names`, or ``module:attribute`` for one of the user's own, whose
            module is looked for in the working directory as well.
        data: folder with the files of a family in `FROM_FILES`; None: the one that the environment
            variable ``PACESETTER_DATA`` names. The other families take no notice of it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: there is no such family (the message has the nearest names), it needs a folder
            and none is given, or an own one cannot be imported.
    """
    if is_own(name):
        return _own_family(name)
    check_name(name, family_names(), kind="task family")
    if name in FROM_FILES:
        from pacesetter.inner_models.families.real.image_files import data_folder

        data_set, _, network = name.rpartition("-")
        return _bundled("real.image_files:FileImages", data_set, network, data_folder(data))
    return _FAMILIES[name]()


@cache
def fixed_task(family: str, index: int, *, data: str | Path | None = None) -> Task:
    """Task number `index` of a family: the same one on every machine and in every report.

    The task starts AdamW at 1e-3, whatever start the family draws; it is named ``family/index``.

    Args:
        family: its name, as for `make_family`.
        index: of the task.
        data: see `make_family`; a process reads the environment variable once for each task.

    Raises:
        FileNotFoundError: files of a family in `FROM_FILES` are missing.
        ValueError: the family is unknown, the index negative, or a file damaged.
    """
    import torch

    if index < 0:
        raise ValueError(f"index of a fixed task must be zero or positive, but got {index}")
    digest = hashlib.sha256(f"{family}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    task = make_family(family, data=data).sample(generator)
    task = replace(task, name=f"{family}/{index}")
    return task.with_optimizer(name="adamw", lr=1e-3)


def is_own(name: str) -> bool:
    """Whether the name of a family is ``module:attribute``, not that of a bundled one.

    >>> is_own("my_module:Spirals"), is_own("teacher-mlp")
    (True, False)
    """
    return ":" in name


def _own_family(spec: str) -> TaskFamily:
    from pacesetter.inner_models.task import ModuleTask, TaskFamily

    def gives_a_family(value: Any) -> bool:
        if isinstance(value, type):
            return issubclass(value, TaskFamily) and not inspect.isabstract(value)
        return isinstance(value, TaskFamily) or hasattr(value, "__code__")

    module_name, attribute = split_spec(
        spec,
        "a family of your own is named module:attribute, such as my_module:my_family for "
        "my_family in my_module.py",
    )
    found = import_attribute(module_name, attribute, kind="task family", fits=gives_a_family)
    if callable(found) and not isinstance(found, TaskFamily):
        found = _called(found, spec)
    if not isinstance(found, TaskFamily):
        hint = ", one task: a family draws many" if isinstance(found, ModuleTask) else ""
        raise ValueError(
            f"{spec} must be a TaskFamily, or a class or function that gives one when it is called "
            f"without arguments, but got a {type(found).__name__}{hint}"
        )
    return found


def _called(make: Callable[[], object], spec: str) -> object:
    import torch

    # What draws from torch's global generator is then the same family in every process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return make()
        except Exception as error:
            raise call_failed(f"{spec}()", error) from error
