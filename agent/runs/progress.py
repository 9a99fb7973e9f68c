"""How far a long loop is: a bar in a terminal; elsewhere a line a minute.

A bar that is drawn anew ten times a second makes a log file of pages that nobody can read.
"""

from __future__ import annotations

import sys
from typing import Any, TextIO

from pacesetter.inner_models.lookup import require

SECONDS_BETWEEN_LINES = 60.0
"""Where there is no terminal."""
LINE = "{desc}: {n_fmt} of {total_fmt} {unit} ({percentage:.0f}%), {elapsed}, {remaining} to go"


def progress_bar(
    what: str,
    *,
    total: int,
    unit: str,
    shown: bool,
    done: int = 0,
    stream: TextIO | None = None,
) -> Any:
    """A `tqdm.tqdm` that counts `total` units, in the plural, `done` of them by an earlier process.

    It is a context manager; `stream` is standard error by default.
    """
    stream = sys.stderr if stream is None else stream
    looks: dict[str, Any] = {"file": stream, "unit": f" {unit}", "mininterval": 0.5}
    if not stream.isatty():
        looks = {
            "file": _Lines(stream),
            "unit": unit,
            "bar_format": LINE + "{postfix}",
            "mininterval": SECONDS_BETWEEN_LINES,
            "miniters": 1,
            "delay": 1e-9,  # says nothing before there is something to say
        }
    return require("tqdm", extra="train").tqdm(
        total=total, initial=done, desc=what, unit_scale=total >= 10_000, disable=not shown, **looks
    )


class _Lines:
    """A stream on which each state of a bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._stream.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()
