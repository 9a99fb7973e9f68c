"""The tutorials are notebooks that run, keep what they print, and are easy to compare in a diff."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
USES = {"plug-in", "train", "compare"}

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def test_there_is_one_for_each_use():
    assert {path.stem for path in TUTORIALS} >= USES


@pytest.mark.slow
@every_tutorial
def test_tutorial_runs(path):
    pytest.importorskip("nbclient", reason="needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    done = subprocess.run(
        [sys.executable, "-m", "manual.notebooks", "--check", path.stem],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs" / "hooks"), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@every_tutorial
def test_tutorial_is_kept_as_text(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text) < 20_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["execution_count"] is None
        assert not cell["metadata"]
        for output in cell["outputs"]:
            assert output["output_type"] == "stream"
            assert output["name"] == "stdout"
            assert str(ROOT) not in "".join(output["text"])
    assert any(cell["outputs"] for cell in code), "run `make tutorials`"
