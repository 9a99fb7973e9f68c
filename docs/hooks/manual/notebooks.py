"""The tutorials: notebooks that run, and the pages made of them.

    PYTHONPATH=docs/hooks python -m manual.notebooks            run all, keep what they print
    PYTHONPATH=docs/hooks python -m manual.notebooks --check    run all, change nothing

The notebooks keep their printed output, as text, so that it can be read and compared in a diff.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from manual.repository import DOCS

TUTORIALS = DOCS / "tutorials"
CELL_SECONDS = 240
"""A cell that takes longer has failed."""


def read(path: Path) -> NotebookNode:
    """A notebook, checked.

    Args:
        path: of the file.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    """Runs a notebook in a folder of its own.

    Args:
        notebook: left as it is.

    Returns:
        A copy with what its cells print, and nothing that differs from one run to the next but
        for the numbers in it.

    Raises:
        CellExecutionError: a cell raised an error.
        ValueError: a cell gave something that is not plain text, or a warning.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            nbformat.from_dict(notebook),
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            record_timing=False,
            # Talks by files of its own folder: no ports are opened.
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/.kernel"}}),
        )
        kernel = {
            "IPYTHONDIR": f"{folder}/.ipython",  # nothing is read from or left in the user's home
            "PYTHONWARNINGS": "ignore:IProgress",  # tqdm's wish for another package
        }
        done: NotebookNode = client.execute(env={**os.environ, **kernel})
    for cell in done.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_plain(output) for output in cell.outputs]
    done.metadata = notebook.metadata
    return done


def printed(cell: NotebookNode) -> str:
    """What a code cell printed.

    Args:
        cell: of a notebook.
    """
    return "".join(
        output.text if output.output_type == "stream" else output.data["text/plain"] + "\n"
        for output in cell.outputs
    )


def markdown(notebook: NotebookNode) -> str:
    """A page of the manual made of a notebook: its cells, and what they printed.

    Args:
        notebook: with or without outputs.
    """
    parts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if text := printed(cell).rstrip():
            parts.append(f'``` {{ .text .output title="prints" }}\n{text}\n```')
    return "\n\n".join(parts) + "\n"


def _plain(output: NotebookNode) -> NotebookNode:
    if output.output_type == "stream" and output.name == "stdout":
        return output
    if output.output_type == "execute_result" and set(output.data) == {"text/plain"}:
        output.execution_count = None
        return output
    raise ValueError(f"a tutorial prints plain text and no warnings, but got {output}")


def main() -> None:
    """Runs the tutorials, and writes what they print into their files unless they are checked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help="of tutorials; none: all")
    parser.add_argument("--check", action="store_true", help="change no file")
    args = parser.parse_args()
    names = args.names or sorted(path.stem for path in TUTORIALS.glob("*.ipynb"))
    for path in (TUTORIALS / f"{name}.ipynb" for name in names):
        print(f"{path.name} …", flush=True)
        done = execute(read(path))
        if not args.check:
            new = path.with_suffix(".new")
            nbformat.write(done, new)
            new.replace(path)


if __name__ == "__main__":
    main()
