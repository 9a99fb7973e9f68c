"""Writes docs/licences.md: the licences of all that pacesetter's extras install.

    make licences

They are what the metadata of the installed packages say, those of dependencies of dependencies
too. Licences that are unknown or of the GPL's kind are refused in the core.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from release_files import ReleaseError, canonical, project_table

LICENCES = "docs/licences.md"
UNKNOWN = "unknown"
SKIPPED_EXTRAS = frozenset({"browser"})  # needs a browser, which pip does not bring
ACCELERATORS = re.compile(r"(nvidia|cuda|triton|pytorch-triton)(-|$)")
LONGEST = 60  # characters of a licence's name; what is longer is its text
VERDICTS = {"OSI Approved", "DFSG approved"}  # classifiers that name no licence
SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF",
}
HEAD = """# Licences

pacesetter is under the MIT licence. These are the licences of what it installs, dependencies of
dependencies included, as the metadata of the packages state them. `make licences` writes this
page; do not edit it. Names of licences are SPDX's where a package gives enough to tell.

"Comes with" names the extras; `core` is what the plug-in needs and is always there. Nothing of the
core is unknown or of the GPL's kind, which a test guards. Left out are the extra `browser`
(playwright), and what builds of torch for a GPU bring along: NVIDIA's libraries, under NVIDIA's own
terms, and Triton.
"""


def licence_of(fields: PackageMetadata) -> str:
    """The licence that a distribution's metadata state.

    Args:
        fields: its metadata.

    Returns:
        The SPDX expression, else the field `License` where it is a name and no text, else the
        classifiers; `"unknown"` where there is nothing.
    """
    if "License-Expression" in fields:
        return fields["License-Expression"]
    stated = fields["License"].strip() if "License" in fields else ""
    if stated and "\n" not in stated and len(stated) <= LONGEST and stated != "UNKNOWN":
        return SPELLINGS.get(stated.lower(), stated)
    kinds = [
        text.split(" :: ")[-1]
        for text in fields.get_all("Classifier") or []
        if text.startswith("License :: ")
    ]
    names = [SPELLINGS.get(kind.lower(), kind) for kind in kinds if kind not in VERDICTS]
    return " AND ".join(names) or UNKNOWN


def is_doubtful(licence: str) -> bool:
    """Whether a licence is unknown, or one of the GNU family, the lesser one included.

    >>> is_doubtful("MIT AND LGPL-2.1-or-later"), is_doubtful("MPL-2.0")
    (True, False)
    """
    return licence == UNKNOWN or bool(re.search(r"GPL|general public", licence, re.IGNORECASE))


def closure(
    wanted: Iterable[str], requirements: Callable[[str], Sequence[str] | None] = requires
) -> set[str]:
    """Everything that requirements bring in on this machine.

    Args:
        wanted: requirements as in pyproject.toml.
        requirements: of a distribution by its name.

    Returns:
        Canonical names, without what only a GPU needs.

    Raises:
        ReleaseError: something of it is not installed.
    """
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in wanted]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonical(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if ACCELERATORS.match(name):
            continue
        names.add(name)
        for asked in {"", *requirement.extras} - {known for n, known in seen if n == name}:
            seen.add((name, asked))
            try:
                below = requirements(name) or []
            except PackageNotFoundError as error:
                raise ReleaseError(f"{name} is not installed: run `make venv`") from error
            waiting += [(Requirement(text), asked) for text in below]
    return names


def packages(root: Path) -> dict[str, tuple[str, str]]:
    """All packages with their licence and what they come with.

    Args:
        root: the checkout.

    Returns:
        Licence and extras (or `core`), by name.

    Raises:
        ReleaseError: something is not installed.
    """
    project = project_table(root)
    core = closure(project["dependencies"])
    extras = {
        name: closure(wanted) - core
        for name, wanted in project["optional-dependencies"].items()
        if name not in SKIPPED_EXTRAS
    }
    return {
        name: (
            licence_of(metadata(name)),
            "core" if name in core else ", ".join(e for e, held in extras.items() if name in held),
        )
        for name in sorted(core.union(*extras.values()))
    }


def page_of(root: Path) -> str:
    """The page, in Markdown.

    Args:
        root: the checkout.

    Raises:
        ReleaseError: something is not installed, or a licence in the core is doubtful.
    """
    found = packages(root)
    for name, (licence, extras) in found.items():
        if extras == "core" and is_doubtful(licence):
            raise ReleaseError(f"{name}, which the core needs, has the licence {licence!r}")
    ordered = sorted(found.items(), key=lambda item: (item[1][1] != "core", item[0]))
    rows = [f"| {name} | {licence} | {extras} |" for name, (licence, extras) in ordered]
    return "\n".join([HEAD, "| package | licence | comes with |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Writes the page.

    Returns:
        Exit code.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        page = page_of(root)
    except ReleaseError as error:
        print(f"licences: {error}", file=sys.stderr)
        return 1
    path = root / LICENCES
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {LICENCES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
