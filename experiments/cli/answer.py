"""What a command says in the end: text for people, one JSON object for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pacesetter.experiments.analysis.findings import Summary
    from pacesetter.experiments.analysis.statistics import Interval


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes:
        text: for standard output.
        data: the same for ``--json``: names to numbers, texts, paths, lists and mappings of them.
    """

    text: str
    data: Mapping[str, Any]


def to_json(data: Mapping[str, Any]) -> str:
    """Data as one JSON object that every parser reads: numbers without a value become null.

    >>> print(to_json({"loss": float("nan"), "out": Path("runs"), "steps": (1, 2)}))
    {
      "loss": null,
      "out": "runs",
      "steps": [
        1,
        2
      ]
    }
    """
    return json.dumps(_plain(data), indent=2, allow_nan=False)


def summary_data(summary: Summary) -> dict[str, Any]:
    """What a comparison found, arm by arm: the columns of its table.

    Args:
        summary: of the comparison.

    Returns:
        ``tasks``, ``seeds``, ``reference`` and ``arms``, the best on test first. A score is the
        mean over tasks of log(final loss / the reference's), with its 95 % interval.
    """
    arms = [
        {
            "arm": e.entry.arm,
            "label": e.label,
            "start_lr": e.entry.start_lr,
            "budget": e.entry.budget,
            "scores": {split: _interval(score) for split, score in e.scores.items()},
            "finding": e.finding(),
            "normalised": {split: _interval(score) for split, score in e.normalised.items()},
            "trials": e.trials,
            "inner_steps": e.inner_steps,
            "diverged": e.diverged,
            "runs": e.num_runs,
        }
        for e in sorted(summary.entries, key=lambda e: e.scores["test"].estimate)
    ]
    reference = summary.labels[summary.reference]
    return {"tasks": summary.tasks, "seeds": summary.seeds, "reference": reference, "arms": arms}


def _interval(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
