"""What docstrings of this project have and Markdown has not: examples of the interpreter."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*?(?=\n[ \t]*\n|\Z)", re.MULTILINE | re.DOTALL)


class Fences(griffe.Extension):
    """Puts the examples in docstrings between fences."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        """Changes the docstring of an object that was read.

        Args:
            obj: the object.
            loader: of griffe.
            **kwargs: not used.
        """
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""A docstring with its examples between fences, and no sentence that ends in two colons.

    Args:
        text: without indentation.

    >>> fenced("One more::\n\n    f(1)\n\n>>> 1 + 1\n2")
    'One more:\n\n    f(1)\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found.group()}\n```", text)
