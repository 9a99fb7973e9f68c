"""Every way of running an arm: side by side, one by one, in workers, as a population."""

import csv
import json
import math
from dataclasses import replace
from functools import partial

import lion_pytorch
import numpy as np
import prodigyopt
import pytest
import schedulefree
import torch
from jobs import reactive
from plain_loop import plainly_trained
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from pacesetter.experiments.compare_config import CompareConfig
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.baselines import BASELINES, default_arms
from pacesetter.experiments.rivals.packages import AdamHD
from pacesetter.experiments.rivals.space import Dimension
from pacesetter.experiments.runs.batched import RunOptions, check_points
from pacesetter.experiments.runs.matrix import BaselineGroup, Choice, Plan, pieces
from pacesetter.experiments.runs.population import (
    exploit,
    explore,
    population_size,
    run_population,
)
from pacesetter.experiments.runs.records import read_records, write_csv, write_records
from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.losses import metric_of
from pacesetter.inner_models.registry import fixed_task
from pacesetter.inner_models.task import Metric, ModuleTask, Splits

ROWS = {b.name: b for b in BASELINES}
REPORTED = ("train", "outer_valid", "test")


def run_configured(task, configured, *, seeds, **options):
    """Setting-major: the records of all seeds of setting 0, then of setting 1."""
    group = BaselineGroup(rows=tuple(configured), seeds=tuple(seeds), options=RunOptions(**options))
    return group.run(task)


def run_settings(task, arm, settings, **options):
    return run_configured(task, [Configured(arm, setting) for setting in settings], **options)


def small_net(*between):
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3))


def normed_net():
    return small_net(nn.BatchNorm1d(6))


def log_loss(model, batch):
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def right(model, batch):
    inputs, labels = batch
    return (model(inputs).argmax(-1) == labels).float().mean()


def small_task(*, horizon=40, build=small_net, metric=None):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(112, 4, generator=generator)
    labels = (inputs @ torch.randn(4, 3, generator=generator)).argmax(-1)
    parts = zip(inputs.split([64, 16, 16, 16]), labels.split([64, 16, 16, 16]), strict=True)
    options = {"horizon": horizon, "batch_size": 8, "name": "own/small", "metric": metric}
    return ModuleTask(build, log_loss, Splits(*parts), **options)


@torch.no_grad()
def loss_on(split, task, model):
    return float(task.loss(model.eval(), getattr(task.splits, split)))


COSINE = partial(CosineAnnealingLR, T_max=40)
NADAM = partial(torch.optim.NAdam, decoupled_weight_decay=True)
FREE = partial(schedulefree.AdamWScheduleFree, warmup_steps=2)


@pytest.mark.parametrize(
    ("name", "package", "lr", "decay"),
    [
        ("nadam-cosine", NADAM, 2e-3, 0.01),
        ("lion-cosine", lion_pytorch.Lion, 1e-4, 0.1),
        ("schedule-free", FREE, 2.5e-3, 0.01),
        ("prodigy-cosine", prodigyopt.Prodigy, 1.0, 0.01),
    ],
)
def test_an_arm_of_a_package_is_the_package_itself(name, package, lr, decay):
    task, row = small_task(), ROWS[name]
    once = {"seeds": [5], "evaluate": REPORTED, "num_intervals": 8}
    (found,) = run_settings(task, row, [row.space.default], **once)
    make = partial(package, lr=lr, weight_decay=decay)
    model = plainly_trained(task, make, seed=5, scheduler=COSINE if "cosine" in name else None)
    for split in REPORTED[1:]:
        assert found.losses[split] == pytest.approx(loss_on(split, task, model), rel=1e-6)
    assert len(found.curve) == len(found.lrs) == len(found.steps) == 8


def test_every_row_runs_paired_and_in_order():
    task = small_task()
    rows = [b for b in BASELINES if not b.population]
    configured = [Configured(b, b.space.default or {"lr": 1e-3}) for b in rows]
    found = run_configured(task, configured, seeds=[0, 1], evaluate=REPORTED, num_intervals=40)
    assert [(o.arm, o.seed) for o in found] == [(b.name, s) for b in rows for s in (0, 1)]
    for o in found:
        assert (o.failed, o.inner_steps, len(o.valid_curve)) == (None, task.horizon, 10)
        assert o.valid_curve[-1] == o.losses["outer_valid"]
        assert o.best == {"outer_valid": min(o.valid_curve)}
    for seed in (0, 1):
        untrained = [o.untrained for o in found if o.seed == seed]
        assert untrained == pytest.approx([untrained[0]] * len(rows), rel=1e-5)


