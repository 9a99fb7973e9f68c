"""Look-up by name: known names, optional packages, objects of the user's, lazy exports."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class MissingExtraError(ImportError):
    """A package that comes with an extra of this one is not installed."""


def check_name(name: str, known: Iterable[str], *, kind: str) -> None:
    """Checks that a name is known; `kind` is what it names, for the message.

    Raises:
        ValueError: it is unknown; the message has the nearest names and all there are.

    >>> check_name("labtop", ["smoke", "laptop"], kind="preset")
    Traceback (most recent call last):
    ...
    ValueError: unknown preset 'labtop'; did you mean 'laptop'? There are: smoke, laptop
    >>> check_name("x", ["smoke", "laptop"], kind="preset")
    Traceback (most recent call last):
    ...
    ValueError: unknown preset 'x'; there are: smoke, laptop
    """
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? There are" if near else "there are"
    raise ValueError(f"unknown {kind} {name!r}; {hint}: {', '.join(known)}")


def require(module: str, *, extra: str) -> Any:
    """Imports an optional module, which the named extra of this package brings.

    Raises:
        MissingExtraError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingExtraError(
            f"{top} is not installed; it comes with: pip install 'pacesetter[{extra}]'"
        ) from error


def import_attribute(
    module_name: str, attribute: str, *, kind: str, fits: Callable[[object], bool] = callable
) -> Any:
    """Imports what a user names as ``module:attribute``.

    A console script does not look into the working directory by itself, as ``python -m`` does.
    Here the working directory joins the import path for good, so that worker processes, which
    inherit the path, find the module too.

    Args:
        module_name: dotted name.
        attribute: its name in the module.
        kind: what it should be, for messages: ``"function"``, say.
        fits: which values of the module to suggest where the name is unknown.

    Raises:
        ValueError: there is no such module, it fails when it is imported, or it has no such
            attribute (the message has the nearest names).
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        top = module_name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise call_failed(f"importing {module_name}", error) from error
        raise ValueError(
            f"there is no module {module_name!r} to take {attribute!r} from; run the command in "
            f"the folder of {top}.py, or install the package (looked in {here} and where Python "
            "does)"
        ) from error
    except Exception as error:
        raise call_failed(f"importing {module_name}", error) from error
    if not hasattr(module, attribute):
        public = [n for n, v in vars(module).items() if fits(v) and not n.startswith("_")]
        if not public:
            raise ValueError(f"{module_name} has no {kind} {attribute!r}, nor any other")
        check_name(attribute, public, kind=f"{kind} of {module_name}")
    return getattr(module, attribute)


def split_spec(spec: str, form: str) -> tuple[str, str]:
    """Module and attribute of ``module:attribute``; `form` says what is wanted, for the message.

    Raises:
        ValueError: it is something else; where it is a path, the message has the module's name.

    >>> split_spec("./jobs:f", "a job is module:function")
    Traceback (most recent call last):
    ...
    ValueError: a job is module:function, but got './jobs:f'; in the folder of jobs.py give jobs:f
    """
    module, _, attribute = spec.rpartition(":")
    *folders, name = re.split(r"[/\\]", (module or spec).removesuffix(".py"))
    if folders or (module or spec).endswith(".py") or name.startswith("."):
        name = name.lstrip(".")
        attribute = attribute if module and attribute else "NAME"
        form = f"{form}, but got {spec!r}; in the folder of {name}.py give {name}:{attribute}"
        raise ValueError(form)
    if not module or not attribute or ":" in module:
        raise ValueError(f"{form}, but got {spec!r}")
    return module, attribute


def call_failed(call: str, error: Exception) -> ValueError:
    """The error to raise where a user's code raised one."""
    return ValueError(f"{call} failed with {type(error).__name__}: {short(error)}")


def short(error: Exception) -> str:
    """The first line of an error, cut where it is long."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names load at first use.

    Modules, one for each public name, are relative to the package.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
