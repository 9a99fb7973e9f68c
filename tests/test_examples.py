"""The scripts in `examples/` run as they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "runs/" in script.read_text(encoding="utf-8"):
        assert list((tmp_path / "runs").iterdir())


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"plug_in", "own_task", "own_family"}
