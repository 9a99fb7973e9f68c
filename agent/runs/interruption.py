"""Signals that ask a long piece of work to stop: heeded where nothing is lost by it.

Whoever starts the work (the command line) wraps it in `heeding_signals`, and what may be finished
first in `deferring`. Whoever does the work calls `safe_point` where everything done so far is
kept. The first Ctrl-C or SIGTERM is then answered at the next safe point, the second at once.
Without `heeding_signals`, in a user's own script, all of this does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(KeyboardInterrupt):
    """A signal has stopped the work; safely: at a safe point, so that nothing is lost."""

    def __init__(self, number: int, *, safely: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.safely = number, safely


class _Signals:
    """What has come in, and what to do with it."""

    def __init__(self) -> None:
        self.deferring = False
        self.pending: int | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring or self.pending is not None:
            raise Stopped(number, safely=False)
        self.pending = number
        name = NAMES[signal.Signals(number)]
        text = f"{name}: stopping as soon as nothing is lost by it; once more stops at once"
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\npacesetter: {text}\n".encode())


_current: _Signals | None = None


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Stopped` while the block runs.

    Signal handlers belong to the main thread: in another one this does nothing.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer, _current = _current, _Signals()
    before = {number: signal.signal(number, _current.take) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that Python did not set and cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _current = outer


@contextmanager
def deferring() -> Iterator[None]:
    """Keeps a signal that comes while the block runs for the next `safe_point`.

    One that no safe point has heeded when the block is over is forgotten: the work is done.
    """
    signals = _current or _Signals()  # one that nobody looks at
    signals.deferring = True
    try:
        yield
    finally:
        signals.deferring, signals.pending = False, None


def stop_requested() -> bool:
    """Whether the next `safe_point` will stop the work: time to save what there is."""
    return _current is not None and _current.pending is not None


def safe_point() -> None:
    """Raises `Stopped` if a signal has asked for it; to be called where nothing is lost by it."""
    if _current is not None and _current.pending is not None:
        raise Stopped(_current.pending, safely=True)
