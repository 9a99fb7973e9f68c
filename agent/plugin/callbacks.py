"""Callbacks that log decisions to TensorBoard, Weights & Biases or a CSV file.

A callback has one method, which a scheduler calls at every decision. Decisions are few (some tens
in a run), so that a callback may take its time.
"""

from __future__ import annotations

import csv
import importlib
import math
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from pacesetter.agent.plugin.history import COLUMNS, Decision, csv_text
from pacesetter.agent.runs.folder import write_text
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.inner_models.lookup import require

PREFIX = "pacesetter/"
_QUANTITIES = ("loss", "valid_loss", "lr", "lr_factor", "momentum", "clip_threshold")


class ScheduleCallback(Protocol):
    """What `LearnedScheduler(callbacks=...)` takes: anything with this method."""

    def on_decision(self, decision: Decision) -> None:
        """A decision was taken."""


def scalars(decision: Decision) -> dict[str, float]:
    """The numbers of a decision, named like ``pacesetter/lr`` and ``pacesetter/action/log_lr``.

    Values that are unknown or not finite are left out.
    """
    values = {PREFIX + name: getattr(decision, name) for name in _QUANTITIES}
    for name, value in zip(ACTION_NAMES, decision.action, strict=True):
        values[f"{PREFIX}action/{name}"] = value
    return {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}


class TensorBoardCallback:
    """Writes decisions into TensorBoard's event files, interventions as text.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter` of the job's own, or a folder to write
            into.

    Raises:
        ImportError: a folder was given and tensorboard is not installed.
    """

    def __init__(self, writer: Any) -> None:
        if isinstance(writer, str | PathLike):
            require("tensorboard", extra="train")
            module = require("torch.utils.tensorboard", extra="train")
            writer = module.SummaryWriter(str(writer))
        self._writer = writer

    def on_decision(self, decision: Decision) -> None:
        for name, value in scalars(decision).items():
            self._writer.add_scalar(name, value, decision.step)
        for intervention in decision.interventions:
            self._writer.add_text(f"{PREFIX}interventions", str(intervention), intervention.step)
        # A crash must not lose the last decisions, which may be what led to it.
        self._writer.flush()


class WandbCallback:
    """Logs decisions to Weights & Biases, with ``pacesetter/step`` as their own axis.

    Their axis is their own because Weights & Biases counts steps by calls to ``log``, whose counter
    is the job's.

    Args:
        run: as ``wandb.init`` returns it; None: the run that is under way.

    Raises:
        ImportError: no run was given and wandb is not installed.
        RuntimeError: no run was given and none is under way.
    """

    def __init__(self, run: Any = None) -> None:
        if run is None:
            try:
                wandb = importlib.import_module("wandb")
            except ImportError as error:
                raise ImportError("WandbCallback needs wandb: pip install wandb") from error
            run = wandb.run
        if run is None:
            raise RuntimeError("there is no run of Weights & Biases yet: call wandb.init() first")
        self._run = run
        run.define_metric(f"{PREFIX}step")
        run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")

    def on_decision(self, decision: Decision) -> None:
        values: dict[str, Any] = {f"{PREFIX}step": decision.step, **scalars(decision)}
        if decision.interventions:
            values[f"{PREFIX}interventions"] = "; ".join(map(str, decision.interventions))
        self._run.log(values)


class CSVCallback:
    """Keeps a CSV file of the decisions up to date, as `History.to_csv` writes it.

    The file is whole at any moment. If a run is resumed, lines of the steps that are taken again
    are replaced.

    Args:
        path: of the file; folders on the way are made. One that is there is gone on with.

    Raises:
        ValueError: there is a file of other columns.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = Path(path)
        self._rows: list[dict[str, Any]] = []
        if not self._path.exists():
            return
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(
                    f"{self._path} is not a history of this version of pacesetter: its columns are "
                    "others. Give a path where there is no file yet"
                )
            self._rows = list(reader)

    def on_decision(self, decision: Decision) -> None:
        self._rows = [row for row in self._rows if int(row["step"]) < decision.step]
        self._rows.append(decision.row())
        write_text(self._path, csv_text(self._rows))
