"""Hooks of MkDocs: pages from outside of docs/, notebooks, links between files, tables."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from tables import fill

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the repository by the names that they have in the manual."""
FOLDERS = ("agent", "envs", "inner_models", "experiments")
_LINK = re.compile(r"(?<=\]\()([^()\s#]+)")
_FENCED = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Makes .typecheck/pacesetter, where mkdocstrings looks for the packages."""
    folder = ROOT / ".typecheck" / "pacesetter"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..", "..", name))


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository, those made of notebooks, and all files linked to."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            text, _ = MarkdownExporter().from_filename(str(file.abs_src_path))
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=text))
    for file in list(files.documentation_pages()):
        for text in _FENCED.split(file.content_string)[::2]:
            for link in _LINK.findall(text):
                path = linked_file(link, page=file.src_uri)
                if path and files.get_file_from_path(in_site(path)) is None:
                    files.append(
                        File.generated(config, in_site(path), abs_src_path=str(ROOT / path))
                    )
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Inserts the tables that are made from the code, and adapts links."""
    return fill(adapt_links(markdown, page=page.file.src_uri))


def in_site(path: str) -> str:
    """Where the manual has a file of the repository; both paths start at their roots."""
    return PAGES.get(path) or (path[5:] if path.startswith("docs/") else f"files/{path}")


def linked_file(link: str, *, page: str) -> str | None:
    """The repository's file that a link on a page means; None where it means none."""
    if ":" in link or link.startswith("/"):
        return None
    source = {name: source for source, name in PAGES.items()}.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if os.path.isfile(ROOT / path) else None


def adapt_links(markdown: str, *, page: str) -> str:
    """Rewrites links between files of the repository to links between files of the site."""

    def adapted(match: re.Match[str]) -> str:
        path = linked_file(match.group(), page=page)
        start = posixpath.dirname(page) or "."
        return match.group() if path is None else posixpath.relpath(in_site(path), start)

    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(adapted, text) for text in parts[::2]]
    return "".join(parts)
