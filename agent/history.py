"""What a scheduler decided, decision by decision: to look at, to keep, to draw."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

from pacesetter.agent.run_folder import write_text
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURE_NAMES


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One decision of the agent.

    Attributes:
        step: updates done when it was taken.
        loss: mean training loss over the interval before it; NaN if it was never finite.
        features: what the policy saw, in the order of FEATURE_NAMES.
        action: what it answered, in the order of ACTION_NAMES, each in [-1, 1].
        lr: learning rate of the next update, first param group.
        lr_factor: the same over its start, common to all groups.
        momentum: from the next update on, first group that has any; None if none has.
        clip_threshold: of the next update's gradient norm; infinite if there is none.
    """

    step: int
    loss: float
    features: tuple[float, ...]
    action: tuple[float, ...]
    lr: float
    lr_factor: float
    momentum: float | None
    clip_threshold: float


_COLUMNS = ("step", "loss", "lr", "lr_factor", "momentum", "clip_threshold")


class History(Sequence[Decision]):
    """The decisions of one run, oldest first; reads like a list."""

    def __init__(self) -> None:
        self._decisions: list[Decision] = []

    def __len__(self) -> int:
        return len(self._decisions)

    @overload
    def __getitem__(self, index: int) -> Decision: ...

    @overload
    def __getitem__(self, index: slice) -> list[Decision]: ...

    def __getitem__(self, index: int | slice) -> Decision | list[Decision]:
        return self._decisions[index]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._decisions)

    def __repr__(self) -> str:
        return f"<History of {len(self)} decisions>"

    def append(self, decision: Decision) -> None:
        """Adds the latest decision."""
        self._decisions.append(decision)

    def to_csv(self, path: str | PathLike[str]) -> Path:
        """Writes one line per decision, whole or not at all.

        Args:
            path: of the file; folders on the way are made.

        Returns:
            The path.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        actions = [f"action_{name}" for name in ACTION_NAMES]
        writer.writerow((*_COLUMNS, *actions, *FEATURE_NAMES))
        for d in self:
            writer.writerow((*(getattr(d, c) for c in _COLUMNS), *d.action, *d.features))
        path = Path(path)
        write_text(path, table.getvalue())
        return path

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """What `plot` draws: steps and values of loss, lr, momentum and clip threshold.

        Values that are unknown or infinite are left out.
        """
        curves = {}
        for name in ("loss", "lr", "momentum", "clip_threshold"):
            points = [(d.step, getattr(d, name)) for d in self]
            kept = [(s, float(v)) for s, v in points if v is not None and abs(v) < float("inf")]
            curves[name] = ([s for s, _ in kept], [v for _, v in kept])
        return curves

    def plot(self, path: str | PathLike[str]) -> Path:
        """Draws loss, learning rate, momentum and clip threshold against steps.

        Args:
            path: of the image; its ending says which kind.

        Returns:
            The path.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "plot() needs matplotlib: pip install 'pacesetter[compare]'"
            ) from error
        curves = self.curves()
        figure = Figure(figsize=(7, 2 * len(curves)), layout="constrained")
        panels = figure.subplots(len(curves), 1, sharex=True)
        for panel, (name, (steps, values)) in zip(panels, curves.items(), strict=True):
            panel.plot(steps, values, marker=".")
            panel.set_ylabel(name.replace("_", " "))
            panel.grid(alpha=0.3)
            if name in ("lr", "clip_threshold") and values and min(values) > 0:
                panel.set_yscale("log")
        panels[-1].set_xlabel("update")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return path

    def state_dict(self) -> list[dict[str, Any]]:
        """The decisions as plain Python types."""
        return [asdict(d) for d in self]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned."""
        self._decisions = [
            Decision(**{**d, "features": tuple(d["features"]), "action": tuple(d["action"])})
            for d in state
        ]
