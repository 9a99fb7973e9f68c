"""Extension of griffe that puts the interpreter's examples in docstrings between fences."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*?(?=\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL)


class Fences(griffe.Extension):
    """Changes docstrings when they are read."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        """Changes the docstring of one object."""
        if obj.docstring is not None:
            text = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
