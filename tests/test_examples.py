"""The scripts in `examples/` and the notebooks of the tutorials run as they are written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def run(*arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress"}
    command = [sys.executable, *map(str, arguments)]
    options = {"cwd": cwd, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(command, **options, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def outputs(path):
    """What the cells of a notebook print, which has to be plain text without warnings."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    # A cell that takes its time prints in several parts.
    printed = [cell["outputs"] for cell in cells if cell.get("outputs")]
    assert printed, "run `make tutorials`"
    kinds = {(part["output_type"], part.get("name")) for parts in printed for part in parts}
    assert kinds == {("stream", "stdout")}
    assert str(ROOT) not in str(printed)
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    assert run(script, cwd=tmp_path).strip()
    if "runs/" in script.read_text(encoding="utf-8"):
        assert list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_kept_as_text(path):
    assert path.stat().st_size < 20_000
    assert outputs(path)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    pytest.importorskip("nbconvert", reason="needs the extra `docs`")
    shutil.copy(path, tmp_path)
    run("-m", "nbconvert", "--to=notebook", "--execute", "--inplace", path.name, cwd=tmp_path)
    assert len(outputs(tmp_path / path.name)) == len(outputs(path)), "run `make tutorials`"
