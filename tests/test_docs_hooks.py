"""Links and tables that the hooks of the manual make."""

from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
pytest.importorskip("nbconvert", reason="needs the extra `docs`")


@pytest.fixture
def hook(monkeypatch):
    """Modules of docs/hooks by name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "docs" / "hooks")
    return import_module


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "docs/plug-in.md#recipes", "plug-in.md#recipes"),
        ("index.md", "examples/ddp.py", "files/examples/ddp.py"),
        ("results.md", "../README.md", "index.md"),
        ("results.md", "benchmark.md", "benchmark.md"),
        ("results.md", "https://example.org/README.md", "https://example.org/README.md"),
        ("api/agent.md", "../../CHANGELOG.md", "../changelog.md"),
    ],
)
def test_links_between_files_become_links_between_pages(hook, page, link, expected):
    text = f"[x]({link}) and ![y]({link})\n\n```\n[x]({link})\n```\n"
    code = text[text.index("```") :]
    adapted = hook("main").adapt_links(text, page=page)
    assert adapted == f"[x]({expected}) and ![y]({expected})\n\n{code}"


def test_tables_are_filled_and_a_table_that_nobody_makes_is_an_error(hook):
    tables = hook("tables")
    assert tables.table(["a", "b"], [[1, "x|y"]]) == "| a | b |\n|---|---|\n| 1 | x\\|y |"
    for name in tables.TABLES:
        assert len(tables.fill(f"<!-- from the code: {name} -->").splitlines()) > 2
    with pytest.raises(Exception, match="no table 'weather'"):
        tables.fill("<!-- from the code: weather -->")
