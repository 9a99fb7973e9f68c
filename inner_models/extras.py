"""Optional dependencies: imported when they are needed, missed with the line that installs them."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A package that comes with an extra of this one is not installed."""


def require(module: str, *, extra: str) -> Any:
    """Imports an optional module.

    Args:
        module: dotted name.
        extra: the extra of this package that brings it.

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
