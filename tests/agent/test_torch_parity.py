"""What torch lets an optimizer or a loop do besides the usual; directions read from its state."""

import numpy as np
import pytest
import torch
from jobs import Job, always, reactive, start
from torch import nn
from torch.optim import SGD, AdamW, NAdam, RMSprop

from pacesetter.agent.plugin import directions
from pacesetter.agent.plugin.directions import read_directions
from pacesetter.agent.plugin.optimizer_state import Setting
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig


def unramped(**control):
    return Policy.do_nothing(ControlConfig(ramp_start=1.0, **control))


def test_updates_that_are_differentiable_leave_a_way_back():
    origin = torch.tensor(2.0, requires_grad=True)
    weight = origin.clone()
    optimizer = SGD([nn.Parameter(torch.ones(()))], lr=0.1, differentiable=True)
    optimizer.param_groups[0]["params"] = [weight]
    scheduler = LearnedScheduler(optimizer, 40, policy=unramped())
    expected = 2.0
    for _ in range(5):
        expected *= 1 - scheduler.get_last_lr()[0]
        weight.grad = weight.detach()
        optimizer.step()
        scheduler.step(1.0)
    assert float(weight.detach()) == pytest.approx(expected, rel=1e-5)
    (way_back,) = torch.autograd.grad(weight, origin)
    assert float(way_back) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "NAdam", "RAdam"])
def test_settings_in_tensors_are_filled_in_place(name):
    plain, job = Job(name, lr=0.01, foreach=False), Job(name, lr=torch.tensor(0.01), foreach=False)
    group, expected = job.optimizer.param_groups[0], plain.optimizer.param_groups[0]
    if name == "AdamW":
        group["betas"] = tuple(torch.tensor(b, dtype=torch.float64) for b in group["betas"])
    held = group["lr"], group.get("betas")
    (_, one), (_, two) = (start(30, always(0.1, 1, 0), job=j) for j in (plain, job))
    for _ in range(30):
        assert float(group["lr"]) == two.get_last_lr()[0] == pytest.approx(expected["lr"], rel=1e-6)
        plain.update(one)
        job.update(two)
    assert group["lr"] is held[0]
    if name == "AdamW":
        assert all(a is b for a, b in zip(group["betas"], held[1], strict=True))
        assert [float(b) for b in held[1]] == pytest.approx(expected["betas"], rel=1e-6)
        assert float(held[1][0]) < 0.8
    torch.testing.assert_close(plain.weights(), job.weights(), rtol=1e-3, atol=1e-5)


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    weight = model[0].weight = model[1].weight
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = LearnedScheduler(optimizer, 80, policy=unramped(clip_ratio_start=0.5))
    for _ in range(2):
        weight.grad = torch.ones(3, 3)
        optimizer.step()
        scheduler.step(1.0)
    assert scheduler.last_clip_norm == pytest.approx(0.5 * 3.0)
    torch.testing.assert_close(weight.grad, torch.full((3, 3), 0.5))


