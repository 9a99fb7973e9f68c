"""Baselines are what they say: the schedules and optimizers of torch, from the space they name."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from plain_loop import plainly_trained
from torch.optim import lr_scheduler as torch_schedules

import tiny
from pacesetter.experiments.rivals import baselines, schedules
from pacesetter.experiments.rivals.arms import Baseline, Configured
from pacesetter.experiments.rivals.baselines import (
    BASELINES,
    arm_names,
    check_arms,
)
from pacesetter.experiments.rivals.schedules import WARM_UP
from pacesetter.experiments.rivals.space import Choice, Dimension, Space
from pacesetter.experiments.runs.batched import RunOptions, train_batch
from pacesetter.experiments.runs.matrix import BaselineGroup
from pacesetter.inner_models.task import OptimizerConfig

ROWS = {b.name: b for b in BASELINES}


def small_task(*, horizon=40):
    config = OptimizerConfig(weight_decay=0.1)
    return replace(tiny.small_task(horizon=horizon), optimizer=config)


def optimizer(kind, **options):
    return partial(kind, lr=0.02, **options)


def adamw(momentum=0.9, weight_decay=0.1):
    return optimizer(torch.optim.AdamW, betas=(momentum, 0.999), weight_decay=weight_decay)


def torch_cosine(optimizer):
    return torch_schedules.CosineAnnealingLR(optimizer, T_max=40)


def torch_constant(optimizer):
    return torch_schedules.ConstantLR(optimizer, factor=1.0)


def warm_up_cosine(optimizer):
    """The formulas of torch's LinearLR, and of CosineAnnealingLR over what is left of 40 steps."""
    rise = round(WARM_UP * 40)

    def factor(step):
        if step < rise:
            return 0.01 + 0.99 * step / rise
        return 0.5 * (1 + np.cos(np.pi * (step - rise) / (40 - rise)))

    return torch_schedules.LambdaLR(optimizer, factor)


@pytest.mark.parametrize(
    ("name", "setting", "make", "scheduler"),
    [
        ("adamw-cosine", {}, adamw(), torch_cosine),
        ("adamw-warmup-cosine", {}, adamw(), warm_up_cosine),
        ("adamw-constant", {"momentum": 0.7, "weight_decay": 0.3}, adamw(0.7, 0.3), torch_constant),
        (
            *("sgd-cosine", {"momentum": 0.8, "weight_decay": 0.5}),
            *(optimizer(torch.optim.SGD, momentum=0.8, weight_decay=0.5), torch_cosine),
        ),
        (
            *("rmsprop-cosine", {"momentum": 0.3}),
            *(optimizer(torch.optim.RMSprop, alpha=0.99, momentum=0.3), torch_cosine),
        ),
    ],
)
def test_baseline_equals_torch(name, setting, make, scheduler):
    task, row = small_task(), ROWS[name]
    if name == "sgd-cosine":  # weight decay of its own reaches every batched optimizer
        row = replace(row, fixed={})
    # A sibling of other numbers, and a second seed: the run under test must not notice.
    other = {"lr": 0.3, "momentum": 0.1, "weight_decay": 0.7}
    pair = [Configured(row, other), Configured(row, {"lr": 0.02, **setting})]
    runs = train_batch(task, pair, seeds=[3, 4], num_intervals=7, dtype=torch.float64)
    for i, seed in enumerate((3, 4)):
        options = {"scheduler": scheduler, "dtype": torch.float64}
        expected = plainly_trained(task, make, seed=seed, **options)
        found = runs.trainer.parameters(2 * i + 1)
        for key, value in expected.named_parameters():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-6, atol=1e-9)


def restarts(optimizer, steps):
    return torch_schedules.CosineAnnealingWarmRestarts(optimizer, steps // 7, 2)


def one_cycle(optimizer, steps):
    options = {"total_steps": steps + 1, "pct_start": 0.2, "cycle_momentum": False}
    return torch_schedules.OneCycleLR(optimizer, 1.0, **options)


def step_decay(optimizer, steps):
    return torch_schedules.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4], 0.3)


