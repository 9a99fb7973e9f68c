"""What the header of a policy file says beyond the network, and whether this library agrees.

A policy is only right on the features that it was trained on: their names, order, normalisation
and bounds are written into its file and have to be those of the library that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from pacesetter.agent.sealed_file import PolicyFileError
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, FEATURES, HORIZON_RANGE, SMOOTHING

SCHEMA_VERSION = 1
"""Version of the files that this library writes, and the newest that it reads."""

_LIBRARIES = ("pacesetter", "torch", "numpy", "safetensors", "gymnasium", "stable-baselines3")


def header_fields(control: ControlConfig) -> dict[str, Any]:
    """The part of a header that decides whether a policy can be used, in JSON types."""
    return {
        "schema_version": SCHEMA_VERSION,
        "features": _feature_table(),
        "encoding": _encoding(),
        "control": {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(control).items()},
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
    if theirs == _feature_table() and header.get("encoding") == _encoding():
        return
    raise PolicyFileError(
        f"{source} was trained on other features than this library's "
        f"({_feature_differences(theirs) or 'in another order or encoding'}): train it anew, or "
        "install the version of pacesetter that made it"
    )


def read_control(values: Any) -> ControlConfig:
    """The control configuration of a header.

    Args:
        values: what the header holds, which may be anything.

    Raises:
        TypeError: a setting is missing, unknown, or not of its type.
        ValueError: a setting is out of its range.
    """
    usual = asdict(ControlConfig())
    if not isinstance(values, dict) or values.keys() != usual.keys():
        raise TypeError(f"control must hold {sorted(usual)}, but got {values!r}")
    read: dict[str, Any] = {}
    for name, value in values.items():
        expected = usual[name]
        parts = value if isinstance(expected, tuple) and isinstance(value, list) else [value]
        count = len(expected) if isinstance(expected, tuple) else 1
        kinds = (int,) if isinstance(expected, int) else (int, float)
        if len(parts) != count or not all(type(p) in kinds and _is_finite(p) for p in parts):
            raise TypeError(f"control {name} must be like {expected!r}, but got {value!r}")
        read[name] = tuple(parts) if isinstance(expected, tuple) else value
    return ControlConfig(**read)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that matter to a policy, where installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


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
