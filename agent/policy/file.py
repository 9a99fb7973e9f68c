"""The policy file: tensors and a JSON header in one safetensors file, with a digest over all bytes.

A policy file is data that people download: reading one runs no code, and a file with any byte
changed is refused. The header is the only metadata entry of the safetensors file and starts with
the SHA-256 of the whole file, taken with zeros in the digest's own place.

A policy is only right on the features that it was trained on: their names, order, normalisation
and bounds are written into the header and have to be those of the library that reads it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, FEATURES, HORIZON_RANGE, SMOOTHING

Float32Array = NDArray[np.float32]

SCHEMA_VERSION = 2
"""Version of the files that this library reads and writes."""
METADATA_KEY = "pacesetter"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its own JSON, little-endian
_OPENING = b'{"__metadata__":{"' + METADATA_KEY.encode() + b'":"'
_NO_DIGEST = "0" * 64
_UNREADABLE = (
    *(SafetensorError, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
"""What reading bytes that are no policy may raise."""


class PolicyFileError(ValueError):
    """A file that is not a policy of this library, or no longer the one that was written."""


def seal(tensors: Mapping[str, Float32Array], header: Mapping[str, Any]) -> tuple[bytes, str]:
    """Packs tensors and a header of JSON types, without ``sha256``; returns bytes and digest."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    text = f'{{"sha256":"{_NO_DIGEST}"{"," if header else ""}{text[1:]}'
    data = save_tensors(
        {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)},
        metadata={METADATA_KEY: text},
    )
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(_NO_DIGEST.encode(), digest.encode(), 1), digest


def unseal(data: bytes, *, source: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Checks the digest of a file; returns its tensors and its header, ``sha256`` included."""
    check_opening(data, source=source)
    try:
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        text = json.loads(data[_LENGTH_BYTES:end])["__metadata__"][METADATA_KEY]
        header = json.loads(text, parse_constant=_refuse_constant)
        written = header["sha256"].encode()
        found = hashlib.sha256(data.replace(written, _NO_DIGEST.encode(), 1)).hexdigest()
        if written != found.encode():
            raise PolicyFileError(
                f"{source} was altered or cut short after it was written: copy or download it again"
            )
        return load_tensors(data), header
    except PolicyFileError:
        raise
    except _UNREADABLE as error:
        raise PolicyFileError(
            f"{source} is not a pacesetter policy, or is cut short: {error}"
        ) from error


def check_opening(data: bytes, *, source: str) -> None:
    """Refuses, from its first bytes, what cannot be a policy file."""
    if not data[_LENGTH_BYTES:].startswith(_OPENING):
        raise PolicyFileError(f"{source} is not a pacesetter policy, or is cut short")


def read_file(path: Path) -> bytes:
    """The bytes of a policy file; of a checkpoint of many gigabytes, only the first are read."""
    if path.is_dir():
        raise PolicyFileError(f"{path} is a folder: give the policy file in it")
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES + len(_OPENING))
            check_opening(start, source=str(path))
            return start + file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no policy file {path}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"its header holds {name}, which is not JSON")


# -- what the header says of features, control and origin -----------------------------------------


def header_fields(control: ControlConfig) -> dict[str, Any]:
    """The part of a header that decides whether a policy can be used, in JSON types."""
    settings = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(control).items()}
    span = list(HORIZON_RANGE)
    return {
        "schema_version": SCHEMA_VERSION,
        "features": [[f.name, f.centre, f.scale] for f in FEATURES],
        "encoding": {"bound": FEATURE_BOUND, "smoothing": SMOOTHING, "horizon_range": span},
        "control": settings,
    }


def check_header(header: Mapping[str, Any], *, source: str) -> None:
    """Refuses a policy of another schema, or one trained on features with another meaning."""
    version = header.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        raise PolicyFileError(
            f"{source} has schema version {version!r}, this library reads {SCHEMA_VERSION}: "
            + ("upgrade pacesetter" if newer else "train it anew")
        )
    names = ("features", "encoding")
    ours = header_fields(ControlConfig())
    # As text: to Python, true equals 1.
    texts = (json.dumps([h.get(n) for n in names], sort_keys=True) for h in (header, ours))
    if len(set(texts)) > 1:
        differences = _feature_differences(header.get("features")) or "in another order or encoding"
        raise PolicyFileError(
            f"{source} was trained on other features than this library's ({differences}): train it "
            "anew, or install the version of pacesetter that made it"
        )


def read_control(values: Any) -> ControlConfig:
    """The control configuration of a header, which may hold anything."""
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


def check_info(header: Mapping[str, Any]) -> None:
    """Refuses what a header says of a policy's origin if it is not of the type it should be."""
    for name, (fits, expected) in _INFO.items():
        if not fits(header[name]):
            raise TypeError(f"{name} must be {expected}, but got {header[name]!r}")


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


_INFO: dict[str, tuple[Callable[[Any], bool], str]] = {
    "families": (lambda v: isinstance(v, list) and _are_texts(v), "a list of names"),
    "preset": (lambda v: isinstance(v, str | None), "a name or null"),
    "seed": (lambda v: v is None or type(v) is int, "an integer or null"),
    "decisions": (lambda v: type(v) is int and v >= 0, "a number of decisions"),
    "commit": (lambda v: isinstance(v, str | None), "a name or null"),
    "versions": (lambda v: isinstance(v, dict) and _are_texts(v.values()), "versions by name"),
    "provenance": (lambda v: isinstance(v, dict), "a JSON object"),
}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


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
