"""What makes pages of the manual out of code, notebooks and files of the repository."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
nbformat = pytest.importorskip("nbformat", reason="needs the extra `docs`")

HOOKS = Path(__file__).parent.parent / "docs" / "hooks"
MODULES = sorted(path.stem for path in (HOOKS / "manual").glob("*.py") if path.stem != "__init__")


@pytest.fixture
def manual(monkeypatch):
    """Modules of the manual by name."""
    monkeypatch.syspath_prepend(HOOKS)
    return lambda name: import_module(f"manual.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(manual, name):
    assert doctest.testmod(manual(name)).failed == 0


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "docs/plug-in.md#recipes", "plug-in.md#recipes"),
        ("index.md", "examples/ddp.py", "files/examples/ddp.py"),
        ("results.md", "../README.md", "index.md"),
        ("results.md", "benchmark.md", "benchmark.md"),
        ("results.md", "https://example.org/README.md", "https://example.org/README.md"),
        ("results.md", "no-such-file.md", "no-such-file.md"),
        ("api/agent.md", "../design.md", "../design.md"),
        ("api/agent.md", "../../CHANGELOG.md", "../changelog.md"),
    ],
)
def test_links_between_files_become_links_between_pages(manual, page, link, expected):
    repository = manual("repository")
    text = f"[x]({link}) and ![y]({link})\n\n```\n[x]({link})\n```\n"
    code = text[text.index("```") :]
    mended = repository.mend_links(text, page=page)
    assert mended == f"[x]({expected}) and ![y]({expected})\n\n{code}"


def test_only_files_outside_of_docs_are_brought_along(manual):
    text = "[a](../examples/ddp.py#L1) [b](design.md) [c](../README.md) [d](#here) [e](../nothing)"
    assert list(manual("repository").linked_files(text, page="x.md")) == ["examples/ddp.py"]


def test_a_table_that_nobody_makes_is_an_error(manual):
    tables = manual("tables")
    assert tables.fill("before\n<!-- from the code: decay -->\n") != "before\n"
    with pytest.raises(Exception, match="there is no table 'weather'"):
        tables.fill("<!-- from the code: weather -->")


def test_help_text_keeps_its_examples(manual):
    text = "What it does, with --out_dir.\n\nexamples:\n  pacesetter train\n    more\n"
    assert manual("command_line").prose(text) == (
        "What it does, with --out\\_dir.\n\nexamples:\n\n```\npacesetter train\n  more\n```"
    )


def test_a_page_has_the_cells_of_its_notebook_and_what_they_print(manual):
    cell = nbformat.v4.new_code_cell("print(1)")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell])
    page = manual("notebooks").markdown(notebook)
    assert page.startswith("# Title\n\n```python\nprint(1)\n```\n\n``` {")
    assert page.endswith("}\n1\n```\n")


def test_the_example_schedule_is_that_of_the_codec(manual):
    drawings = manual("drawings")
    config = drawings.ControlConfig()
    factors, ends = drawings._factors([0.0] * (config.num_intervals - 1), config)
    assert len(factors) == drawings.STEPS
    assert len(ends) == config.num_intervals - 1
    assert max(factors) == pytest.approx(1.0, abs=0.02)
    assert factors[-1] == pytest.approx(config.final_decay, rel=0.01)
    assert drawings.schedule().count("<path") > 3
