"""Tensors and a JSON header in one safetensors file, sealed by a digest over every byte.

A policy file is data that people download: reading one runs no code, and a file with any byte
changed is refused. The header is the only metadata key of the safetensors file and starts with the
SHA-256 of the whole file, taken with zeros in the digest's own place, so that the digest stands at
the same offset in every file of every schema version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

Float32Array = NDArray[np.float32]

METADATA_KEY = "pacesetter"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its own JSON, little-endian
_OPENING = b'{"__metadata__":{"' + METADATA_KEY.encode() + rb'":"{\"sha256\":\"'
_DIGEST_START = _LENGTH_BYTES + len(_OPENING)
_DIGEST_END = _DIGEST_START + 64
_NO_DIGEST = "0" * 64


class PolicyFileError(ValueError):
    """A file that is not a policy of this library, or no longer the one that was written."""


def seal(tensors: Mapping[str, Float32Array], header: Mapping[str, Any]) -> tuple[bytes, str]:
    """Packs tensors and header.

    Args:
        tensors: by name.
        header: JSON types only, without ``sha256``.

    Returns:
        The file's bytes, and their digest: 64 hexadecimal digits.

    Raises:
        TypeError: the header holds something that JSON cannot.
        ValueError: the header holds a number that is not finite.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # The digest goes first, where its offset depends on nothing else.
    text = f'{{"sha256":"{_NO_DIGEST}"{"," if header else ""}{text[1:]}'
    data = bytearray(
        save_tensors(
            {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)},
            metadata={METADATA_KEY: text},
        )
    )
    if data[_LENGTH_BYTES:_DIGEST_START] != _OPENING:  # pragma: no cover - a new safetensors
        raise RuntimeError("this version of safetensors writes metadata in an unknown order")
    digest = hashlib.sha256(data).hexdigest()
    data[_DIGEST_START:_DIGEST_END] = digest.encode()
    return bytes(data), digest


def unseal(data: bytes, *, source: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Checks the seal and unpacks.

    Args:
        data: the whole file.
        source: what to call it in errors.

    Returns:
        Tensors by name, and the header, ``sha256`` included.

    Raises:
        PolicyFileError: cut short, not a policy, or altered.
    """
    check_opening(data, source=source)
    written = bytes(data[_DIGEST_START:_DIGEST_END])
    blank = b"".join((data[:_DIGEST_START], _NO_DIGEST.encode(), data[_DIGEST_END:]))
    found = hashlib.sha256(blank).hexdigest()
    if written != found.encode():
        if _is_cut_short(data):
            raise PolicyFileError(f"{source} is cut short: copy or download it again")
        raise PolicyFileError(
            f"{source} was altered after it was written: its bytes have SHA-256 {found}, "
            f"its header says {written.decode('ascii', 'replace')}"
        )
    # From here on the file is as its writer left it, who need not have been this library.
    try:
        text = _outer_json(data)["__metadata__"][METADATA_KEY]
        header = json.loads(text, parse_constant=_no_constant)
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyFileError(f"{source} is not a pacesetter policy: {error}") from error
    if not isinstance(header, dict):
        raise PolicyFileError(f"{source} is not a pacesetter policy: its header is no JSON object")
    return tensors, header


def check_opening(data: bytes, *, source: str) -> None:
    """Refuses, from its first bytes, what cannot be a policy file.

    Args:
        data: the file, or its first few hundred bytes.
        source: what to call it in errors.

    Raises:
        PolicyFileError: cut short or not a policy.
    """
    opening = data[_LENGTH_BYTES:_DIGEST_START]
    if len(data) < _DIGEST_END and _OPENING.startswith(opening):
        raise PolicyFileError(f"{source} is cut short: it has only {len(data)} bytes")
    if opening != _OPENING:
        raise PolicyFileError(f"{source} is not a pacesetter policy")


def read_file(path: Path) -> bytes:
    """The bytes of a policy file.

    Raises:
        FileNotFoundError: there is no such file.
        PolicyFileError: it is a folder, or its first bytes are not those of a policy file (so that
            a checkpoint of many gigabytes, given by mistake, is not read).
    """
    if path.is_dir():
        raise PolicyFileError(f"{path} is a folder: give the policy file in it")
    try:
        with path.open("rb") as file:
            start = file.read(_DIGEST_END)
            check_opening(start, source=str(path))
            return start + file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no policy file {path}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"its header holds {name}, which is not JSON")


def _outer_json(data: bytes) -> Any:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    return json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])


def _is_cut_short(data: bytes) -> bool:
    """Whether a broken file merely ends early; its bytes may be anything."""
    text = data[_LENGTH_BYTES:].decode("latin-1")
    try:
        outer, used = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        # Broken by the end of the file, or by a byte changed before it?
        return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 8
    except (ValueError, RecursionError):
        return False
    try:
        ends = [e["data_offsets"][1] for name, e in outer.items() if name != "__metadata__"]
        length = -(-used // _LENGTH_BYTES) * _LENGTH_BYTES  # the JSON is padded with spaces
        return bool(length + max(ends) > len(text))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False
