"""The research scripts in benchmarks/ run on their smallest size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.rivals.baselines import BASELINES

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run(name, *args):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_stored_calibration_is_the_one_that_is_used():
    stored = json.loads((SCRIPTS / "results" / "calibration.json").read_text())["baselines"]
    used = {b.name: b.space.default["lr"] for b in BASELINES if b.calibrated}
    assert {name: entry["lr"] for name, entry in stored.items()} == used


@pytest.mark.slow
def test_goals_come_from_a_comparison(tmp_path):
    arms = "policy,policy-seeing,policy-two-thirds,multiple-10,adamw-pooled"
    given = ["--tasks", "digits-mlp/0", "--seeds", "2", "--trials", "3", "--arms", arms]
    given += ["--start-lrs", "1e-3,1e-2", "--out", str(tmp_path / "run"), "--quiet"]
    assert cli.main(["compare", *given]) == 0
    said = run("goals", tmp_path / "run", "--out", tmp_path / "goals.md")
    assert (tmp_path / "goals.md").read_text() in said
    for goal in ("policy: log ratio to adamw-default", "policy from 0.01", "multiple-10"):
        assert goal in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "written"),
    [
        ("calibration", ["--families", "logistic", "--num-tasks", "4"], "c.json"),
        (
            "ablation",
            ["--preset", "smoke", "--decisions", "1", "--only", "actions: learning rate"],
            "ablation.md",
        ),
        (
            "portrait",
            [
                *("--families", "quadratic", "--tasks-per-family", "1", "--seeds", "1"),
                *("--state-tasks", "4"),
            ],
            "policy-starts.svg",
        ),
    ],
)
def test_a_script_runs(tmp_path, name, args, written):
    out = tmp_path / written if name == "calibration" else tmp_path
    assert run(name, *args, "--out", out).strip()
    assert (tmp_path / written).stat().st_size
