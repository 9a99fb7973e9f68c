"""When to give up: validation losses that have stopped getting better, counted in intervals."""

from __future__ import annotations

import math
from typing import Any

from pacesetter.agent.plugin.checks import positive_integer


class EarlyStopping:
    """Says when the best validation loss lies too many intervals back.

    Only intervals in which there was a validation count, so that the cadence of validations does
    not matter; of several in one interval the best counts. A loss that is not finite is no better
    than any other. It never says stop before there was a finite one, and takes it back as soon as
    there is a better one.

    Args:
        patience: intervals without a better loss after which to stop; None: never.
        min_delta: by how much a loss has to be below the best to count as better.

    Attributes:
        best: least finite validation loss, as far as `min_delta` lets it count; None while there
            is none.
        waited: intervals with a validation since then.

    Raises:
        ValueError: `patience` is not a positive integer, or `min_delta` is negative or not finite.

    >>> stopping = EarlyStopping(2)
    >>> for loss in (0.5, 0.6, 0.5):
    ...     stopping.observe(loss)
    ...     stopping.interval_over()
    >>> stopping.best, stopping.waited, stopping.should_stop
    (0.5, 2, True)
    """

    def __init__(self, patience: int | None = 10, *, min_delta: float = 0.0) -> None:
        self.patience = None if patience is None else positive_integer(patience, "patience")
        self.min_delta = float(min_delta)
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"Expected min_delta of zero or more, but got {min_delta!r}")
        self.best: float | None = None
        self.waited = 0
        self._observed = self._improved = False

    @property
    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def observe(self, valid_loss: float) -> None:
        """Takes in a validation loss, less being better, of the interval under way."""
        value = float(valid_loss)
        self._observed = True
        if math.isfinite(value) and (self.best is None or value < self.best - self.min_delta):
            self.best = value
            self.waited = 0
            self._improved = True

    def interval_over(self) -> None:
        """Ends an interval."""
        if self._observed and self.best is not None and not self._improved:
            self.waited += 1
        self._observed = self._improved = False

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain types. The settings are not in it."""
        return {
            "best": self.best,
            "waited": self.waited,
            "observed": self._observed,
            "improved": self._improved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.best, self.waited = state["best"], state["waited"]
        self._observed, self._improved = state["observed"], state["improved"]
