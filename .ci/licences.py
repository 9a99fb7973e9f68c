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


def closure(*, extras: bool) -> set[str]:
    """Names of the packages that pacesetter installs, with or without its extras but `browser`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    waiting = [(text, "") for text in project["dependencies"]]
    if extras:
        wanted = {k: v for k, v in project["optional-dependencies"].items() if k != "browser"}
        waiting += [(text, "") for texts in wanted.values() for text in texts]
    seen: set[tuple[str, str]] = set()
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for asked in {"", *requirement.extras}:
            if (name, asked) not in seen and not GPU_ONLY.match(name):
                seen.add((name, asked))
                waiting += [(below, asked) for below in requires(name) or []]
    return {name for name, _ in seen}


def core() -> set[str]:
    """Names of the packages that the plug-in needs."""
    return closure(extras=False)


def installed() -> dict[str, str]:
    """The licence of every package of the core and the extras, by its name."""
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--with-system"]
    command += ["--format=json", "--no-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    found = {str(canonicalize_name(row["Name"])): row["License"] for row in rows}
    return {name: " ".join(found[name].split())[:120] for name in sorted(closure(extras=True))}


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