def test_schedule_free_renews_running_means_of_its_average():
    task = small_task(build=normed_net, horizon=60)
    row = ROWS["schedule-free"]
    (found,) = run_settings(task, row, [{**row.space.default, "lr": 0.05}], seeds=[1])
    make = partial(schedulefree.AdamWScheduleFree, lr=0.05, weight_decay=0.01, warmup_steps=3)
    model = plainly_trained(task, make, seed=1)
    stale = loss_on("outer_valid", task, model)
    model.train()
    for inputs in task.splits.train[0].split(8):
        model(inputs)
    fresh = loss_on("outer_valid", task, model)
    assert abs(found.losses["outer_valid"] - fresh) < 0.05 * abs(stale - fresh)


def test_hypergradient_follows_its_formula():
    generator = torch.Generator().manual_seed(1)
    start, slopes = torch.randn(2, 6, generator=generator).double()
    slopes = slopes.square()
    weights = nn.Parameter(start.clone())
    optimizer = AdamHD([weights], lr=0.01, hyper_lr=1e-3, weight_decay=0.1)
    w, m, v, u, lr = start.numpy().copy(), 0.0, 0.0, None, 0.01
    for t in range(1, 31):
        optimizer.zero_grad()
        (0.5 * (slopes * weights.square()).sum()).backward()
        optimizer.step()
        gradient = slopes.numpy() * w
        if u is not None:
            lr += 1e-3 * float(gradient @ u)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w * (1 - lr * 0.1) - lr * u
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        assert weights.detach().numpy() == pytest.approx(w)
    assert lr > 0.02, "a rate that is far too low must grow"


def test_plateau_acts_on_inner_valid_at_its_checks():
    task, seed = small_task(horizon=60), 2
    row, setting = ROWS["adamw-plateau"], {"lr": 0.3, "factor": 0.5, "patience": "0"}
    calm = Configured(ROWS["adamw-constant"], {"lr": 0.3})
    found = run_configured(task, [calm, Configured(row, setting)], seeds=[seed], num_intervals=30)
    assert set(found[0].lrs) == {0.3}
    trainer = InnerTrainer([task.with_seed(seed)])
    dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = ReduceLROnPlateau(dummy, factor=0.5, patience=0, threshold=0.0)
    rates = []
    for end in (*check_points(60), 60):
        steps = end - trainer.step_count
        lr = 0.3 * dummy.param_groups[0]["lr"]
        rates += [lr] * steps
        trainer.run(np.full((steps, 1), lr), momentum=np.full(1, 0.9))
        scheduler.step(float(trainer.evaluate("inner_valid")[0]))
    assert rates[-1] < 0.3
    assert found[1].lrs == pytest.approx(np.reshape(rates, (30, 2)).mean(axis=1))
    (loss,) = trainer.evaluate("outer_valid")
    assert found[1].losses["outer_valid"] == pytest.approx(float(loss), rel=1e-4)


def raises_at_high_rates(progress, h):
    if h["lr"] > 0.5:
        raise RuntimeError("too high\nfor me")
    return np.ones_like(progress)


def refuses(params, h, task):
    raise ValueError("no such optimizer")


