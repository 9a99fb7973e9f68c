"""How far a long loop is: a bar in a terminal; elsewhere, now and then a line.

A bar that is drawn anew ten times a second makes a log file of pages that nobody can read.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, TextIO

from pacesetter.inner_models.lookup import require

SECONDS_BETWEEN_LINES = 60.0
"""Where there is no terminal."""


class ProgressMeter:
    """Counts units of work; a context manager.

    Args:
        what: is being done, such as ``"meta-training"``.
        total: units in all.
        unit: what is counted, in the plural: ``"decisions"``.
        shown: whether to say anything at all.
        done: units that an earlier process did.
        stream: where to; default: standard error.
    """

    def __init__(
        self,
        what: str,
        *,
        total: int,
        unit: str,
        shown: bool,
        done: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._what, self._total, self._unit, self._shown = what, total, unit, shown
        self._first = self._done = done
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._begun = self._last = time.monotonic()
        self._bar: Any = None
        if shown and self._stream.isatty():
            self._bar = require("tqdm", extra="train").tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=total >= 10_000,
                desc=what,
                file=self._stream,
                mininterval=0.5,
            )

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Counts units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and (
            time.monotonic() - self._last >= SECONDS_BETWEEN_LINES or self._done >= self._total
        ):
            self._write_line()

    def note(self, text: str) -> None:
        """Says something beside the count, until the next note."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _write_line(self) -> None:
        self._last = time.monotonic()
        minutes = (self._last - self._begun) / 60
        share = self._done / max(1, self._total)
        parts = [
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit} ({share:.0%})",
            f"{minutes:.1f} minutes",
        ]
        if self._first < self._done < self._total:
            left = minutes * (self._total - self._done) / (self._done - self._first)
            parts.append(f"about {left:.1f} to go")
        if self._note:
            parts.append(self._note)
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()
