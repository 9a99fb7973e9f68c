"""Pages and files of the repository that lie outside of docs/: how the manual reaches them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2]
ROOT = DOCS.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the repository by the names that they have in the manual."""
FILES = "files"
"""Folder of the site for files of the repository that pages link to."""
FOLDERS = ("agent", "envs", "inner_models", "experiments")

_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def lay_links() -> None:
    """Lays .typecheck/pacesetter, links to the four folders: a package as tools expect it."""
    folder = ROOT / ".typecheck" / "pacesetter"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", name))


def in_site(path: str) -> str:
    """Where a file of the repository is found in the manual.

    Args:
        path: from the root of the repository.

    Returns:
        Path from the root of the site's sources.
    """
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FILES}/{path}"


def linked_files(markdown: str, *, page: str) -> Iterator[str]:
    """Files outside of docs/ to which a page links, pages excepted, from the repository's root.

    Args:
        markdown: of the page.
        page: its path from the root of the site's sources.
    """
    for text in _FENCED.split(markdown)[::2]:
        for _, target, _ in _LINK.findall(text):
            path = _target(target.partition("#")[0], page=page)
            if path and not path.startswith("docs/") and path not in PAGES:
                yield path


def mend_links(markdown: str, *, page: str) -> str:
    """Rewrites links between files of the repository to links between files of the site.

    Args:
        markdown: of the page.
        page: its path from the root of the site's sources.
    """

    def mended(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        name, _, anchor = target.partition("#")
        path = _target(name, page=page)
        if path is None:
            return match.group(0)
        link = posixpath.relpath(in_site(path), posixpath.dirname(page) or ".")
        return f"{before}{link}{'#' if anchor else ''}{anchor}{after}"

    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(mended, text) for text in parts[::2]]
    return "".join(parts)


def _target(link: str, *, page: str) -> str | None:
    """The repository's file that a link means; None where it means none."""
    if not link or ":" in link or link.startswith("/"):
        return None
    source = {name: source for source, name in PAGES.items()}.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if os.path.isfile(ROOT / path) else None