def test_crash_and_divergence_of_one_setting_touch_no_other():
    task = small_task()
    fragile = replace(ROWS["adamw-constant"], name="fragile", schedule=raises_at_high_rates)
    broken = Baseline(name="b", label="b", optimizer=refuses, fixed={"lr": 0.1}, source="mine")
    configured = [Configured(fragile, {"lr": lr}) for lr in (0.01, 1.0, 0.02)]
    configured += [Configured(ROWS["sgd-cosine"], {"lr": lr}) for lr in (0.1, 1e30)]
    configured += [Configured(broken, {}), Configured(ROWS["nadam-cosine"], {"lr": 1e30})]
    found = run_configured(task, configured, seeds=[0, 1], evaluate=REPORTED)
    reasons = [o.failed for o in found[::2]]
    assert reasons[1] == "RuntimeError: too high"
    assert reasons[5] == "ValueError: no such optimizer"
    assert [r is None for r in reasons] == [True, False, True, True, True, False, True]
    for o in found:
        if o.failed:
            assert np.isnan([o.losses[split] for split in REPORTED]).all()
    alone = run_settings(task, ROWS["adamw-constant"], [{"lr": 0.02}], seeds=[0, 1])
    for a, b in zip(alone, found[4:6], strict=True):
        assert a.losses["outer_valid"] == pytest.approx(b.losses["outer_valid"], rel=1e-4)
    assert not found[8].losses["test"] < 1e6
    assert math.isfinite(found[6].losses["test"])


def test_population_learns_and_repeats_itself():
    # Trials on two seeds, then the re-run, cost as many runs as members.
    assert [population_size(n, tuning_seeds=2) for n in (1, 5, 20)] == [1, 11, 41]
    task, row = small_task(horizon=80), ROWS["population"]
    options = RunOptions(num_intervals=40, evaluate=REPORTED)
    found, again = (
        run_population(task, row, members=11, seeds=[3, 4], options=options) for _ in range(2)
    )
    default = run_settings(task, ROWS["adamw-constant"], [row.space.default], seeds=[3, 4])
    for a, b, c in zip(found, again, default, strict=True):
        assert a.losses == b.losses
        assert a.losses["outer_valid"] < 0.8 * c.losses["outer_valid"]
        assert a.inner_steps == 11 * task.horizon
        assert a.valid_curve[-1] == a.losses["outer_valid"]


def test_worst_members_copy_best_ones_and_explore_within_bounds():
    generator = np.random.default_rng(0)
    losses = np.array([5.0, 1.0, np.nan, 3.0, 2.0, 9.0, 4.0, 6.0, 7.0, 8.0])
    for _ in range(10):
        sources = exploit(losses, generator)
        assert set(sources[[2, 5]]) <= {1, 4}
        kept = [0, 1, 3, 4, 6, 7, 8, 9]
        assert sources[kept].tolist() == kept
    table, bounds = {"lr": np.full(400, 0.1)}, {"lr": Dimension(1e-3, 0.1, default=0.1, most=0.11)}
    explore(table, np.arange(200), bounds, generator)
    assert set(table["lr"][:200].round(6)) == {0.08, 0.11}
    assert set(table["lr"][200:]) == {0.1}


@pytest.mark.parametrize("arm", ["adamw-cosine", "nadam-cosine"])
def test_metric_is_that_of_the_trained_model(arm):
    halved = Metric("half right", right, lambda mean: mean / 2)
    task = small_task(metric=halved)
    (found,) = run_settings(task, ROWS[arm], [{"lr": 0.03}], seeds=[0], evaluate=REPORTED)
    assert found.metric_name == "half right"
    assert 0.3 < found.metric["train"] <= 0.5
    assert (32 * found.metric["test"]) % 1 == pytest.approx(0, abs=1e-5)


def test_perplexity_is_the_exponential_of_the_mean_loss_per_token():
    task = replace(fixed_task("language-transformer", 0), horizon=4)
    (found,) = run_settings(task, ROWS["adamw-default"], [{}], seeds=[0])
    assert found.metric_name == metric_of(task).name == "perplexity"
    trainer = InnerTrainer([task.with_seed(0)])
    trainer.run(np.full((4, 1), 1e-3), momentum=np.full(1, 0.9))
    model = build_model(task.with_seed(0))
    model.load_state_dict({**trainer.parameters(0), **trainer.buffers(0)}, strict=False)
    (tokens,) = task.splits.outer_valid
    with torch.no_grad():
        logits = model.eval()(tokens[:, :-1])
    plain = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).exp()
    assert found.metric["outer_valid"] == pytest.approx(float(plain), rel=1e-4)


def agents_only(arms, task, **config):
    config = CompareConfig(arms=arms, num_seeds=1, **config)
    plan = Plan(config=config, baselines=(), policy=reactive(size=0.4, num_intervals=6))
    return [r for piece in pieces(plan, choices={}) for r in piece.records(piece.group.run(task))]


