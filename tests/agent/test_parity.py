"""Train/deploy parity: an episode of the environment, replayed through `LearnedScheduler`.

The same task is run twice: in the environments' `ScheduledRuns`, and as a job of its own in a plain
torch loop. Features, actions, hyperparameters and weights have to agree at every decision.
"""

import numpy as np
import pytest
import torch
from jobs import reactive
from torch import nn

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.engine.data import batch_stream, build_model
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits
from pacesetter.inner_models.watch.guard import DivergenceGuard

ROWS = 96
# Its actions differ at every decision, and its clipping bites. Its weights are moderate: a jumpy
# policy on a jumpy task is chaos, in which rounding errors grow tenfold every few decisions.
POLICY = reactive(clip_ratio_start=1.0)


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def loss_fn(model, batch):
    """Mean squared error; a row with flag 1 leaves it finite and makes its gradient NaN."""
    inputs, targets, flag = batch
    out = model(inputs)
    breaking = torch.sqrt(1 - flag[:, None] + 0 * out)
    return (out - targets).square().mean() + 0.1 * breaking.mean()


def make_task(optimizer, *, horizon=120, valid_every=2, broken=(), momentum=0.9):
    g = torch.Generator().manual_seed(3)
    inputs = torch.randn(ROWS, 6, generator=g)
    targets = inputs[:, :2].sin() + 0.1 * torch.randn(ROWS, 2, generator=g)
    flag = torch.zeros(ROWS)
    clean = (inputs, targets, flag.clone())
    if "gradient" in broken:
        flag[5] = 1.0
    train = (inputs.clone(), targets, flag)
    if "loss" in broken:
        train[0][40, 0] = torch.nan
    start = {"adamw": 3e-3, "sgd": 1e-2}[optimizer]
    return ModuleTask(
        build,
        loss_fn,
        Splits(train, clean, clean, clean, allow_overlap=True),
        horizon=horizon,
        batch_size=4,
        optimizer=OptimizerConfig(name=optimizer, lr=start, momentum=momentum, weight_decay=0.02),
        seed=11,
        valid_every=valid_every,
    )


def environment(task, dtype):
    """Runs the episode; returns one record per decision, and the final weights."""
    runs = ScheduledRuns([task], control=POLICY.control, dtype=dtype)
    features, records = runs.begin(), []
    while not runs.done:
        seen, action, overfits = features[0], POLICY.act(features), runs.core.overfitting[0]
        features = runs.decide(action)
        if overfits:
            action[0, 0] = -1.0
        stats = {"clipped": runs.stats.clipped_share[0], "broken": runs.stats.nonfinite_share[0]}
        taken = {"features": seen, "action": action[0], "momentum": runs.codec.momentum[0]}
        records.append({**taken, **stats})
    return records, runs


def plain_job(task, dtype, *, guard=None):
    """The same task as a user would train it."""
    model = build_model(task).to(dtype)
    o = task.optimizer
    shared = {"params": model.parameters(), "lr": o.lr, "weight_decay": o.weight_decay}
    if o.name == "adamw":
        optimizer = torch.optim.AdamW(**shared, betas=(o.momentum, o.beta2), eps=o.eps)
    else:
        optimizer = torch.optim.SGD(**shared, momentum=o.momentum)
    scheduler = LearnedScheduler(optimizer, total_steps=task.horizon, policy=POLICY)
    scheduler._run.decider.core._guard = guard or scheduler._run.decider.core._guard
    train = [column.to(dtype) for column in task.splits.train]
    valid = [column.to(dtype) for column in task.splits.inner_valid]
    rates = []
    ends = scheduler._run.decider.core.codec.ends
    boundaries = [h for i, h in enumerate(ends, 1) if not i % task.valid_every]
    for step, rows in enumerate(batch_stream(task).take(task.horizon), 1):
        loss = loss_fn(model, [column[rows] for column in train])
        loss.backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if step in boundaries:
            with torch.no_grad():
                scheduler.observe_validation(loss_fn(model, valid))
        scheduler.step(loss)
        optimizer.zero_grad()
    return model, scheduler, rates


@pytest.mark.filterwarnings("ignore:LearnedScheduler. ")  # the guard is to step in
@pytest.mark.parametrize(
    ("optimizer", "momentum", "dtype", "tolerance", "broken"),
    [
        ("adamw", 0.0, torch.float64, 1e-9, ()),
        ("adamw", 0.9, torch.float32, 1e-4, ("gradient",)),
        ("sgd", 0.9, torch.float32, 1e-4, ()),
        ("sgd", 0.9, torch.float64, 1e-9, ("gradient", "loss")),
        ("sgd", 0.0, torch.float64, 1e-9, ()),
    ],
)
def test_job_meets_what_the_environment_showed(optimizer, momentum, dtype, tolerance, broken):
    task = make_task(optimizer, broken=broken, momentum=momentum)
    expected, runs = environment(task, dtype)
    # Single broken updates are answered in the environment alone.
    model, scheduler, rates = plain_job(task, dtype, guard=DivergenceGuard(1))

    assert len(scheduler.history) == len(expected) == 39
    for seen, wanted in zip(scheduler.history, expected, strict=True):
        for name, a, b in zip(FEATURE_NAMES, seen.features, wanted["features"], strict=True):
            assert a == pytest.approx(b, abs=tolerance), f"{name} at step {seen.step}"
        np.testing.assert_allclose(seen.action, wanted["action"], atol=tolerance)
        assert wanted["momentum"] == pytest.approx(seen.momentum or 0.0, rel=tolerance)
        assert (wanted["momentum"] > 0) == (momentum > 0)
    assert scheduler._run.decider.core.codec.clip_ratio == pytest.approx(
        runs.codec.clip_ratio, rel=tolerance
    )
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.detach(), runs.trainer.parameters(0)[name], rtol=10 * tolerance, atol=tolerance
        )
    # The episode is no idle one: the agent moved, gradients were clipped, updates broke.
    assert all(np.ptp([r["action"][i] for r in expected]) > 0.1 for i in range(3))
    assert sum(r["clipped"] for r in expected) > 0
    assert (sum(r["broken"] for r in expected) > 0) == (scheduler.skipped_steps > 0) == bool(broken)
    assert len(set(rates)) > 40


@pytest.mark.parametrize("horizon", [1, 79, 103])
def test_learning_rates_of_every_step_at_odd_horizons(horizon):
    task = make_task("sgd", horizon=horizon, valid_every=1)
    runs = ScheduledRuns([task], control=POLICY.control, dtype=torch.float64)
    wanted, run = [], runs.trainer.run

    def spy(lr, **kwargs):
        wanted.extend(lr[:, 0])
        return run(lr, **kwargs)

    runs.trainer.run = spy
    features = runs.begin()
    while not runs.done:
        features = runs.decide(POLICY.act(features))
    _, scheduler, rates = plain_job(task, torch.float64)
    np.testing.assert_allclose(rates, wanted, rtol=1e-9)
    assert len(scheduler.history) == runs.num_decisions
