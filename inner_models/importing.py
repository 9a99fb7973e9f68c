"""Things that users name as ``module:attribute``: imported, with errors that say how to mend it.

A console script does not look into the working directory by itself, as ``python -m`` does; here
it is looked into as well.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from pacesetter.inner_models.names import check_name


def import_attribute(
    module_name: str, attribute: str, *, kind: str, fits: Callable[[object], bool] = callable
) -> Any:
    """Imports a module and takes an attribute of it.

    The working directory joins the import path for good, so that worker processes, which inherit
    the path, find the module too.

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


def call_failed(call: str, error: Exception) -> ValueError:
    """The error to raise where code of the user's raised one."""
    return ValueError(f"{call} failed with {type(error).__name__}: {short(error)}")


def short(error: Exception) -> str:
    """The first line of an error, cut where it is long."""
    return (str(error).strip().splitlines() or [""])[0][:200]
