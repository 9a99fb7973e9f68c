"""What a release's files have to say and hold: versions, changelog, citation, wheel and sdist.

Reads files only; `release_check.py` installs and runs.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import tomllib

MAX_WHEEL_BYTES = 2_000_000
POLICY = "pacesetter/agent/policies/default.safetensors"
SDIST_FILES = ("pyproject.toml", "README.md", "LICENSE", "PKG-INFO")
BIBTEX = ("README.md", "docs/cite.md")
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((a|b|rc)\d+)?")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)$")


class ReleaseError(Exception):
    """Something is not fit for a release; the message says what was expected and what there is."""


def project_table(root: Path) -> dict[str, Any]:
    """The table `project` of pyproject.toml, the one place where the version is set."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def canonical(name: str) -> str:
    """A distribution's name as registries compare it.

    >>> canonical("Stable_Baselines3")
    'stable-baselines3'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def check_texts(root: Path) -> str:
    """Compares what the texts say about the version.

    Args:
        root: the checkout.

    Returns:
        The version.

    Raises:
        ReleaseError: it is no semantic version, a text has another one or another date, or the
            changelog has no section for it.
    """
    version: str = project_table(root)["version"]
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"pyproject.toml: expected a semantic version like 1.2.3, got {version}")
    date = release_date((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    for key, expected in (("version", version), ("date-released", date)):
        if cited(citation, key) != expected:
            got = cited(citation, key)
            raise ReleaseError(f"CITATION.cff: expected {key} {expected}, got {got}")
    for name in BIBTEX:
        found = re.findall(r"version\s*=\s*\{([^}]*)\}", (root / name).read_text(encoding="utf-8"))
        if found != [version]:
            raise ReleaseError(f"{name}: expected one `version = {{{version}}}`, got {found}")
    return version


def release_date(text: str, version: str) -> str:
    """The date of a version, from its section in the changelog.

    Args:
        text: the changelog, in the form of Keep a Changelog.
        version: to look for.

    Returns:
        The date, as in 2026-12-31.

    Raises:
        ReleaseError: the section is missing, undated or empty.
    """
    heading = f"## [{version}] - YYYY-MM-DD"
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for title, body in sections.items():
        name, _, date = title.partition(" - ")
        if name != f"[{version}]":
            continue
        if not DATE.fullmatch(date):
            raise ReleaseError(f"CHANGELOG.md: expected the heading {heading}, got ## {title}")
        if not re.search(r"^- \S", body, flags=re.MULTILINE):
            raise ReleaseError(f"CHANGELOG.md: the section ## {title} lists nothing")
        return date
    there = "; ".join(f"## {title}" for title in sections) or "no section"
    raise ReleaseError(f"CHANGELOG.md: expected a section {heading}, got {there}")


def cited(text: str, key: str) -> str | None:
    r"""What a CITATION.cff says for a key of its top level; None where it says nothing.

    >>> cited("title: pacesetter\nversion: 1.2.3", "version")
    '1.2.3'
    """
    found = re.search(rf"^{re.escape(key)}:\s*[\"']?([^\s\"']+)", text, flags=re.MULTILINE)
    return found.group(1) if found else None


def loosened(constraints: str, versions: Mapping[str, str]) -> str:
    r"""Pins for an environment in which some versions are chosen.

    The other pins become upper bounds, so that pip may step back where an old version needs it;
    torch stays where it was unless it is named itself.

    Args:
        constraints: text of constraints.txt.
        versions: by distribution; without any the text stays as it is.

    >>> print(loosened("numpy==2.4.6\ntorch==2.13.0\ngymnasium==1.4.0", {"gymnasium": "1.0.0"}))
    numpy<=2.4.6
    torch==2.13.0
    gymnasium==1.0.0
    """
    if not versions:
        return constraints
    chosen = {canonical(name): version for name, version in versions.items()}

    def line(text: str) -> str:
        pin = PINNED.match(text)
        if pin is None:
            return text
        name, version = pin.groups()
        if canonical(name) in chosen:
            return f"{name}=={chosen[canonical(name)]}"
        return text if canonical(name) == "torch" else f"{name}<={version}"

    return "\n".join(map(line, constraints.splitlines()))


def check_wheel(path: Path, *, version: str, root: Path) -> None:
    """Looks into a wheel.

    Args:
        path: of the wheel.
        version: that it has to be of.
        root: the checkout, whose place on this machine nothing in the wheel may tell.

    Raises:
        ReleaseError: it is too large, lacks something, or holds what does not belong in it.
    """
    size = path.stat().st_size
    if size >= MAX_WHEEL_BYTES:
        raise ReleaseError(f"{path.name}: expected less than {MAX_WHEEL_BYTES} bytes, got {size}")
    info = f"pacesetter-{version}.dist-info"
    with ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in (POLICY, f"{info}/METADATA", f"{info}/licenses/LICENSE"):
        if name not in members:
            raise ReleaseError(f"{path.name}: {name} is not in it")
    if f"\nVersion: {version}\n" not in members[f"{info}/METADATA"].decode("utf-8"):
        raise ReleaseError(f"{path.name}: its metadata are not of version {version}")
    strange = [name for name in members if not name.startswith(("pacesetter/", f"{info}/"))]
    if strange:
        raise ReleaseError(f"{path.name}: expected pacesetter/ and {info}/ only, got {strange}")
    place = str(root).encode()
    telling = [name for name, content in members.items() if place in content]
    if telling:
        raise ReleaseError(f"{path.name}: {telling} name a path of this machine, {root}")


def check_sdist(path: Path) -> None:
    """Looks into a source distribution.

    Raises:
        ReleaseError: it lacks something that building from it needs.
    """
    top = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
    for name in (*SDIST_FILES, POLICY.removeprefix("pacesetter/")):
        if f"{top}/{name}" not in names:
            raise ReleaseError(f"{path.name}: {name} is not in it")
