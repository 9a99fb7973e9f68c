"""What torch's own tests ask of a learning rate scheduler, asked of `LearnedScheduler`."""

import copy
import gc
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES

OPTIMIZERS = {
    "AdamW": lambda params, **kw: AdamW(params, **kw),
    "Adam": lambda params, **kw: Adam(params, **kw),
    "SGD": lambda params, **kw: SGD(params, **kw),
    "SGD-momentum": lambda params, **kw: SGD(params, momentum=0.9, **kw),
    "SGD-nesterov": lambda params, **kw: SGD(params, momentum=0.9, nesterov=True, **kw),
    "RMSprop": lambda params, **kw: RMSprop(params, **kw),
    "RMSprop-momentum": lambda params, **kw: RMSprop(params, momentum=0.9, **kw),
    "NAdam": lambda params, **kw: NAdam(params, **kw),
    "RAdam": lambda params, **kw: RAdam(params, **kw),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
some_optimizers = pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop-momentum"])
STARTS = (0.01, 0.0, 5e-4)
TOTAL = 120


def closed_form(step, total=TOTAL):
    """The base schedule by hand: a ramp over one of 40 parts, and a cosine to 1 %."""
    ramp = 0.01 + 0.99 * min(1.0, step / (total // 40))
    return ramp * (0.01 + 0.99 * (1 + math.cos(math.pi * step / total)) / 2)


def unclipped():
    return Policy.do_nothing(ControlConfig(clip_ratio_start=20.0))


def always(*action):
    return Policy([(np.zeros((3, NUM_FEATURES)), np.array(action, dtype=float))])


def reactive(seed=0):
    rng = np.random.default_rng(seed)
    return Policy([(0.05 * rng.normal(size=(3, NUM_FEATURES)), np.zeros(3))])


class Net(nn.Module):
    """The shape of torch's own scheduler tests, with a loss."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
            self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * self.conv2(torch.tanh(self.conv1(x)))

    def groups(self):
        parts = ([*self.conv1.parameters()], [*self.conv2.parameters()], [self.scale])
        return [{"params": p, "lr": lr} for p, lr in zip(parts, STARTS, strict=True)]

    def weights(self):
        return [p.detach().clone() for p in self.parameters()]


class Job:
    """A net, an optimizer with three groups, and batches that depend on the step alone."""

    def __init__(self, name="AdamW", **kwargs):
        self.model = Net()
        self.optimizer = OPTIMIZERS[name](self.model.groups(), **kwargs)

    def loss(self, step):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 1, 3, 3, generator=g)
        return (self.model(x) - x.sin()).square().mean()

    def run(self, scheduler, steps, *, update=None):
        for step in steps:
            loss = self.loss(step)
            self.optimizer.zero_grad()
            loss.backward()
            (update or self.optimizer.step)()
            scheduler.step(loss)


@every_optimizer
def test_target_curve_of_every_group(name):
    job = Job(name)
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=unclipped())
    for step in range(TOTAL):
        targets = [lr * closed_form(step) for lr in STARTS]
        assert scheduler.get_last_lr() == pytest.approx(targets, rel=1e-12)
        assert [g["lr"] for g in job.optimizer.param_groups] == scheduler.get_last_lr()
        job.run(scheduler, [step])
    assert len(scheduler.history) == 39


@some_optimizers
def test_groups_keep_their_ratios_and_zero_stays_zero_whatever_the_policy(name):
    job = Job(name)
    still = [p.detach().clone() for p in job.model.conv2.parameters()]
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    seen = set()
    for step in range(TOTAL):
        first, zero, third = scheduler.get_last_lr()
        assert zero == 0.0
        assert third / first == pytest.approx(STARTS[2] / STARTS[0], rel=1e-9)
        seen.add(round(first / closed_form(step), 9))
        job.run(scheduler, [step])
    assert len(seen) > 20  # the policy did move the rate
    for before, after in zip(still, job.model.conv2.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum"])
@pytest.mark.parametrize("kwargs", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_implementations_agree(name, kwargs):
    plain, job = Job(name), Job(name, **kwargs)
    one = LearnedScheduler(plain.optimizer, TOTAL, policy=reactive())
    two = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    plain.run(one, range(TOTAL))
    job.run(two, range(TOTAL))
    for a, b in zip(plain.model.weights(), job.model.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert one.get_last_lr() == pytest.approx(two.get_last_lr(), rel=1e-3)


def test_updates_that_are_differentiable_leave_a_way_back():
    start = torch.tensor(2.0, requires_grad=True)
    weight = start.clone()
    optimizer = SGD([nn.Parameter(torch.ones(()))], lr=0.1, differentiable=True)
    optimizer.param_groups[0]["params"] = [weight]
    scheduler = LearnedScheduler(optimizer, 40, policy=unclipped())
    factor = 1.0
    for step in range(5):
        weight.grad = weight.detach()
        optimizer.step()
        scheduler.step(1.0)
        factor *= 1 - 0.1 * closed_form_short(step)
    assert float(weight.detach()) == pytest.approx(2.0 * factor, rel=1e-5)
    (way_back,) = torch.autograd.grad(weight, start)
    assert float(way_back) == pytest.approx(1.0)


def closed_form_short(step, total=40):
    """As `closed_form`, for a run of fewer than 80 steps, which has total // 2 parts."""
    ramp = 0.01 + 0.99 * min(1.0, step / 2)
    return ramp * (0.01 + 0.99 * (1 + math.cos(math.pi * step / total)) / 2)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD-momentum", "RMSprop", "NAdam", "RAdam"])
def test_learning_rates_in_tensors_are_filled_in_place(name):
    model = Net()
    held = torch.tensor(0.02, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=held, foreach=False)
    scheduler = LearnedScheduler(optimizer, TOTAL, policy=unclipped())
    for step in range(20):
        assert float(held) == pytest.approx(0.02 * closed_form(step), rel=1e-12)
        assert optimizer.param_groups[0]["lr"] is held
        assert scheduler.get_last_lr() == [float(held)]
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step(1.0)


def test_betas_in_tensors_are_filled_in_place():
    held = torch.tensor(0.9), torch.tensor(0.999)
    plain, job = Net(), Net()
    optimizers = (
        AdamW(plain.parameters(), lr=0.01, foreach=False),
        AdamW(job.parameters(), lr=torch.tensor(0.01), betas=held, foreach=False),
    )
    one, two = (LearnedScheduler(o, TOTAL, policy=always(0.1, 1.0, 0.0)) for o in optimizers)
    for _ in range(60):
        for model, optimizer, scheduler in zip((plain, job), optimizers, (one, two), strict=True):
            for p in model.parameters():
                p.grad = p.detach().clone()
            optimizer.step()
            scheduler.step(1.0)
    assert optimizers[1].param_groups[0]["betas"][0] is held[0]
    assert float(held[0]) == pytest.approx(optimizers[0].param_groups[0]["betas"][0], rel=1e-6)
    assert float(held[0]) < 0.8
    assert float(held[1]) == pytest.approx(0.999)
    for a, b in zip(plain.weights(), job.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_tied_parameters_count_once():
    weight = nn.Parameter(torch.full((3, 3), 0.5))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.one.weight = self.two.weight = weight

    optimizer = SGD(Tied().parameters(), lr=1.0)
    scheduler = LearnedScheduler(
        optimizer, TOTAL, policy=Policy.do_nothing(ControlConfig(clip_ratio_start=0.5))
    )
    for _ in range(2):
        weight.grad = torch.ones(3, 3)
        optimizer.step()
        scheduler.step(1.0)
    assert scheduler.last_clip_norm == pytest.approx(0.5 * 3.0)
    torch.testing.assert_close(weight.grad, torch.full((3, 3), 0.5))


@some_optimizers
def test_frozen_parameters_do_not_move_and_may_be_thawed(name):
    job = Job(name)
    frozen = list(job.model.conv1.parameters())
    before = [p.detach().clone() for p in frozen]
    for p in frozen:
        p.requires_grad_(False)
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    job.run(scheduler, range(60))
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    for p in frozen:
        p.requires_grad_(True)
    job.run(scheduler, range(60, TOTAL))
    assert not any(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def test_a_closure_that_is_called_twice_is_clipped_at_each_call():
    """No supported optimizer calls twice, but a subclass may, to look ahead."""

    class Twice(SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    weight = nn.Parameter(torch.zeros(1))
    optimizer = Twice([weight], lr=1.0)
    scheduler = LearnedScheduler(optimizer, TOTAL, policy=unclipped())
    for step in range(4):
        before, lr = weight.item(), scheduler.get_last_lr()[0]

        def closure():
            weight.grad = torch.ones(1)
            return torch.tensor(1.0)

        scheduler.step(optimizer.step(closure))
        assert before - weight.item() == pytest.approx(lr, rel=1e-5)
        assert lr == pytest.approx(closed_form(step), rel=1e-12)


def test_a_group_that_joins_later_follows_the_curve_from_its_own_start():
    job = Job("SGD")
    late = nn.Parameter(torch.ones(2))
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=unclipped())
    job.run(scheduler, range(30))
    job.optimizer.add_param_group({"params": [late], "lr": 0.3})
    for step in range(30, 40):
        late.grad = torch.zeros(2)
        job.run(scheduler, [step])
        targets = [lr * closed_form(step + 1) for lr in (*STARTS, 0.3)]
        assert scheduler.get_last_lr() == pytest.approx(targets, rel=1e-12)


@every_optimizer
@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 37])
def test_a_resumed_run_gives_the_same_weights_bit_for_bit(name, stop, tmp_path):
    whole, first, second = Job(name), Job(name), Job(name)
    reference = LearnedScheduler(whole.optimizer, TOTAL, policy=reactive())
    whole.run(reference, range(TOTAL))
    before = LearnedScheduler(first.optimizer, TOTAL, policy=reactive())
    first.run(before, range(stop))
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "scheduler": before.state_dict(),
        },
        tmp_path / "checkpoint.pt",
    )
    after = LearnedScheduler(second.optimizer, TOTAL, policy=reactive())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    after.load_state_dict(saved["scheduler"])
    assert after.get_last_lr() == before.get_last_lr()
    second.run(after, range(stop, TOTAL))
    for a, b in zip(whole.model.weights(), second.model.weights(), strict=True):
        assert torch.equal(a, b)
    assert after.get_last_lr() == reference.get_last_lr()
    assert str(after.history) == str(reference.history)
    assert after.history[-1] == reference.history[-1]


def test_a_state_is_a_copy():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    job.run(scheduler, range(50))
    state = scheduler.state_dict()
    kept = copy.deepcopy(state)
    job.run(scheduler, range(50, TOTAL))
    assert repr(state) == repr(kept)
    assert repr(scheduler.state_dict()) != repr(kept)


@some_optimizers
def test_no_cyclic_references(name):
    job = Job(name)
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    job.run(scheduler, range(10))
    optimizer, gone = weakref.ref(job.optimizer), weakref.ref(scheduler)
    gc.collect()
    gc.disable()
    try:
        assert len(gc.get_referrers(scheduler)) == 0
        del scheduler
        assert gone() is None
        job.optimizer = None
        assert optimizer() is None
    finally:
        gc.enable()


def test_a_loop_in_the_right_order_warns_of_nothing():
    job = Job()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
        job.run(scheduler, range(TOTAL))


def test_the_wrong_order_is_warned_of_once():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())

    def wrong_order():
        for step in range(10):
            loss = job.loss(step)
            job.optimizer.zero_grad()
            loss.backward()
            scheduler.step(loss)
            job.optimizer.step()

    with pytest.warns(UserWarning, match=r"called before optimizer.step\(\)") as caught:
        wrong_order()
    assert len(caught) == 1


