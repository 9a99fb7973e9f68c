"""Names that a user may mistype: looked up with the nearest ones at hand."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(name: str, known: Iterable[str], *, kind: str) -> None:
    """Checks that a name is known.

    Args:
        name: what the user gave.
        known: all names there are.
        kind: what they name, for the message.

    Raises:
        ValueError: it is unknown; the message has the nearest names and all there are.

    >>> check_name("labtop", ["smoke", "laptop"], kind="preset")
    Traceback (most recent call last):
    ...
    ValueError: unknown preset 'labtop'; did you mean 'laptop'? There are: smoke, laptop
    """
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, cutoff=0.4) or known
        raise ValueError(
            f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}? "
            f"There are: {', '.join(known)}"
        )
