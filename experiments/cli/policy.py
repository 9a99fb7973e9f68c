"""The commands about policy files: `pacesetter inspect` and `pacesetter export`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pacesetter.experiments.cli.answer import Answer

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
its meter for strange jobs, and how its actions respond to every feature.
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
    """Adds both commands.

    Args:
        command: makes the parser of a command from its name and a summary.
    """
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
    from pacesetter.experiments.response_curves import (
        curve_json,
        curve_table,
        plot_curves,
        response_curves,
        write_curves_csv,
    )

    policy = load_policy(args.policy)
    header = policy.header
    sizes = [policy.layers[0][0].shape[1], *(len(bias) for _, bias in policy.layers)]
    curves = response_curves(policy)
    if args.csv:
        write_curves_csv(curves, args.csv)
    if args.plot:
        plot_curves(curves, args.plot)
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
        "meter": "none: no job counts as strange"
        if meter is None
        else f"{len(meter.means)} components, strange from a distance of {meter.threshold:.3g}",
        **{name.replace("_", " "): value for name, value in info.provenance.items()},
        "features": ", ".join(row[0] for row in header["features"]),
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    others = "zero" if meter is None else "their mean in meta-training"
    lines += ["", f"response curves, strongest first; the other features stand at {others}", ""]
    data = {**header, "layer_sizes": sizes, "response_curves": curve_json(curves)}
    return Answer("\n".join([*lines, curve_table(curves)]), data)


def run_export(args: argparse.Namespace, line: str) -> Answer:
    """`pacesetter export`."""
    from pacesetter.agent.policy.policy import DEFAULT_POLICY, load_policy
    from pacesetter.agent.runs.folder import write_bytes

    if args.out.is_dir():
        raise IsADirectoryError(f"--out {args.out} is a folder; give a file")
    source = args.source if args.source == DEFAULT_POLICY else _policy_file(Path(args.source))
    if args.out.exists() and not args.force:
        raise FileExistsError(f"--out {args.out} exists; replace it with --force")
    policy = load_policy(source)  # a file that is damaged is better found now than in a job
    if args.format == "onnx":
        from pacesetter.agent.policy.portable import export_onnx

        export_onnx(policy, args.out)
    elif args.format == "torch":
        from pacesetter.agent.policy.portable import export_program

        export_program(policy, args.out)
    else:
        same = policy.to_bytes() if isinstance(source, str) else source.read_bytes()
        write_bytes(args.out, same)
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
