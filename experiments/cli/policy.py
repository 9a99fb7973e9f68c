"""The commands about policy files: `pacesetter inspect` and `pacesetter export`."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacesetter.experiments.cli.parser import Answer, columns

if TYPE_CHECKING:
    from pacesetter.agent.policy.policy import Policy
    from pacesetter.envs.actions import FloatArray

POLICY_FILE = "policy.safetensors"
"""What a training run calls its policy."""

EXAMPLES = {
    "inspect": """\
Say what a policy file holds.

examples:
  pacesetter inspect                                    the shipped policy
  pacesetter inspect runs/laptop/policy.safetensors --plot curves.png
  pacesetter inspect runs/laptop/policy.safetensors --json

Prints where the policy came from, what it was trained on, its bounds and sizes,
its meter for unfamiliar jobs, and how its actions respond to every feature.
Actions lie in [-1, 1], in units of the largest change per decision; zero means
to carry on.
""",
    "export": """\
Write a policy to a file of its own, or for another runtime.

examples:
  pacesetter export runs/laptop --out my-policy.safetensors
  pacesetter export default --format onnx --out policy.onnx
  pacesetter export my-policy.safetensors --format torch --out policy.pt2

Copies the policy of a training run, finished or stopped, or writes it as an ONNX
model or as a program of torch.export. Both are checked to compute the same
actions before they are written; what they know of bounds and features is in
their metadata.
""",
}


def add_parsers(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    inspect = command("inspect", "say what a policy file holds")
    inspect.add_argument(
        "policy",
        metavar="FILE",
        nargs="?",
        default="default",
        help="policy file; the word default means the shipped one",
    )
    inspect.add_argument("--csv", type=Path, metavar="CSV", help="write the response curves here")
    inspect.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw the response curves into this file"
    )

    export = command("export", "write a policy to a file, also as ONNX or torch.export program")
    export.add_argument(
        "source",
        metavar="RUN_DIR_OR_FILE",
        help="folder of `pacesetter train`, or a policy file, or default: the shipped one",
    )
    export.add_argument(
        "--format",
        choices=("policy", "onnx", "torch"),
        default="policy",
        help="what to write: a policy file, an ONNX model, or a torch.export program (.pt2)",
    )
    export.add_argument("--out", type=Path, required=True, metavar="OUT", help="file to write")
    export.add_argument("--force", action="store_true", help="replace the file if it exists")


def run_inspect(args: argparse.Namespace, line: str) -> Answer:
    """`pacesetter inspect`; as JSON, the whole header and the response curves."""
    from pacesetter.agent.policy.policy import load_policy

    policy = load_policy(args.policy)
    header = policy.header
    sizes = [policy.layers[0][0].shape[1], *(len(bias) for _, bias in policy.layers)]
    curves = response_curves(policy)
    if args.csv:
        _write_csv(curves, args.csv)
    if args.plot:
        _plot(curves, args.plot)
    info, meter = policy.info, policy.familiarity
    weights = sum(w.size + b.size for w, b in policy.layers)
    rows: dict[str, Any] = {
        "policy": args.policy,
        "sha256": policy.digest,
        "schema version": header["schema_version"],
        "network": f"{' - '.join(map(str, sizes))}, {policy.activation}, {weights:,} numbers",
        "trained by": f"preset {info.preset}, seed {info.seed}, {info.decisions:,} decisions",
        "families": ", ".join(info.families) or "none named",
        "commit": info.commit,
        **{f"version of {name}": number for name, number in info.versions.items()},
        **{name.replace("_", " "): value for name, value in header["control"].items()},
        "meter": "none: no job counts as unfamiliar"
        if meter is None
        else f"{len(meter.means)} components, unfamiliar from a distance of {meter.threshold:.3g}",
        **{name.replace("_", " "): value for name, value in info.provenance.items()},
        "features": ", ".join(row[0] for row in header["features"]),
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    others = "zero" if meter is None else "their mean in meta-training"
    lines += ["", f"response curves, strongest first; the other features stand at {others}", ""]
    data = {**header, "layer_sizes": sizes, "response_curves": _json(curves)}
    return Answer("\n".join([*lines, _table(curves)]), data)


def run_export(args: argparse.Namespace, line: str) -> Answer:
    from pacesetter.agent.policy.policy import DEFAULT_POLICY, load_policy
    from pacesetter.agent.runs.folder import write_bytes

    if args.out.is_dir():
        raise IsADirectoryError(f"--out {args.out} is a folder; give a file")
    source = args.source if args.source == DEFAULT_POLICY else _policy_file(Path(args.source))
    if args.out.exists() and not args.force:
        raise FileExistsError(f"--out {args.out} exists; replace it with --force")
    policy = load_policy(source)  # a file that is damaged is better found now than in a job
    if args.format == "policy":
        same = policy.to_bytes() if isinstance(source, str) else source.read_bytes()
        write_bytes(args.out, same)
    else:
        from pacesetter.agent.policy.export import export_onnx, export_program

        export = export_onnx if args.format == "onnx" else export_program
        export(policy, args.out)
    data = {"policy": args.out, "format": args.format, "sha256": policy.digest}
    return Answer(f"policy: {args.out}", data)


def _policy_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(
            f"{source} is neither a policy file nor a folder; give that of a training run"
        )
    if not (source / POLICY_FILE).is_file():
        raise FileNotFoundError(
            f"{source} holds no policy yet: a training run writes {POLICY_FILE} when it first "
            "validates. Go on with it by `pacesetter train --resume`"
        )
    return source / POLICY_FILE


NUM_POINTS = 41
_COLOURS = ("#d1495b", "#00798c", "#b8a100")
_RANGES: dict[str, tuple[float, float]] = {
    "progress": (0.0, 1.0),
    "log_one_minus_momentum": (-math.inf, 0.0),
    **dict.fromkeys(("last_lr_action", "lr_trend", "loss_drop_share"), (-1.0, 1.0)),
    **dict.fromkeys(
        ("cos_momentum", "cos_momentum_slow", "cos_update", "cos_update_slow"), (-1, 1)
    ),
    **dict.fromkeys(("clipped_share", "nonfinite_share", "loss_regret_share"), (0.0, 1.0)),
    **dict.fromkeys(("adaptive", "valid_known"), (0.0, 1.0)),
    **dict.fromkeys(("valid_age", "valid_above_best", "loss_above_best"), (0.0, math.inf)),
}
"""Possible raw values, where they are fewer than the bounds of the features allow."""


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """The actions as a function of one feature, the others held at their usual values.

    Attributes:
        values: (NUM_POINTS,), its raw values, ascending.
        typical: the raw value at which it is held while another one varies.
        actions: (NUM_POINTS, 3), in [-1, 1].
    """

    feature: str
    values: FloatArray
    typical: float
    actions: FloatArray


def response_curves(policy: Policy) -> list[ResponseCurve]:
    """The curves of all features, the strongest first.

    The usual value of a feature is its mean in meta-training, if the policy's meter knows it, and
    otherwise the centre of its scale.
    """
    import numpy as np

    from pacesetter.envs.features import FEATURE_BOUND, FEATURES, HORIZON_RANGE

    ranges = {**_RANGES, "log_horizon": tuple(map(math.log, HORIZON_RANGE))}
    meter = policy.familiarity
    typical = np.zeros(len(FEATURES)) if meter is None else meter.mean.astype(np.float64)
    curves = []
    for i, feature in enumerate(FEATURES):
        ends = np.array(ranges.get(feature.name, (-np.inf, np.inf)))
        scaled = (ends - feature.centre) / feature.scale
        first, last = np.clip(scaled, -FEATURE_BOUND, FEATURE_BOUND).tolist()
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
    return sorted(curves, key=lambda curve: -float(np.ptp(curve.actions, axis=0).max()))


def _table(curves: Sequence[ResponseCurve]) -> str:
    heads = ("log lr", "log (1 - momentum)", "log clip ratio")
    lines = [("feature", "from", "to", *(f"{head}: ends, range" for head in heads))]
    for curve in curves:
        cells = [f"{a[0]:+.2f} {a[-1]:+.2f}  {a.max() - a.min():.2f}" for a in curve.actions.T]
        lines.append((curve.feature, f"{curve.values[0]:.3g}", f"{curve.values[-1]:.3g}", *cells))
    return columns(lines, ruled=False)


def _json(curves: Sequence[ResponseCurve]) -> dict[str, Any]:
    from pacesetter.envs.actions import ACTION_NAMES

    return {
        curve.feature: {
            "typical": curve.typical,
            "values": curve.values.tolist(),
            **{name: curve.actions[:, j].tolist() for j, name in enumerate(ACTION_NAMES)},
        }
        for curve in curves
    }


def _write_csv(curves: Sequence[ResponseCurve], path: Path) -> None:
    from pacesetter.agent.runs.folder import write_text
    from pacesetter.envs.actions import ACTION_NAMES

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("feature", "value", *ACTION_NAMES))
    for curve in curves:
        for value, actions in zip(curve.values.tolist(), curve.actions.tolist(), strict=True):
            writer.writerow((curve.feature, value, *actions))
    write_text(path, table.getvalue())


def _plot(curves: Sequence[ResponseCurve], path: Path) -> None:
    from pacesetter.agent.runs.folder import write_bytes
    from pacesetter.envs.actions import ACTION_NAMES
    from pacesetter.inner_models.lookup import require

    columns, rows = 4, -(-len(curves) // 4)
    figure = require("matplotlib.figure", extra="compare").Figure(
        figsize=(2.6 * columns, 1.7 * rows + 0.5), layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, curve in zip(panels.flat, curves, strict=False):
        for j, name in enumerate(ACTION_NAMES):
            axes.plot(curve.values, curve.actions[:, j], color=_COLOURS[j], label=name, lw=1.3)
        axes.axvline(curve.typical, color="#a8a8a8", linewidth=0.8, linestyle="--")
        axes.set_title(curve.feature, fontsize=8)
        axes.set_ylim(-1.05, 1.05)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(ACTION_NAMES))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_bytes(path, picture.getvalue())
