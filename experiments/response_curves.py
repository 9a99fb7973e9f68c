"""What a policy answers when one feature moves and the others stay where they usually are."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.runs.folder import write_bytes, write_text
from pacesetter.envs.actions import ACTION_NAMES, NUM_ACTIONS
from pacesetter.envs.features import FEATURE_BOUND, FEATURES, HORIZON_RANGE, NUM_FEATURES
from pacesetter.inner_models.lookup import require

FloatArray = NDArray[np.float64]

NUM_POINTS = 41
COLUMNS = 4
_HEADS = ("log lr", "log (1 - momentum)", "log clip ratio")
COLOURS = ("#d1495b", "#00798c", "#b8a100")

_INF = math.inf
_LIMITS: dict[str, tuple[float, float]] = {
    "progress": (0.0, 1.0),
    "log_horizon": (math.log(HORIZON_RANGE[0]), math.log(HORIZON_RANGE[1])),
    "log_one_minus_momentum": (-_INF, 0.0),
    "last_lr_action": (-1.0, 1.0),
    "lr_trend": (-1.0, 1.0),
    "loss_above_best": (0.0, _INF),
    "loss_drop_share": (-1.0, 1.0),
    "loss_regret_share": (0.0, 1.0),
    "cos_momentum": (-1.0, 1.0),
    "cos_momentum_slow": (-1.0, 1.0),
    "cos_update": (-1.0, 1.0),
    "cos_update_slow": (-1.0, 1.0),
    "clipped_share": (0.0, 1.0),
    "nonfinite_share": (0.0, 1.0),
    "adaptive": (0.0, 1.0),
    "valid_known": (0.0, 1.0),
    "valid_age": (0.0, _INF),
    "valid_above_best": (0.0, _INF),
}
"""What raw values are possible, where that is less than the features' bounds."""


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """How the actions depend on one feature.

    Attributes:
        feature: its name.
        values: (NUM_POINTS,), its raw values, from the least to the greatest possible.
        typical: the raw value at which it stands while another moves.
        actions: (NUM_POINTS, 3), in [-1, 1].
    """

    feature: str
    values: FloatArray
    typical: float
    actions: FloatArray

    @property
    def strengths(self) -> FloatArray:
        """(3,), range of each action over the curve."""
        ranges: FloatArray = np.ptp(self.actions, axis=0)
        return ranges


def response_curves(policy: Policy) -> list[ResponseCurve]:
    """The curves of all features, the strongest first.

    The other features stay at their mean in meta-training if the policy has a meter that knows it,
    and else at zero, near the middle of what they are scaled for.
    """
    meter = policy.familiarity
    typical = np.zeros(NUM_FEATURES) if meter is None else meter.mean.astype(np.float64)
    curves = []
    for i, feature in enumerate(FEATURES):
        low, high = _LIMITS.get(feature.name, (-_INF, _INF))
        ends = (np.array([low, high]) - feature.centre) / feature.scale
        first, last = np.clip(ends, -FEATURE_BOUND, FEATURE_BOUND).tolist()
        swept = np.linspace(first, last, NUM_POINTS)
        rows = np.tile(typical, (NUM_POINTS, 1))
        rows[:, i] = swept
        curves.append(
            ResponseCurve(
                feature=feature.name,
                values=swept * feature.scale + feature.centre,
                typical=float(typical[i] * feature.scale + feature.centre),
                actions=policy.act(rows),
            )
        )
    return sorted(curves, key=lambda curve: -float(curve.strengths.max()))


def curve_table(curves: list[ResponseCurve]) -> str:
    """One line per feature: its range, and each action at both ends and its range between."""
    lines = [("feature", "from", "to", *(f"{head}: ends, range" for head in _HEADS))]
    for curve in curves:
        cells = [
            f"{curve.actions[0, j]:+.2f} {curve.actions[-1, j]:+.2f}  {curve.strengths[j]:.2f}"
            for j in range(NUM_ACTIONS)
        ]
        lines.append((curve.feature, f"{curve.values[0]:.3g}", f"{curve.values[-1]:.3g}", *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def curve_json(curves: list[ResponseCurve]) -> dict[str, Any]:
    """The curves in JSON types, by feature, the strongest first."""
    return {
        curve.feature: {
            "typical": curve.typical,
            "values": curve.values.tolist(),
            **{name: curve.actions[:, j].tolist() for j, name in enumerate(ACTION_NAMES)},
        }
        for curve in curves
    }


def write_curves_csv(curves: list[ResponseCurve], path: Path) -> None:
    """Writes a line per feature and value: feature, value, and the three actions."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("feature", "value", *ACTION_NAMES))
    for curve in curves:
        for value, actions in zip(curve.values.tolist(), curve.actions.tolist(), strict=True):
            writer.writerow((curve.feature, value, *actions))
    write_text(path, table.getvalue())


def plot_curves(curves: list[ResponseCurve], path: Path) -> None:
    """Draws a panel per feature, the strongest first, as PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = -(-len(curves) // COLUMNS)
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(2.6 * COLUMNS, 1.7 * rows + 0.5), layout="constrained"
    )
    panels = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
    for axes, curve in zip(panels.flat, curves, strict=False):
        for j, (name, colour) in enumerate(zip(ACTION_NAMES, COLOURS, strict=True)):
            axes.plot(curve.values, curve.actions[:, j], color=colour, label=name, linewidth=1.3)
        axes.axvline(curve.typical, color="#a8a8a8", linewidth=0.8, linestyle=(0, (4, 2)))
        axes.set_title(curve.feature, fontsize=8)
        axes.set_ylim(-1.05, 1.05)
        axes.tick_params(labelsize=7)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=NUM_ACTIONS
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_bytes(path, picture.getvalue())
