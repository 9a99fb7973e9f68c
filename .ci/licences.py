"""The page docs/licences.md: what pip-licenses says of everything that pacesetter's extras install.

    make licences

Licences of the core that are unknown or of the GPL's kind are refused.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
OWN = {"pacesetter", "pip", "playwright", "greenlet", "pyee"}  # not dependencies, or of `browser`
GPU_ONLY = re.compile(r"(nvidia|cuda|triton|pytorch-triton)(-|$)")
DOUBTFUL = re.compile(r"unknown|GPL|general public", re.IGNORECASE)
HEAD = """# Licences

pacesetter is under the MIT licence. These are the licences of everything that it installs, as
[pip-licenses](https://pypi.org/project/pip-licenses/) reads them from the packages' metadata.
`make licences` writes this page; do not edit it.

The core is what the plug-in needs. A test ensures that no licence of the core is unknown or belongs
to the GPL family. The page leaves out the extra `browser` and the libraries that GPU builds of
torch install: NVIDIA's, under NVIDIA's own terms, and Triton.
"""


def core() -> set[str]:
    """Names of the packages that pacesetter installs without an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names: set[str] = set()
    waiting: list[str] = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in names and not GPU_ONLY.match(name):
            names.add(name)
            waiting += requires(name) or []
    return names


def installed() -> dict[str, str]:
    """The licence of every installed package, by its name."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--with-system"]
    command += ["--format=json", "--no-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {canonicalize_name(row["Name"]): row["License"] for row in json.loads(done.stdout)}
    return {
        name: " ".join(licence.split())[:120]
        for name, licence in sorted(found.items())
        if name not in OWN and not GPU_ONLY.match(name)
    }


def page(licences: dict[str, str], needed: set[str]) -> str:
    """The page in Markdown.

    Args:
        licences: of all packages.
        needed: names of those of the core.

    Raises:
        ValueError: a licence in the core is doubtful, or a package of it is not installed.
    """
    for name in sorted(needed):
        if name not in licences or DOUBTFUL.search(licences[name]):
            raise ValueError(f"{name}, which the core needs: licence {licences.get(name)!r}")
    parts = [HEAD]
    for title, names in (("Core", needed), ("Extras", licences.keys() - needed)):
        rows = [f"| {name} | {licences[name]} |" for name in sorted(names)]
        parts += [f"## {title}\n", "| package | licence |", "|---|---|", *rows, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(installed(), core()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