@pytest.mark.parametrize(
    ("name", "setting", "make", "tolerance"),
    [
        ("linear", {}, lambda o, n: torch_schedules.LinearLR(o, 1.0, 0.0, n), 1e-12),
        ("step_decay", {"gamma": 0.3}, step_decay, 1e-12),
        (
            *("exponential", {"final": 0.02}),
            *(lambda o, n: torch_schedules.ExponentialLR(o, 0.02 ** (1 / n)), 1e-12),
        ),
        ("cosine_restarts", {"cycles": "3"}, restarts, 1e-9),
        ("one_cycle", {"peak": 0.2}, one_cycle, 4e-3),  # torch's counts one step less in each phase
    ],
)
def test_schedule_equals_torch(name, setting, make, tolerance):
    steps = 1400
    found = getattr(schedules, name)(np.arange(steps) / steps, setting)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, expected = make(optimizer, steps), []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(np.array(expected), abs=tolerance)


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_stable_phase_lies_between_rise_and_decay(shape):
    progress = np.arange(1000) / 1000
    found = schedules.warm_up_stable_decay(progress, {"decay": 0.4, "shape": shape})
    assert (found[50:600] == 1).all()
    assert (np.diff(found[:50]) > 0).all()
    assert found[800] == pytest.approx(0.5 if shape == "linear" else 1 - np.sqrt(0.5))
    assert found[-1] < 0.01


def test_plateau_reduces_after_its_patience_whatever_the_sign_of_the_loss():
    plateau = schedules.Plateau({"factor": 0.5, "patience": "1"})
    losses = [3.0, -1.0, -1.0, -0.999, float("nan"), float("inf"), -2.0]
    assert [plateau.factor(loss) for loss in losses] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_names_are_unique_and_unknown_ones_refused():
    assert len(set(arm_names())) == len(arm_names())
    with pytest.raises(ValueError, match="'adamw-cosin'; nearest: adamw-cosine"):
        check_arms(["adamw-cosin"])


def test_rows_that_cannot_be_run_are_refused():
    good = {"name": "a", "label": "a", "source": "mine"}
    short = replace(ROWS["adamw-cosine"], schedule=lambda progress, h: progress[:3])
    for refused, message in (
        (lambda: Baseline(**good, optimizer="adamw"), "needs 'lr'"),
        (lambda: Baseline(**good, optimizer="adamax", fixed={"lr": 1}), "one of adamw"),
        (lambda: replace(ROWS["nadam-cosine"], population=True), "population"),
        (lambda: short.factors(40, {}), r"one factor per step, shape \(40,\), but got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_space_widens_on_the_side_that_is_asked_for():
    space = Space(
        {
            "lr": Dimension(1e-3, 1.0, default=0.1, most=5.0),
            "momentum": Dimension(0.5, 0.9, default=0.9, log=False, least=0.2),
            "shape": Choice(("a", "b"), default="b"),
        }
    )
    assert space.default == {"lr": 0.1, "momentum": 0.9, "shape": "b"}
    up = space.widened("lr", up=True).dimensions["lr"]
    assert (up.low, up.high) == (1e-3, 5.0)
    down = space.widened("lr", up=False).dimensions["lr"]
    assert (down.low, down.high) == pytest.approx((1e-4, 1.0))
    low = space.widened("momentum", up=False).dimensions["momentum"]
    assert (low.low, low.high) == (0.2, 0.9)
    logs = [math.log10(space.sample(np.random.default_rng(i))["lr"]) for i in range(200)]
    assert np.mean(logs) == pytest.approx(-1.5, abs=0.15)  # evenly on its own scale
    for refused, message in (
        (lambda: space.widened("shape", up=True), "only lr, momentum can be widened, not 'shape'"),
        (lambda: space.check({"lr": 0.1}), "must name"),
        (lambda: space.check({**space.default, "shape": "c"}), "'shape' must come from"),
        (lambda: Dimension(1e-3, 1.0, default=2.0), "low <= default"),
        (lambda: Dimension(0.0, 1.0, default=0.5), "positive low"),
        (lambda: Choice(("a",), default="b"), "one of"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_a_baseline_of_ones_own_runs_as_the_docstring_says():
    lines = baselines.__doc__.split("::\n", 1)[1].splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    "))
    names = {"torch": torch, "np": np, "Baseline": Baseline, "Space": Space, "Dimension": Dimension}
    exec(example, names)
    mine = names["MINE"]
    rows = tuple(Configured(mine, s) for s in (mine.space.default, {"lr": 0.05}))
    group = BaselineGroup(rows=rows, seeds=(0,), options=RunOptions(num_intervals=2))
    found = group.run(small_task())
    assert found[1].losses["outer_valid"] < found[0].losses["outer_valid"] < found[0].untrained
    factors = np.cos(0.5 * np.pi * np.arange(40) / 40)
    assert found[0].lrs == pytest.approx(2e-3 * factors.reshape(2, 20).mean(axis=1))
