"""The research scripts in benchmarks/ run on their smallest size."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.fixture
def transfer_jobs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import transfer_jobs

    return transfer_jobs


def test_half_of_the_ordinary_jobs_of_each_kind_choose_nothing(transfer_jobs):
    jobs = transfer_jobs.JOBS.values()
    kinds = {job.kind for job in jobs}
    assert sorted((job.kind, job.split) for job in jobs) == sorted(
        (kind, split) for kind in kinds for split in ("choose", "report")
    )
    for module in (SCRIPTS / "ordinary_jobs").glob("*.py"):
        assert "inner_models" not in module.read_text()


def test_ordinary_jobs_go_on_where_they_were_killed(tmp_path, transfer_jobs, monkeypatch, capsys):
    given = ["--jobs", "graph", "--starts", "1e-3", "1e-2", "--validation", "with", "--steps", "10"]
    given += ["--workers", "1", "--baselines", tmp_path / "b.csv", "--out", tmp_path / "run"]
    monkeypatch.setattr("sys.argv", ["transfer_jobs.py", *map(str, given)])
    transfer_jobs.main()
    table, runs = tmp_path / "run" / "table.md", tmp_path / "run" / "runs.csv"
    said, whole = table.read_text(), runs.read_text()
    assert said in capsys.readouterr().out
    rows = list(csv.DictReader(whole.splitlines()))
    assert [row["start"] for row in rows] == ["0.001", "0.01"]
    assert all(0 < float(row["test"]) < float(row["untrained"]) for row in rows)
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 1 + 1 + 7 + 20

    runs.write_text(whole[:-30])
    transfer_jobs.main()
    assert runs.read_text().splitlines()[1] == whole.splitlines()[1]
    done = capsys.readouterr().out
    assert "1/1 graph from 0.01 with validation" in done
    assert "adamw" not in done
    assert table.read_text() == said


def test_the_score_of_a_job_is_zero_for_the_default_and_one_for_the_best_trial(transfer_jobs):
    job = transfer_jobs.JOBS["mixture"]
    jobs = {job.name: job}
    losses = {"adamw": -0.5, "cosine-0.01": -1.0, "trial-0": -1.5}
    losses |= {f"trial-{n}": float("nan") for n in range(1, 20)}
    rivals = [
        {"job": job.name, "arm": arm, "passes": "1", "untrained": "1.0", "test": str(loss)}
        for arm, loss in losses.items()
    ]

    def scores(test):
        run = {"job": job.name, "start": "0.001", "validation": "with", "untrained": "1.0"}
        run |= {"test": test, "rates": ""}
        of = transfer_jobs.Losses(jobs, rivals, [run])
        return [float(of.score(of.ways[0], logs=logs)[0]) for logs in (True, False)]

    assert scores("-0.5") == [0, 0]
    assert scores("-1.5") == [1, 1]
    # A run that broke counts as the untrained model.
    assert scores("nan") == pytest.approx([-np.log(3.5 / 2) / np.log(2 / 1), -1.5])
    del rivals[-1]  # a search that is not over says nothing
    assert np.isnan(scores("-1.5")).all()


@pytest.mark.slow
def test_goals_come_from_a_comparison(tmp_path):
    arms = "policy,policy-seeing,policy-two-thirds,multiple-10,adamw-pooled"
    given = ["--tasks", "digits-mlp/0", "--seeds", "2", "--trials", "3", "--arms", arms]
    assert cli.main(["compare", *given, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    said = run("goals", tmp_path / "run", "--out", tmp_path / "goals.md")
    assert "policy: log ratio to adamw-default" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "written"),
    [
        ("calibration", "--families logistic --num-tasks 4", "c.json"),
        ("ablation", "--preset smoke --decisions 1 --only 'reward: rank'", "ablation.md"),
        (
            *("portrait", "--families quadratic --tasks-per-family 1 --seeds 1 --state-tasks 4"),
            "policy-starts.svg",
        ),
    ],
)
def test_a_script_runs(tmp_path, name, args, written):
    out = tmp_path / written if name == "calibration" else tmp_path
    assert run(name, *shlex.split(args), "--out", out).strip()
    assert (tmp_path / written).stat().st_size
