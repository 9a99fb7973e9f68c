"""Folders that hold a run: claimed once, written so that a crash loses nothing.

A run folder has a ``run.json`` that says what made it. A second run in the same folder is refused,
unless it continues the first. Files are written to a temporary name and then renamed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name on the same disk, then renamed.

    Raises:
        OSError: it cannot be written; `filename` is the path, also where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def claim_folder(out: Path, *, kind: str, settings: dict[str, Any], resume: bool) -> None:
    """Makes `out` the folder of this run, or checks that it already is.

    The run's result is decided by `settings`, in JSON types; `kind` is such as ``"train"``.

    Raises:
        FileExistsError: the folder holds something and `resume` is off.
        FileNotFoundError: `resume` is on and the folder holds no run of this kind.
        NotADirectoryError: `out` is a file.
        ValueError: the folder's run was started with other settings.
    """
    settings = json.loads(json.dumps(settings))
    record = out / RUN_FILE
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; give a folder, new or empty")
    if not resume:
        if out.is_dir() and any(out.iterdir()):
            raise FileExistsError(
                f"--out {out} already holds files. Give a new folder, or go on with the run in it "
                "with --resume"
            )
        write_json(record, {"kind": kind, "settings": settings})
        return
    if not record.is_file():
        raise FileNotFoundError(
            f"cannot resume: {record} does not exist. Start the run without --resume"
        )
    found = json.loads(record.read_text(encoding="utf-8"))
    if found.get("kind") != kind:
        raise ValueError(f"cannot resume: {out} holds a {found.get('kind')!r} run, not {kind!r}")
    then, now = dict(_flat(found["settings"])), dict(_flat(settings))
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if changed:
        listing = ", ".join(f"{n}: {then.get(n)!r} then, {now.get(n)!r} now" for n in changed)
        raise ValueError(f"cannot resume {out}: it was started with other settings ({listing})")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Single settings with their names, those of a mapping within under ``outer.inner``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