@pytest.mark.parametrize("name", ["AdamW", "SGD-plain"])
def test_frozen_parameters_do_not_move_and_may_be_thawed(name):
    job, scheduler = start(40, reactive(), job=Job(name))
    frozen = list(job.model[0].parameters())
    before = [p.detach().clone() for p in frozen]
    for trained in (False, True):
        for p in frozen:
            p.requires_grad_(trained)
        job.run(20, scheduler)
        assert {torch.equal(a, b) for a, b in zip(before, frozen, strict=True)} == {not trained}
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def compiled_run(name, *, how):
    torch._dynamo.reset()
    job = Job(name, dtype=torch.float32, lr=torch.tensor(0.01))
    for group in job.optimizer.param_groups:
        # Of Adam's kind, only betas in tensors may change without a new graph; of SGD's, a tensor
        # for the learning rate is enough.
        if "betas" in group:
            group["betas"] = tuple(torch.tensor(beta) for beta in group["betas"])
    scheduler = LearnedScheduler(job.optimizer, 80, policy=always(0.1, 0.5, -0.2))
    if how is not None:
        job.model = torch.compile(job.model, backend="aot_eager")
    if how == "step too":
        job.optimizer.step = torch.compile(job.optimizer.step, backend="aot_eager")
    try:
        for _ in range(40):
            if len(scheduler.history) == 2:
                torch.compiler.set_stance("fail_on_recompile")
            job.update(scheduler)
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
    assert len(scheduler.history) > 10
    return job.weights()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("AdamW", "step too"),
        pytest.param("AdamW", "model", marks=pytest.mark.slow),
        *(
            pytest.param(name, "step too", marks=pytest.mark.slow)
            for name in ("Adam", "SGD", "SGD-plain", "RMSprop", "NAdam", "RAdam")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_nothing_is_compiled_anew_after_the_second_decision(name, how):
    expected, found = compiled_run(name, how=None), compiled_run(name, how=how)
    torch.testing.assert_close(expected, found, rtol=1e-3, atol=1e-5)


# -- how a gradient lies to momentum and the latest update ------------------------------

WAYS = {
    "AdamW": (AdamW, {}),
    "AdamW-amsgrad": (AdamW, {"amsgrad": True}),
    "AdamW-maximize": (AdamW, {"maximize": True}),
    "NAdam": (NAdam, {}),
    "SGD": (SGD, {"momentum": 0.9}),
    "RMSprop": (RMSprop, {"momentum": 0.9}),
}


def make(name, dtypes=(torch.float64, torch.float32, torch.float64)):
    """Two groups, with parameters that have had different numbers of updates."""
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (7,), (2, 5)]
    params = [
        nn.Parameter(torch.randn(s, generator=g).to(d)) for s, d in zip(shapes, dtypes, strict=True)
    ]
    kind, options = WAYS[name]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01}]
    optimizer = kind(groups, lr=1.0, **options)
    for step in range(4):
        for i, p in enumerate(params):
            absent = i == 1 and step < 2
            p.grad = None if absent else torch.randn(p.shape, generator=g).to(p.dtype)
        if step < 3:
            optimizer.step()
    return optimizer, [Setting(0.1, 0.9), Setting(0.01, 0.9)]


def expected(optimizer, latest):
    grads, momenta, updates = [], [], []
    for group, setting in zip(optimizer.param_groups, latest, strict=True):
        for p in group["params"]:
            state = optimizer.state[p]
            grads.append(-p.grad if group["maximize"] else p.grad)
            if "exp_avg" in state:
                momenta.append(state["exp_avg"])
                t = float(state["step"])
                second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
                corrected = (second / (1 - 0.999**t)).sqrt() + 1e-8
                update = state["exp_avg"] / (1 - 0.9**t) / corrected
            else:
                update = state["momentum_buffer"]
                momenta.append(update)
            updates.append(setting.lr * update)
    g, m, u = (torch.cat([t.double().flatten() for t in x]) for x in (grads, momenta, updates))
    return [float(a @ b) for a, b in ((g, m), (m, m), (g, u), (u, u))]


@pytest.mark.parametrize("at_once", [1, 5, 13, 10**6])
@pytest.mark.parametrize("name", WAYS)
def test_sums_are_those_of_all_parameters_however_they_are_cut(name, at_once, monkeypatch):
    monkeypatch.setattr(directions, "_AT_ONCE", at_once)
    optimizer, latest = make(name)
    found = read_directions(
        optimizer, latest, device=torch.device("cpu"), dtype=torch.float64
    ).tolist()
    # One parameter, and its share of the sums, is of float32.
    assert found == pytest.approx(expected(optimizer, latest), rel=1e-4, abs=1e-6)


def test_nothing_is_known_before_the_first_update_or_of_sparse_gradients():
    where = {"device": torch.device("cpu"), "dtype": torch.float64}
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.1, momentum=0.9)
    latest = [Setting(0.1, 0.9)]
    embedding.weight.grad = torch.ones(4, 2)
    assert read_directions(optimizer, latest, **where) is None
    optimizer.step()
    assert read_directions(optimizer, latest, **where) is not None
    embedding.weight.grad = None
    embedding(torch.tensor([1])).sum().backward()
    assert read_directions(optimizer, latest, **where) is None