def test_steps_beyond_the_end_are_warned_of_once_and_change_nothing():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, TOTAL, policy=reactive())
    job.run(scheduler, range(TOTAL))
    held = scheduler.get_last_lr()
    with pytest.warns(UserWarning, match=f"more often than total_steps={TOTAL}") as caught:
        job.run(scheduler, range(TOTAL, TOTAL + 10))
    assert len(caught) == 1
    assert scheduler.get_last_lr() == held


def with_tensor_betas(optimizer):
    """For optimizers whose constructors take no betas in tensors, though their steps do."""
    for group in optimizer.param_groups:
        group["betas"] = tuple(torch.tensor(beta) for beta in group["betas"])
    return optimizer


COMPILED = {
    # Of Adam's kind, only betas in tensors may change without a new graph; of SGD's, a tensor for
    # the learning rate is enough.
    "AdamW": lambda p: AdamW(
        p, lr=torch.tensor(0.01), betas=(torch.tensor(0.9), torch.tensor(0.999))
    ),
    "Adam": lambda p: Adam(
        p, lr=torch.tensor(0.01), betas=(torch.tensor(0.9), torch.tensor(0.999))
    ),
    "SGD-momentum": lambda p: SGD(p, lr=torch.tensor(0.01), momentum=0.9),
    "SGD": lambda p: SGD(p, lr=torch.tensor(0.01)),
    "RMSprop-momentum": lambda p: RMSprop(p, lr=torch.tensor(0.001), momentum=0.9),
    "NAdam": lambda p: with_tensor_betas(NAdam(p, lr=torch.tensor(0.01))),
    "RAdam": lambda p: with_tensor_betas(RAdam(p, lr=torch.tensor(0.01))),
}


def compiled_run(make, *, how, steps=40):
    torch._dynamo.reset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.linspace(-1, 1, 32).reshape(8, 4)
    optimizer = make(model.parameters())
    scheduler = LearnedScheduler(optimizer, 80, policy=always(0.1, 0.5, -0.2))
    network, update = model, optimizer.step
    if how is not None:
        network = torch.compile(model, backend="aot_eager")
    if how == "step too":
        update = torch.compile(optimizer.step, backend="aot_eager")
    try:
        for _ in range(steps):
            if len(scheduler.history) == 2:
                torch.compiler.set_stance("fail_on_recompile")
            loss = network(inputs).square().mean()
            loss.backward()
            update()
            scheduler.step(loss)
            optimizer.zero_grad()
    finally:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()
    assert len(scheduler.history) > 10
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("AdamW", "step too"),
        *(
            pytest.param(name, how, marks=pytest.mark.slow)
            for name in COMPILED
            for how in ("model", "step too")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_nothing_is_compiled_anew_after_the_second_decision(name, how):
    expected = compiled_run(COMPILED[name], how=None)
    found = compiled_run(COMPILED[name], how=how)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
