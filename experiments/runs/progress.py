"""How far a long piece of work is: a bar in a terminal, now and then a line elsewhere; its time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pacesetter.agent.runs.folder import write_json
from pacesetter.inner_models.lookup import require

SECONDS_BETWEEN_LINES = 60.0
"""In a log file, where a bar would fill pages."""


class Progress:
    """Counts stages; a context manager.

    Args:
        total: stages.
        shown: whether to say anything at all.
        stream: where to; default: standard error.
    """

    def __init__(self, total: int, *, shown: bool, stream: TextIO | None = None) -> None:
        self._total, self._done, self._shown = total, 0, shown
        self._stream = sys.stderr if stream is None else stream
        self._begun = self._last = time.monotonic()
        self._what = ""
        self._bar: Any = None
        if shown and self._stream.isatty():
            tqdm = require("tqdm", extra="compare").tqdm
            self._bar = tqdm(total=total, unit="stage", file=self._stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, what: str) -> None:
        """Says what is being done now."""
        self._what = what
        if self._bar is not None:
            self._bar.set_description(what)

    def done(self) -> None:
        """Counts a stage as over."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._shown:
            now = time.monotonic()
            if now - self._last >= SECONDS_BETWEEN_LINES or self._done == self._total:
                self._last = now
                minutes = (now - self._begun) / 60
                self._stream.write(
                    f"{self._done} of {self._total} stages, {minutes:.1f} minutes: {self._what}\n"
                )
                self._stream.flush()


class Clock:
    """Time spent on a piece of work, over all processes that had a part in it.

    Args:
        path: where it is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": 0.0}
        self._before = float(known["seconds"])
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """All of it until now."""
        return self._before + time.monotonic() - self._begun

    def write(self) -> None:
        """Keeps it for the next process."""
        write_json(self._path, {"seconds": round(self.seconds, 1)})
