"""Numbers of a comparison's table, computed again from its results.csv by a script of its own."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES
from pacesetter.experiments.analysis.statistics import interquartile_mean
from pacesetter.experiments.comparison import CompareConfig, compare
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.inner_models.task import ModuleTask, Splits

SCRIPT = Path(__file__).with_name("recompute_results.py")
NAMES = ("adamw-default", "adamw-cosine", "sgd-cosine")
CONFIG = CompareConfig(arms=("policy", *NAMES), num_seeds=3, trials=5, seed=7)


def squared_error(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def small_task(name, *, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 4, generator=generator)
    targets = (inputs @ torch.randn(4, 1, generator=generator)).tanh()
    parts = zip(inputs.split([32, 16, 16, 16]), targets.split([32, 16, 16, 16]), strict=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)),
        squared_error,
        Splits(*parts),
        horizon=24,
        batch_size=8,
        name=name,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("recomputed") / "run"
    weights = np.random.default_rng(0).normal(size=(3, NUM_FEATURES)) * 0.4
    policy = Policy([(weights, np.zeros(3))], control=ControlConfig(num_intervals=6))
    tasks = [small_task(f"own/{i}", seed=i) for i in range(2)]
    found = compare(
        CONFIG,
        out,
        tasks=tasks,
        policy=policy,
        baselines=[b for b in BASELINES if b.name in NAMES],
    )
    return out, found.summary


@pytest.mark.parametrize("split", ["test", "outer_valid"])
def test_summary_is_recomputed_from_the_csv(finished, split):
    out, summary = finished
    recomputed = runpy.run_path(str(SCRIPT))["recompute"](out / "results.csv", CONFIG.seed, split)
    assert len(recomputed) == len(summary.entries)
    assert any(e.normalised for e in summary.entries)
    for e in summary.entries:
        start = "" if e.entry.start_lr is None else str(e.entry.start_lr)
        theirs = recomputed[e.entry.arm, start, e.entry.budget]
        ours = {
            ("score", "mean"): e.scores[split],
            ("score", "iqm"): e.iqm[split],
            ("normalised", "iqm"): e.normalised[split],
        }
        for (name, kind), found in ours.items():
            values = (found.estimate, found.low, found.high)
            assert values == pytest.approx(theirs[name][kind], abs=1e-9)


def test_numbers_of_the_table_are_those_that_the_script_prints(finished):
    """From the command line, to the last digit of the table of text and of the one to paste."""
    out, summary = finished
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), str(out / "results.csv"), str(CONFIG.seed)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    scores = dict(
        line.split(": score, mean: ") for line in printed.splitlines() if "score, m" in line
    )
    for name in ("table.txt", "table.md"):
        lines = (out / name).read_text(encoding="utf-8").splitlines()
        for e in summary.entries:
            if e.entry != summary.reference:
                start = "" if e.entry.start_lr is None else str(e.entry.start_lr)
                row = next(x for x in lines if x.removeprefix("| ").startswith(f"{e.label} "))
                assert scores[repr((e.entry.arm, start, e.entry.budget))] in row


def test_the_script_shares_no_code():
    source = SCRIPT.read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:import|from) (\w+)", source, flags=re.M)) == {
        *("csv", "sys", "math", "numpy")
    }
    values = np.random.default_rng(0).normal(size=(3, 11))
    assert runpy.run_path(str(SCRIPT))["iqm"](values) == pytest.approx(interquartile_mean(values))