def test_records_are_kept_whole(tmp_path):
    found = agents_only(("policy",), small_task(metric=Metric("accuracy", right)))
    nothing = {"losses": dict.fromkeys(REPORTED, math.nan), "metric": None}
    nothing |= {"best": {"outer_valid": math.nan}, "wall_seconds": math.nan}
    broken = replace(found[0], valid_curve=[1.0, math.inf], failed="RuntimeError: why", **nothing)
    path = tmp_path / "records.json"
    write_records(path, [*found, broken])
    json.loads(path.read_text(), parse_constant=pytest.fail)
    *same, last = read_records(path)
    assert [r.row() for r in same] == [r.row() for r in found]
    assert (last.diverged, last.failed) == (True, broken.failed)
    assert math.isnan(last.valid_curve[1])
    write_csv(tmp_path / "results.csv", [*found, broken])
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [float(row["test"]) for row in rows[:-1]] == [r.losses["test"] for r in found]
    shown = [rows[-1][name] for name in ("failed", "diverged", "metric_test")]
    assert shown == ["RuntimeError: why", "1", ""]


def test_the_random_policy_differs_by_task_and_by_seed():
    first = small_task(horizon=12)
    jobs = ((first, 0), (first, 0), (first, 1), (replace(first, name="own/other"), 0))
    a, same, seed, task = (
        agents_only(("random-policy",), task, seed=seed)[0].lrs for task, seed in jobs
    )
    assert a == same
    assert a[0] == seed[0] == task[0]  # before the first decision
    assert len({a[1], seed[1], task[1]}) == 3


def test_optional_arms_see_validation_losses_take_fewer_steps_and_start_elsewhere():
    names = ("do-nothing", "multiple-10", "policy", "policy-seeing", "policy-two-thirds")
    assert not {"multiple-10", "policy-seeing", "adamw-pooled"} & set(default_arms())
    found = agents_only(names, small_task(horizon=60), start_lrs=(1e-3, 1e-2))
    by = {(r.arm, r.start_lr): r for r in found}
    # Ten times the start is the start that is ten times as high.
    assert by["multiple-10", 1e-3].losses == pytest.approx(by["do-nothing", 1e-2].losses, rel=1e-4)
    assert by["policy-two-thirds", 1e-3].steps[-1] == 40
    same, seeing = by["policy", 1e-3], by["policy-seeing", 1e-3]
    assert same.lrs[:2] == pytest.approx(seeing.lrs[:2])  # nothing has been seen yet
    assert same.lrs[3] != seeing.lrs[3]


def test_pooled_adamw_chooses_its_schedule_and_clips():
    row = ROWS["adamw-pooled"]
    setting = {**row.space.default, "lr": 0.05, "schedule": "linear"}
    configured = [Configured(row, {**setting, "clip": clip}) for clip in (0.5, 1e9)]
    linear = Configured(ROWS["adamw-linear"], {"lr": 0.05, "weight_decay": 0.01})
    clipped, free, plain = run_configured(small_task(), [*configured, linear], seeds=[0])
    assert free.losses == pytest.approx(plain.losses, rel=1e-5)
    assert clipped.losses["outer_valid"] != pytest.approx(plain.losses["outer_valid"], rel=1e-3)


def test_equal_winners_of_two_budgets_run_once():
    tuned = {"lr": 0.03, "weight_decay": 0.1}
    budgets = ((5, 400), (20, 1600))
    choices = [Choice(setting=tuned, budget=n, tuning_steps=steps) for n, steps in budgets]
    config = CompareConfig(arms=("adamw-cosine",), num_seeds=1)
    plan = Plan(config=config, baselines=(ROWS["adamw-cosine"],), policy=reactive())
    (piece,) = pieces(plan, choices={"adamw-cosine": choices})
    assert len(piece.group.rows) == 1
    five, twenty = piece.records(piece.group.run(small_task()))
    assert five.losses == twenty.losses
    assert (five.trials, five.inner_steps) == (5, 440)
    assert (twenty.trials, twenty.inner_steps) == (20, 1640)
