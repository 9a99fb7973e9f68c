"""Baselines are what they say: the schedules and optimizers of torch, tuned as stated."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from pacesetter.experiments import tuning
from pacesetter.experiments.baselines import (
    ADAMW_LRS,
    BASELINES,
    WARM_UP,
    Baseline,
    all_arms,
    arm_names,
    check_arms,
    constant,
    cosine,
    warm_up_cosine,
)
from pacesetter.experiments.calibration import calibrate, calibrated_lrs, main
from pacesetter.experiments.running import Setting, by_optimizer, run_schedules
from pacesetter.experiments.tuning import TUNING_SEEDS, read_tuned, tune, write_tuned
from pacesetter.inner_models.batching import batch_stream, build_model
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits, TaskFamily

ROWS = {b.name: b for b in BASELINES}


def squared_error(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def small_task(*, horizon=40, noise=0.1, seed=0, name="small"):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(96, 5, generator=generator)
    weights = torch.randn(5, 1, generator=generator)
    targets = inputs @ weights + noise * torch.randn(96, 1, generator=generator)
    parts = zip(inputs.split([48, 16, 16, 16]), targets.split([48, 16, 16, 16]), strict=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)),
        squared_error,
        Splits(*parts),
        horizon=horizon,
        batch_size=8,
        optimizer=OptimizerConfig(weight_decay=0.1),
        name=name,
    )


class SmallFamily(TaskFamily):
    name = "small"

    def sample_shape(self, generator):
        return 20

    def build(self, shape, generator):
        seed = int(torch.randint(1000, (), generator=generator))
        task = small_task(horizon=shape, seed=seed).with_seed(seed)
        return task.with_optimizer(lr=10.0 ** -(1 + seed % 5))


def plain_run(task, make_optimizer, make_scheduler, *, seed):
    """Final parameters of an ordinary loop in float64."""
    task = task.with_seed(seed)
    model = build_model(task).double()
    stream = batch_stream(task)
    optimizer = make_optimizer(model.parameters())
    scheduler = make_scheduler(optimizer)
    inputs, targets = (t.double() for t in task.splits.train)
    for _ in range(task.horizon):
        rows = stream.take(1)[0]
        optimizer.zero_grad()
        squared_error(model, (inputs[rows], targets[rows])).backward()
        optimizer.step()
        scheduler.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def adamw(params):
    return torch.optim.AdamW(params, lr=0.02, weight_decay=0.1)


def sgd(params):
    return torch.optim.SGD(params, lr=0.02, momentum=0.9)


class WarmUpCosine:
    """torch's LinearLR, then its CosineAnnealingLR over what is left."""

    def __init__(self, optimizer, horizon):
        self.optimizer, self.left = optimizer, round(WARM_UP * horizon)
        self.rest = horizon - self.left
        self.base = optimizer.param_groups[0]["lr"]
        self.scheduler = LinearLR(optimizer, start_factor=0.01, total_iters=self.left)

    def step(self):
        self.scheduler.step()
        self.left -= 1
        if self.left == 0:
            self.optimizer.param_groups[0]["lr"] = self.base
            self.scheduler = CosineAnnealingLR(self.optimizer, T_max=self.rest)


@pytest.mark.parametrize(
    ("name", "optimizer", "scheduler"),
    [
        ("adamw-cosine", adamw, lambda o: CosineAnnealingLR(o, T_max=40)),
        ("sgd-cosine", sgd, lambda o: CosineAnnealingLR(o, T_max=40)),
        ("adamw-warmup-cosine", adamw, lambda o: WarmUpCosine(o, 40)),
        ("adamw-constant", adamw, lambda o: LinearLR(o, start_factor=1.0)),
    ],
)
def test_baseline_equals_torch(name, optimizer, scheduler):
    task = small_task()
    # A sibling at another rate, and a second seed: the run under test must not notice.
    settings = [Setting(ROWS[name], 0.3), Setting(ROWS[name], 0.02)]
    runs = run_schedules(task, settings, seeds=[3, 4], num_intervals=7, dtype=torch.float64)
    for i, seed in enumerate((3, 4)):
        expected = plain_run(task, optimizer, scheduler, seed=seed)
        found = runs.trainer.parameters(2 * i + 1)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9)


def test_what_is_kept_of_a_schedule():
    runs = run_schedules(
        small_task(), [Setting(ROWS["adamw-cosine"], 0.02)], seeds=[0], num_intervals=4
    )
    assert runs.steps == (10, 20, 30, 40)
    expected = 0.02 * 0.5 * (1 + np.cos(np.pi * np.arange(40) / 40))
    assert np.ravel(runs.lrs) == pytest.approx(expected.reshape(4, 10).mean(axis=1))
    assert np.isnan(runs.clip_thresholds).all()
    assert np.ravel(runs.momenta) == pytest.approx(0.9)


@pytest.mark.parametrize("schedule", [constant, cosine, warm_up_cosine])
def test_schedules_start_right_and_stay_within_bounds(schedule):
    factors = schedule(np.arange(1000) / 1000)
    assert factors.shape == (1000,)
    assert 0 <= factors.min() <= factors.max() <= 1
    assert schedule(np.array([WARM_UP]))[0] == pytest.approx(1.0, abs=0.01)


def test_rows_are_complete():
    assert len(set(arm_names())) == len(arm_names())
    for arm in all_arms():
        assert arm.label
        assert "," not in arm.label, "labels are listed with commas between them"
        assert "http" not in arm.source
    with pytest.raises(ValueError, match="'adamw-cosin'; nearest: adamw-cosine"):
        check_arms(["adamw-cosin"])
    with pytest.raises(ValueError, match="ascending"):
        replace(BASELINES[1], lrs=(1.0, 0.1))


