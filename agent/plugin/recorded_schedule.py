"""The schedule that a run had, update by update: to replay it without the agent.

What the agent did once can be done again with torch's own tools: as a `LambdaLR`, or from a CSV
file in whatever framework.
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pacesetter.agent.runs.folder import write_text

COLUMNS = ("step", "lr_factor", "lr", "momentum", "clip_threshold")
_RECORDED = ("lr_factors", "momenta", "clip_thresholds")


class RecordedSchedule:
    """Learning rate, momentum and clip threshold of every update, in three packed arrays.

    Attributes:
        lr_factors: learning rate over its start.
        momenta: NaN where there was none to control.
        clip_thresholds: largest gradient norm; infinite where nothing was clipped.

    >>> schedule = RecordedSchedule()
    >>> schedule.append(0.5, momentum=0.9)
    >>> schedule.append(0.25, momentum=0.8, clip_threshold=2.0)
    >>> [schedule.lr_lambda()(step) for step in range(4)]
    [0.5, 0.25, 0.25, 0.25]
    """

    def __init__(self) -> None:
        self.lr_factors = array("d")
        self.momenta = array("d")
        self.clip_thresholds = array("d")

    def __len__(self) -> int:
        return len(self.lr_factors)

    def __repr__(self) -> str:
        return f"<RecordedSchedule of {len(self)} updates>"

    def append(
        self, lr_factor: float, *, momentum: float | None, clip_threshold: float = math.inf
    ) -> None:
        """Records what the next update is done with."""
        self.lr_factors.append(lr_factor)
        self.momenta.append(math.nan if momentum is None else momentum)
        self.clip_thresholds.append(clip_threshold)

    def lr_lambda(self) -> Callable[[int], float]:
        """A function from the number of updates done to the learning rate over its start.

        It holds a copy; beyond the end the last value holds. Made for torch's `LambdaLR`.

        Raises:
            ValueError: nothing was recorded.
        """
        if not self:
            raise ValueError("the schedule is empty: there was no update to record yet")
        factors = array("d", self.lr_factors)

        def lr_factor(step: int) -> float:
            return factors[min(max(step, 0), len(factors) - 1)]

        return lr_factor

    def to_lambda_lr(self, optimizer: Optimizer) -> LambdaLR:
        """A scheduler of torch with these learning rates; momentum and clipping are not in it.

        Args:
            optimizer: its learning rates are the starts that the factors count from.

        Raises:
            ValueError: nothing was recorded.
        """
        return LambdaLR(optimizer, self.lr_lambda())

    def to_csv(self, path: str | PathLike[str], *, base_lr: float) -> Path:
        """Writes one line per update, whole or not at all; numbers are exact.

        Args:
            path: of the file; folders on the way are made.
            base_lr: learning rate that the run started from, for the column ``lr``.

        Returns:
            The path.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = zip(self.lr_factors, self.momenta, self.clip_thresholds, strict=True)
        for step, (factor, momentum, threshold) in enumerate(rows):
            known = "" if math.isnan(momentum) else momentum
            writer.writerow((step, factor, factor * base_lr, known, threshold))
        path = Path(path)
        write_text(path, text.getvalue())
        return path

    @classmethod
    def from_csv(cls, path: str | PathLike[str]) -> RecordedSchedule:
        """Reads what `to_csv` wrote; the column ``lr`` may be missing.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, or a line cannot be used; the message names it.
        """
        schedule = cls()
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"step", "lr_factor", "momentum", "clip_threshold"} - {
                *(reader.fieldnames or ())
            }
            if missing:
                raise ValueError(
                    f"{path}, line 1: expected the columns {', '.join(COLUMNS)}, but "
                    f"{', '.join(sorted(missing))} missing"
                )
            for row in reader:
                try:
                    schedule._append_row(row)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        return schedule

    def _append_row(self, row: Mapping[str, str | None]) -> None:
        cells = {name: _cell(row, name) for name in ("step", "lr_factor", "clip_threshold")}
        momentum = _cell(row, "momentum") if row["momentum"] else None
        if cells["step"] != len(self):
            raise ValueError(f"expected step {len(self)}, but got {row['step']}")
        if not 0 <= cells["lr_factor"] < math.inf:
            raise ValueError(f"lr_factor must be finite and not negative: {row['lr_factor']}")
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), but got {momentum}")
        if not cells["clip_threshold"] > 0:
            raise ValueError(f"clip_threshold must be positive, but got {row['clip_threshold']}")
        self.append(cells["lr_factor"], momentum=momentum, clip_threshold=cells["clip_threshold"])

    def state_dict(self) -> dict[str, Tensor]:
        """Three float64 tensors of shape (number of updates,)."""
        return {
            name: torch.tensor(getattr(self, name).tolist(), dtype=torch.float64)
            for name in _RECORDED
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name in _RECORDED:
            setattr(self, name, array("d", state[name].tolist()))


def _cell(row: Mapping[str, str | None], name: str) -> float:
    text = row[name]
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{name} must be a number, but got {text!r}") from None
