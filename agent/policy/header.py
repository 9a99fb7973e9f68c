"""What the header of a policy file says beyond the network, and whether this library agrees.

A policy is only right on the features that it was trained on: their names, order, normalisation
and bounds are written into its file and have to be those of the library that reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from pacesetter.agent.policy.file import PolicyFileError
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, FEATURES, HORIZON_RANGE, SMOOTHING

SCHEMA_VERSION = 2
"""Version of the files that this library writes, and the newest that it reads.

1. The network, the features and the control.
2. Adds ``decision_power`` to the control, and ``familiarity``: how to tell strange features.
"""

_SINCE_2 = {"decision_power": 1.0}
"""Settings of the control that version 1 lacks, with what its policies were trained with."""

_LIBRARIES = ("pacesetter", "torch", "numpy", "safetensors", "gymnasium", "stable-baselines3")


def header_fields(control: ControlConfig, *, version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """The part of a header that decides whether a policy can be used, in JSON types.

    Args:
        control: bounds and step sizes.
        version: of the file, at most SCHEMA_VERSION; one of version 1 has equal intervals.
    """
    settings = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(control).items()}
    if version < 2:
        settings = {n: v for n, v in settings.items() if n not in _SINCE_2}
    return {
        "schema_version": version,
        "features": _feature_table(),
        "encoding": _encoding(),
        "control": settings,
    }


def check_header(header: Mapping[str, Any], *, source: str) -> None:
    """Refuses a policy of a newer schema, or one trained on features with another meaning.

    Args:
        header: of a file whose seal is intact.
        source: what to call the file in errors.

    Raises:
        PolicyFileError: which of the two, and what differs.
    """
    version = header.get("schema_version")
    if type(version) is not int or version < 1:
        raise PolicyFileError(f"{source} is not a pacesetter policy: schema version {version!r}")
    if version > SCHEMA_VERSION:
        raise PolicyFileError(
            f"{source} has schema version {version}, this library reads up to {SCHEMA_VERSION}: "
            "upgrade pacesetter"
        )
    theirs = header.get("features")
    # As text: to Python, true equals 1.
    if json.dumps([theirs, header.get("encoding")], sort_keys=True) == json.dumps(
        [_feature_table(), _encoding()], sort_keys=True
    ):
        return
    raise PolicyFileError(
        f"{source} was trained on other features than this library's "
        f"({_feature_differences(theirs) or 'in another order or encoding'}): train it anew, or "
        "install the version of pacesetter that made it"
    )


def read_control(values: Any, *, version: int = SCHEMA_VERSION) -> ControlConfig:
    """The control configuration of a header.

    Args:
        values: what the header holds, which may be anything.
        version: of the file; in one of version 1 what came later has its value of then.

    Raises:
        TypeError: a setting is missing, unknown, or not of its type.
        ValueError: a setting is out of its range.
    """
    usual = asdict(ControlConfig())
    then = _SINCE_2 if version < 2 else {}
    wanted = usual.keys() - then.keys()
    if not isinstance(values, dict) or values.keys() != wanted:
        raise TypeError(f"control must hold {sorted(wanted)}, but got {values!r}")
    read: dict[str, Any] = dict(then)
    for name, value in values.items():
        expected = usual[name]
        parts = value if isinstance(expected, tuple) and isinstance(value, list) else [value]
        count = len(expected) if isinstance(expected, tuple) else 1
        kinds = (int,) if isinstance(expected, int) else (int, float)
        if len(parts) != count or not all(type(p) in kinds and _is_finite(p) for p in parts):
            raise TypeError(f"control {name} must be like {expected!r}, but got {value!r}")
        read[name] = tuple(parts) if isinstance(expected, tuple) else value
    return ControlConfig(**read)


def check_info(header: Mapping[str, Any]) -> None:
    """Refuses what a header says of a policy's origin if it is not of the type it should be.

    Args:
        header: of a file, with all of these entries.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has another type.
    """
    for name, (fits, expected) in _INFO.items():
        if not fits(header[name]):
            raise TypeError(f"{name} must be {expected}, but got {header[name]!r}")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that matter to a policy, where installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_INFO: dict[str, tuple[Callable[[Any], bool], str]] = {
    "families": (lambda v: isinstance(v, list) and all(map(_is_text, v)), "a list of names"),
    "preset": (lambda v: v is None or _is_text(v), "a name or null"),
    "seed": (lambda v: v is None or type(v) is int, "an integer or null"),
    "decisions": (_is_count, "a number of decisions"),
    "commit": (lambda v: v is None or _is_text(v), "a name or null"),
    "versions": (
        lambda v: isinstance(v, dict) and all(map(_is_text, v.values())),
        "versions by name",
    ),
    "provenance": (lambda v: isinstance(v, dict), "a JSON object"),
}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _feature_table() -> list[list[Any]]:
    return [[f.name, f.centre, f.scale] for f in FEATURES]


def _encoding() -> dict[str, Any]:
    return {
        "bound": FEATURE_BOUND,
        "smoothing": SMOOTHING,
        "horizon_range": list(HORIZON_RANGE),
    }


def _feature_differences(theirs: Any) -> str:
    """Which features differ, and how; empty if it is only their order or encoding."""
    try:
        table = {str(name): (centre, scale) for name, centre, scale in theirs}
    except (TypeError, ValueError):
        return "its table of features is unreadable"
    ours = {f.name: (f.centre, f.scale) for f in FEATURES}
    differences = (
        ("unknown here", [n for n in table if n not in ours]),
        ("missing there", [n for n in ours if n not in table]),
        ("scaled otherwise", [n for n in ours if n in table and table[n] != ours[n]]),
    )
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in differences if names)
