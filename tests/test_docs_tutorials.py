"""The tutorials are notebooks that run, and keep what they print as text."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def outputs(path):
    """All outputs of a notebook, which have to be plain text without warnings."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [output for cell in cells for output in cell.get("outputs", ())]
    assert found
    assert {(o["output_type"], o.get("name")) for o in found} == {("stream", "stdout")}
    assert str(ROOT) not in str(found)
    return found


def test_there_is_one_for_each_use():
    assert {path.stem for path in TUTORIALS} >= {"plug-in", "train", "compare"}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_kept_as_text(path):
    assert path.stat().st_size < 20_000
    assert outputs(path), "run `make tutorials`"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    pytest.importorskip("nbconvert", reason="needs the extra `docs`")
    shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "nbconvert", "--to=notebook", "--execute", "--inplace"]
    done = subprocess.run(
        [*command, path.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(outputs(tmp_path / path.name)) == len(outputs(path)), "run `make tutorials`"