def test_arms_are_siblings_only_of_the_same_optimizer():
    other = replace(ROWS["adamw-cosine"], name="no-decay", weight_decay=0.0)
    groups = [[b.name for b in group] for group in by_optimizer([*BASELINES, other])]
    assert sorted(map(len, groups)) == [1, 1, 5]
    assert ["no-decay"] in groups
    assert ["sgd-cosine"] in groups


def test_tuning_finds_the_best_of_separate_runs():
    task, row = small_task(), ROWS["adamw-cosine"]
    found = tune(task, [row, ROWS["sgd-cosine"]])["adamw-cosine"]
    for lr in (1e-3, found.lr):
        runs = run_schedules(task, [Setting(row, lr)], seeds=TUNING_SEEDS, num_intervals=3)
        assert found.losses[lr] == pytest.approx(runs.losses("outer_valid").mean(), rel=1e-4)
    assert found.losses[found.lr] == min(found.losses.values())
    assert found.trials == len(found.losses)
    assert found.inner_steps == found.trials * 2 * task.horizon


def test_grid_is_widened_when_the_best_lies_on_an_edge():
    low = replace(ROWS["adamw-cosine"], lrs=(1e-5, 3e-5))
    found = tune(small_task(), [low])[low.name]
    assert found.widened
    assert set(low.lrs) < set(found.losses)
    assert max(found.losses) == pytest.approx(3e-2)
    inside = tune(small_task(), [ROWS["adamw-cosine"]])["adamw-cosine"]
    assert inside.widened == (len(inside.losses) > len(ADAMW_LRS))


def test_diverged_settings_lose(monkeypatch):
    def losses(task, settings, *, seeds, device):
        return [math.inf if s.lr > 2e-3 else s.lr for s in settings]

    monkeypatch.setattr(tuning, "_mean_losses", losses)
    row = replace(ROWS["adamw-constant"], lrs=(1e-3, 1e-2))
    found = tune(small_task(), [row])[row.name]
    assert found.lr == min(found.losses) < 1e-3  # here lower is always better
    assert found.on_edge
    monkeypatch.setattr(tuning, "_mean_losses", lambda task, s, **_: [math.inf] * len(s))
    assert tune(small_task(), [row])[row.name].lr > 0


def test_one_diverged_seed_is_enough(monkeypatch):
    class Runs:
        def losses(self, split):
            assert split == "outer_valid"
            return np.array([1.0, 1.0, np.nan, 3.0])

    monkeypatch.setattr(tuning, "run_schedules", lambda *a, **k: Runs())
    settings = [Setting(BASELINES[0], 1e-3), Setting(BASELINES[0], 1e-2)]
    found = tuning._mean_losses(small_task(), settings, seeds=(1, 2), device="cpu")
    assert found == [math.inf, 2.0]


def test_what_tuning_found_can_be_kept(tmp_path):
    found = tune(small_task(), [replace(ROWS["adamw-constant"], lrs=(1e-3, 1e12))])
    path = tmp_path / "tuning.json"
    write_tuned(path, found)
    assert read_tuned(path) == found
    json.loads(path.read_text(), parse_constant=pytest.fail)


def test_calibration_takes_the_least_mean_log_loss():
    row = ROWS["adamw-cosine-calibrated"]
    lrs = (1e-3, 1e-2, 1e-1)
    family = SmallFamily()
    found = calibrate(
        row, [family], num_tasks=4, generator=torch.Generator().manual_seed(1), lrs=lrs
    )
    generator = torch.Generator().manual_seed(1)
    means = []
    tasks = family.sample_group(4, generator)
    for lr in lrs:
        losses = [
            run_schedules(t, [Setting(row, lr)], seeds=[t.seed], num_intervals=1).losses(
                "outer_valid"
            )
            for t in tasks
        ]
        means.append(np.log(losses).mean())
    assert found.lr == lrs[int(np.argmin(means))]
    assert list(found.means.values()) == pytest.approx(np.array(means) - min(means), abs=1e-4)


def test_calibration_is_stored_with_its_command(tmp_path, capsys, monkeypatch):
    assert set(calibrated_lrs()) == {b.name for b in BASELINES if b.calibrated}
    with pytest.raises(FileNotFoundError, match=r"python -m pacesetter\.experiments\.calibration"):
        calibrated_lrs(tmp_path / "none.json")
    monkeypatch.setattr(
        "pacesetter.experiments.calibration.make_family", lambda name: SmallFamily()
    )
    out = tmp_path / "calibration.json"
    main(["--num-tasks", "4", "--out", str(out)])
    stored = json.loads(out.read_text())
    assert "--num-tasks 4 --seed 0" in stored["command"]
    (name,) = calibrated_lrs(out)
    assert f"{name}: {calibrated_lrs(out)[name]:g}" in capsys.readouterr().out
    out.write_text("[]")
    with pytest.raises(ValueError, match="does not hold"):
        calibrated_lrs(out)


def test_a_baseline_of_ones_own_is_a_row():
    mine = Baseline(
        name="adamw-linear",
        label="AdamW linear",
        optimizer="adamw",
        schedule=lambda progress: 1 - progress,
        lrs=(1e-3, 1e-2),
        source="mine",
    )
    runs = run_schedules(small_task(), [Setting(mine, 0.1)], seeds=[0], num_intervals=2)
    assert np.ravel(runs.lrs) == pytest.approx([0.1 * (1 - 9.5 / 40), 0.1 * (1 - 29.5 / 40)])
