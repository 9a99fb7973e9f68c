"""What MkDocs calls while it builds the manual: pages that are made, and links that are mended.

The work is done by the modules of `manual` beside this file. Everything that can be read off the
code is, so that no table can fall behind it.
"""

from __future__ import annotations

import posixpath
from typing import Literal

from manual import notebooks, repository, tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Lays the links by which mkdocstrings finds the packages, before it looks for them.

    Args:
        command: of MkDocs.
        dirty: whether only changed pages are built.
    """
    repository.lay_links()


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside of docs/, those made of notebooks, and all files linked to.

    Args:
        files: all files of the site.
        config: of the site.
    """
    for source, name in repository.PAGES.items():
        if (repository.ROOT / source).is_file():
            files.append(_generated(config, name, repository.ROOT / source))
    for file in list(files):
        if posixpath.splitext(file.src_uri)[1] == ".ipynb":
            page = posixpath.splitext(file.src_uri)[0] + ".md"
            text = notebooks.markdown(notebooks.read(repository.DOCS / file.src_uri))
            files.append(File.generated(config, page, content=text))
    for file in list(files.documentation_pages()):
        for path in repository.linked_files(file.content_string, page=file.src_uri):
            target = repository.in_site(path)
            if files.get_file_from_path(target) is None:
                files.append(_generated(config, target, repository.ROOT / path))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the tables that are made from the code in their places, and mends links.

    Args:
        markdown: of the page.
        page: which.
        config: of the site.
        files: all files of the site.
    """
    return tables.fill(repository.mend_links(markdown, page=page.file.src_uri))


def _generated(config: MkDocsConfig, name: str, source: object) -> File:
    return File.generated(config, name, abs_src_path=str(source))
