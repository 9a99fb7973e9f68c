"""The contract of `LearnedScheduler`, over all optimizers that it supports."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.plugin.updates import UpdateMonitor, restore_found_inf, set_found_inf
from pacesetter.agent.policy.policy import Policy, PolicyFileError, save_policy
from pacesetter.envs.actions import ControlConfig, interval_ends
from pacesetter.envs.features import FEATURE_NAMES, FEATURES, NUM_FEATURES
from pacesetter.inner_models.watch.guard import LR_CUT

KINDS = {
    "AdamW": (AdamW, {"lr": 1e-2}),
    "AdamW-fused": (AdamW, {"lr": 1e-2, "fused": True}),
    "AdamW-foreach": (AdamW, {"lr": 1e-2, "foreach": True}),
    "AdamW-amsgrad": (AdamW, {"lr": 1e-2, "amsgrad": True}),
    "Adam": (Adam, {"lr": 1e-2, "weight_decay": 1e-3}),
    "SGD": (SGD, {"lr": 1e-2, "momentum": 0.9}),
    "SGD-nesterov": (SGD, {"lr": 1e-2, "momentum": 0.8, "nesterov": True}),
    "SGD-plain": (SGD, {"lr": 1e-1}),
    "SGD-fused": (SGD, {"lr": 1e-2, "momentum": 0.9, "fused": True}),
    "RMSprop": (RMSprop, {"lr": 1e-3, "momentum": 0.9}),
    "RMSprop-plain": (RMSprop, {"lr": 1e-3}),
    "NAdam": (NAdam, {"lr": 1e-2}),
    "RAdam": (RAdam, {"lr": 1e-2}),
}
FEATURE = {feature.name: feature for feature in FEATURES}
every_optimizer = pytest.mark.parametrize("name", KINDS)


def always(*action, **control):
    """The policy that answers the same to everything."""
    layer = (np.zeros((3, NUM_FEATURES)), np.array(action, dtype=float))
    return Policy([layer], control=ControlConfig(**control))


def reactive(seed=0, **control):
    rng = np.random.default_rng(seed)
    shapes = [(8, NUM_FEATURES), (3, 8)]
    layers = [(0.15 * rng.normal(size=s), 0.15 * rng.normal(size=s[0])) for s in shapes]
    return Policy(layers, control=ControlConfig(**control))


GUARDED = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")
"""For runs that the guard is to step into, of which every time is a warning."""


def evenly(**changes):
    """A policy that does nothing, with even intervals."""
    return Policy.do_nothing(ControlConfig(decision_power=1.0, **changes))


class Job:
    """A small regression in a plain loop; `model` and `optimizer` may be replaced."""

    def __init__(self, name="AdamW", dtype=torch.float64, **kwargs):
        g = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 4, generator=g).to(dtype)
        self.targets = self.inputs.sin().sum(1, keepdim=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        kind, options = KINDS[name]
        self.optimizer = kind(self.model.parameters(), **options, **kwargs)
        self.done = 0

    def loss(self):
        rows = [(7 * self.done + i) % 64 for i in range(8)]
        return (self.model(self.inputs[rows]) - self.targets[rows]).square().mean()

    def update(self, scheduler=None, *, scale=1.0):
        loss = self.loss() * scale
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        if scheduler is not None:
            scheduler.step(loss)
        return loss.item()

    def updates(self, count, scheduler=None, *, after=lambda: None):
        for _ in range(count):
            self.update(scheduler)
            after()

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def base_schedule(step, total, num_intervals=40, final=0.01, ramp=0.01):
    """The schedule of a policy that does nothing, by hand."""
    first = interval_ends(total, num_intervals)[0]  # of even ones: the ramp's length
    decay = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * step / total))
    return (ramp + (1 - ramp) * min(1.0, step / first)) * decay


@every_optimizer
def test_doing_nothing_is_a_ramp_and_a_cosine_and_nothing_else(name):
    total, plain, job = 90, Job(name), Job(name)
    never_clip = ControlConfig(clip_ratio_start=20.0)
    scheduler = LearnedScheduler(job.optimizer, total, policy=Policy.do_nothing(never_clip))
    groups = copy.deepcopy(plain.optimizer.param_groups[0])
    for step in range(total):
        factor = base_schedule(step, total)
        assert scheduler.get_last_lr() == [pytest.approx(groups["lr"] * factor, rel=1e-12)]
        plain.optimizer.param_groups[0]["lr"] = job.optimizer.param_groups[0]["lr"]
        plain.update()
        job.update(scheduler)
        torch.testing.assert_close(job.weights(), plain.weights(), rtol=0, atol=0)
    for key in ("betas", "momentum"):
        assert job.optimizer.param_groups[0].get(key) == groups.get(key)
    assert len(scheduler.history) == 39


@every_optimizer
def test_a_policy_moves_learning_rate_and_momentum(name):
    job = Job(name)
    group = job.optimizer.param_groups[0]
    start_lr = group["lr"]
    start = group["betas"][0] if "betas" in group else group["momentum"]
    scheduler = LearnedScheduler(job.optimizer, 80, policy=always(-0.25, 1.0, -1.0))
    for step in range(80):
        decisions = step // 2
        one_minus = min((1 - start) * math.exp(0.15 * decisions), 0.7) if start else 1.0
        lr = start_lr * base_schedule(step, 80) * math.exp(-0.0875 * decisions)
        if name.startswith(("SGD", "RMSprop")) and start:
            lr *= one_minus / (1 - start)
        assert group["lr"] == pytest.approx(lr, rel=1e-9)
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        assert momentum == pytest.approx(1 - one_minus if start else 0.0, abs=1e-12)
        job.update(scheduler, scale=1e-3)
    last = scheduler.history[-1]
    assert last.step == 78
    assert last.action == (-0.25, 1.0, -1.0)
    assert last.momentum == (pytest.approx(0.3) if start else None)
    assert last.features[FEATURE_NAMES.index("adaptive")] == (-1.0 if "SGD" in name else 1.0)
    unknown = -FEATURE["cos_momentum"].centre / FEATURE["cos_momentum"].scale
    known = last.features[FEATURE_NAMES.index("cos_momentum")] != pytest.approx(unknown)
    # SGD and RMSprop without momentum have no state to read directions from.
    assert known == bool(start)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop"])
def test_learning_goes_on(name):
    job = Job(name)
    scheduler = LearnedScheduler(job.optimizer, 200, policy=reactive())
    losses = [job.update(scheduler) for _ in range(200)]
    assert np.mean(losses[-40:]) < 0.7 * np.mean(losses[:10])
    assert torch.isfinite(job.weights()).all()


@pytest.mark.parametrize("total", [1, 2, 5, 79, 80, 100])
def test_one_fetch_per_decision_at_the_ends_of_intervals(total, monkeypatch):
    fetches = []
    fetch = UpdateMonitor.fetch
    monkeypatch.setattr(
        UpdateMonitor, "fetch", lambda self, **kwargs: fetches.append(1) or fetch(self, **kwargs)
    )
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, total, policy=reactive())
    job.updates(total, scheduler)
    expected = list(interval_ends(total, 40, 1.5)[:-1])
    assert [d.step for d in scheduler.history] == expected
    assert len(fetches) == len(expected) + 1  # the last interval is looked at too


def test_clipping_by_the_running_mean_of_earlier_norms():
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SGD([weight], lr=1.0)
    control = ControlConfig(clip_ratio_start=2.0, ramp_start=1.0)
    scheduler = LearnedScheduler(optimizer, 1000, policy=Policy.do_nothing(control))
    mean, count = 0.0, 0
    for norm in [1.0, 1.5, 50.0, 0.0, 2.0, 0.5, 100.0, 1.0]:
        threshold = 2 * mean if count else math.inf
        before, lr = weight.detach().clone(), scheduler.get_last_lr()[0]
        weight.grad = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
        optimizer.step()
        moved = (weight - before).norm().item() / lr
        assert moved == pytest.approx(min(norm, threshold), abs=1e-12)
        assert scheduler.last_clip_norm == pytest.approx(threshold)
        scheduler.step(0.0)
        if norm:
            counted = min(norm, 5 * mean) if count else norm
            mean += (counted - mean) / (count + 1)
            count += 1


def test_gradients_of_zero_at_the_start_do_not_stop_training():
    """A threshold that is a multiple of a mean of zeros would clip everything to zero for ever."""
    job = Job("SGD")
    scheduler = LearnedScheduler(job.optimizer, 100, policy=Policy.do_nothing())
    job.update(scheduler, scale=0.0)
    job.update(scheduler, scale=0.0)
    before = job.weights()
    job.update(scheduler)
    assert not torch.equal(job.weights(), before)
    assert scheduler.last_clip_norm == math.inf


def test_groups_keep_to_their_own_starts():
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    held = torch.tensor(0.3)
    groups = [
        {"params": [params[0]], "lr": 0.1},
        {"params": [params[1]], "lr": 0.0},
        {"params": [params[2]], "lr": held, "momentum": 0.5},
        {"params": [params[3]], "lr": 0.2, "momentum": 0.0},
    ]
    optimizer = SGD(groups, lr=1.0, momentum=0.9)
    scheduler = LearnedScheduler(optimizer, 80, policy=always(0.2, 1.0, 0.0))
    for step in range(60):
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step(1.0)
        decisions = (step + 1) // 2
        common = base_schedule(step + 1, 80) * math.exp(0.07 * decisions)
        for group, lr, mu in zip(
            optimizer.param_groups, (0.1, 0, 0.3, 0.2), (0.9, 0.9, 0.5, 0), strict=True
        ):
            # Each from its own start, within its own bounds, and lr with its own momentum.
            change = min(0.15 * min(decisions, 13), math.log(0.7 / (1 - mu)) if mu else 0.0)
            if decisions < 13:
                assert float(group["lr"]) == pytest.approx(lr * common * math.exp(change), rel=1e-5)
                expected = 1 - (1 - mu) * math.exp(change)
                assert group["momentum"] == pytest.approx(expected, abs=1e-9)
    assert optimizer.param_groups[2]["lr"] is held
    assert optimizer.param_groups[1]["lr"] == 0
    assert torch.equal(params[1], torch.ones(3))


def test_group_that_joins_later_starts_from_its_own_learning_rate():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 100, policy=Policy.do_nothing())
    job.updates(30, scheduler)
    late = nn.Parameter(torch.ones(2, dtype=torch.float64))
    job.optimizer.add_param_group({"params": [late], "lr": 0.5})
    for step in range(30, 40):
        late.grad = torch.ones_like(late)
        job.update(scheduler)
        lr = 0.5 * base_schedule(step + 1, 100)
        assert scheduler.get_last_lr()[1] == pytest.approx(lr, rel=1e-12)


def test_groups_that_share_one_tensor_for_their_learning_rate():
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    shared = torch.tensor(0.5)
    groups = [{"params": [p]} for p in params[:2]]
    optimizer = AdamW(groups, lr=shared, foreach=False)
    scheduler = LearnedScheduler(optimizer, 100, policy=Policy.do_nothing())
    for step in range(20):
        if step == 10:
            optimizer.add_param_group({"params": [params[2]]})
        for p in params:
            p.grad = torch.ones(2)
        optimizer.step()
        scheduler.step(1.0)
        assert float(shared) == pytest.approx(0.5 * base_schedule(step + 1, 100))
    assert scheduler.get_last_lr() == [float(shared)] * 3


def test_parameters_without_gradients_frozen_and_of_other_kinds():
    kinds = (torch.bfloat16, torch.float32, torch.float64, torch.complex64)
    trained = [nn.Parameter(torch.ones(3, dtype=kind)) for kind in kinds]
    frozen, unused = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = AdamW([*trained, frozen, unused], lr=1e-2)
    scheduler = LearnedScheduler(optimizer, 50, policy=reactive())
    losses = []
    for _ in range(50):
        loss = sum(p.abs().double().square().sum() for p in trained)
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad(set_to_none=False)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(unused, torch.ones(3))
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def test_norm_is_that_of_all_gradients_together():
    params = [
        nn.Parameter(torch.zeros(1, dtype=d))
        for d in (torch.bfloat16, torch.float32, torch.float64)
    ]
    optimizer = SGD(params, lr=1.0)
    policy = Policy.do_nothing(ControlConfig(clip_ratio_start=0.5))
    scheduler = LearnedScheduler(optimizer, 100, policy=policy)
    for _ in range(2):
        for p, g in zip(params, (2.0, 3.0, 6.0), strict=True):
            p.grad = torch.full_like(p, g)
        optimizer.step()
        scheduler.step(0.0)
    assert scheduler.last_clip_norm == pytest.approx(3.5)
    assert [p.grad.item() for p in params] == pytest.approx([1.0, 1.5, 3.0])


def test_repeated_rows_of_a_sparse_gradient_are_added_before_the_norm():
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.5)
    policy = Policy.do_nothing(ControlConfig(clip_ratio_start=0.5))
    scheduler = LearnedScheduler(optimizer, 50, policy=policy)
    for _ in range(2):
        optimizer.zero_grad()
        embedding(torch.tensor([1, 1])).sum().backward()
        optimizer.step()
        scheduler.step(0.0)
    assert scheduler.last_clip_norm == pytest.approx(0.5 * math.sqrt(4 * 2**2))
    expected = torch.zeros(5, 4)
    expected[1] = 2 * 0.5
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)
    for _ in range(48):  # to the end, with statistics of directions that are unknown
        optimizer.step()
        scheduler.step(0.0)
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def test_maximising_the_negative_is_minimising():
    down, up = Job(), Job(maximize=True)
    one = LearnedScheduler(down.optimizer, 80, policy=reactive())
    two = LearnedScheduler(up.optimizer, 80, policy=reactive())
    for step in range(80):
        down.update(one)
        up.update(two, scale=-1.0)
        if step % 10 == 0:
            one.observe_validation(step * 0.1)
            two.observe_validation(-step * 0.1)
    for a, b in zip(one.history, two.history, strict=True):
        np.testing.assert_allclose(a.features, b.features, atol=1e-12)
    torch.testing.assert_close(down.weights(), up.weights(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_closures_see_the_same_as_a_plain_loop(how):
    plain, job = Job(), Job()
    control = {"clip_ratio_start": 0.7, "clip_ratio_bounds": (0.5, 0.8)}
    one = LearnedScheduler(plain.optimizer, 60, policy=reactive(**control))
    two = LearnedScheduler(job.optimizer, 60, policy=reactive(**control))
    for _ in range(60):
        plain.update(one)

        def closure():
            loss = job.loss()
            job.optimizer.zero_grad()
            loss.backward()
            return loss

        if how == "positional":
            loss = job.optimizer.step(closure)
        else:
            loss = job.optimizer.step(closure=closure)
        job.done += 1
        two.step(loss)
    assert torch.equal(plain.weights(), job.weights())
    assert list(one.history) == list(two.history)
    assert max(d.features[FEATURE_NAMES.index("clipped_share")] for d in one.history) > 0


def test_gradients_may_be_accumulated_and_cleared_anywhere():
    one, two = Job(), Job()
    a = LearnedScheduler(one.optimizer, 40, policy=reactive())
    b = LearnedScheduler(two.optimizer, 40, policy=reactive())
    for _ in range(40):
        one.update(a)
        (two.loss() / 2).backward()
        loss = two.loss()
        (loss / 2).backward()
        two.optimizer.step()
        two.optimizer.zero_grad(set_to_none=False)
        two.done += 1
        b.step(loss)
    torch.testing.assert_close(one.weights(), two.weights(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "kind",
    [
        *(float, np.float32, np.float64, round, torch.tensor),
        lambda x: torch.tensor([[x]]),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: nn.Parameter(torch.tensor(x)),
    ],
)
def test_losses_of_any_numeric_kind(kind):
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 8, policy=reactive())
    for i in range(8):
        job.update()
        scheduler.observe_validation(kind(float(i)))
        scheduler.step(kind(float(i)))
    assert [d.loss for d in scheduler.history] == [0.5, 2.5, 4.5]


@GUARDED
@pytest.mark.parametrize(
    ("name", "value"),
    [*((n, math.nan) for n in KINDS), ("SGD", math.inf), ("Adam", -math.inf)],
)
def test_broken_gradients_are_skipped_counted_and_answered(name, value):
    job = Job(name)
    scheduler = LearnedScheduler(job.optimizer, 100, policy=evenly())
    job.updates(5, scheduler)
    before, state = job.weights(), copy.deepcopy(job.optimizer.state_dict()["state"])
    job.optimizer.zero_grad()
    job.loss().backward()
    job.model[0].weight.grad[0, 0] = value
    job.optimizer.step()
    scheduler.step(job.loss())
    after = job.optimizer.state_dict()["state"]
    assert torch.equal(job.weights(), before)
    for index, entries in state.items():
        for key, entry in entries.items():
            if entry is not None:
                torch.testing.assert_close(after[index][key], entry, rtol=0, atol=0)
    assert scheduler.skipped_steps == 1
    while job.done < 9:
        job.update(scheduler)
    assert not torch.equal(job.weights(), before)
    factors = [d.lr_factor / base_schedule(d.step, 100) for d in scheduler.history]
    # Interval ends lie at 2, 5, 7 and 10; the broken update is the sixth.
    assert factors == pytest.approx([1, 1, math.exp(-LR_CUT), math.exp(-LR_CUT)])
    (record,) = scheduler.history.interventions
    assert (record.step, record.kind) == (7, "lr_cut")
    assert "1 of 2 steps were not finite" in record.detail
    assert scheduler.skipped_steps == 1


@GUARDED
def test_a_broken_loss_is_answered_and_raises_nothing():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 100, policy=evenly())
    for _ in range(5):
        job.update()
        scheduler.step(math.nan)
        scheduler.observe_validation(math.inf)
    assert scheduler.skipped_steps == 0
    factors = [d.lr_factor / base_schedule(d.step, 100) for d in scheduler.history]
    assert factors == pytest.approx([0.5, 0.05])
    assert [i.kind for i in scheduler.history.interventions] == ["lr_cut", "rollback"]
    assert math.isnan(scheduler.history[-1].loss)
    assert np.isfinite(scheduler.history[-1].features).all()


@pytest.mark.parametrize("name", ["AdamW-fused", "SGD-fused"])
def test_fused_kernels_leave_out_an_update_when_told_to(name):
    """The way of a GPU, where the host does not know; CPU kernels obey the same flag."""
    job = Job(name, dtype=torch.float32)
    job.update()
    before, state = job.weights(), copy.deepcopy(job.optimizer.state_dict()["state"])
    for own in (None, torch.tensor(0.0)):
        if own is not None:
            job.optimizer.found_inf = own
        job.loss().backward()
        job.model[0].weight.grad.fill_(math.nan)
        set_found_inf(job.optimizer, torch.tensor(True))
        job.optimizer.step()
        restore_found_inf(job.optimizer)
        assert getattr(job.optimizer, "found_inf", None) is own
        job.optimizer.zero_grad()
    assert torch.equal(job.weights(), before)
    after = job.optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][k], v) for i, s in state.items() for k, v in s.items())
    del job.optimizer.found_inf
    restore_found_inf(job.optimizer)  # nothing was set, nothing to restore
    job.update()
    assert not torch.equal(job.weights(), before)


numbers = st.one_of(
    st.floats(), st.sampled_from([0.0, 1e30, -1e30, math.nan, math.inf, -math.inf, 1e-300])
)


@GUARDED
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=4, max_size=30))
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_no_sequence_of_losses_and_gradients_breaks_a_job(name, table):
    weight = nn.Parameter(torch.ones(3))
    optimizer = KINDS[name][0]([weight], lr=1e-2)
    scheduler = LearnedScheduler(optimizer, len(table), policy=reactive())
    for loss, grad, valid in table:
        weight.grad = torch.tensor([grad, 1.0, 0.0])
        optimizer.step()
        scheduler.observe_validation(valid)
        scheduler.step(loss)
    assert torch.isfinite(weight).all() or abs(max(g for _, g, _ in table)) > 1e30
    assert all(np.isfinite(d.features).all() for d in scheduler.history)
    assert all(math.isfinite(d.lr) and d.lr > 0 for d in scheduler.history)


def test_total_steps_must_be_a_positive_integer_of_any_type():
    optimizer = Job().optimizer
    for total in (0, -3, 2.0, "100", None, True, np.float64(5), math.nan):
        with pytest.raises(ValueError, match="Expected positive integer total_steps, but got"):
            LearnedScheduler(optimizer, total, policy=Policy.do_nothing())
    scheduler = LearnedScheduler(optimizer, np.int64(5), policy=Policy.do_nothing())
    assert type(scheduler.total_steps) is int


def test_losses_that_are_no_number():
    scheduler = LearnedScheduler(Job().optimizer, 5, policy=Policy.do_nothing())
    for method in (scheduler.step, scheduler.observe_validation):
        with pytest.raises(ValueError, match=r"loss must be one number, but got shape \(2, 3\)"):
            method(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"but got shape \(0,\)"):
            method(torch.zeros(0))
        for wrong in (None, "1", [1.0], 1j):
            with pytest.raises(TypeError, match="loss must be a tensor or a number, but got"):
                method(wrong)
    assert not scheduler.history


def test_other_optimizers_are_refused_with_the_list():
    params = [nn.Parameter(torch.zeros(1))]
    for other in (torch.optim.Adagrad(params), torch.optim.LBFGS(params), nn.Linear(1, 1), None):
        with pytest.raises(TypeError, match=r"AdamW, Adam, SGD, .* RAdam and sub.* got"):
            LearnedScheduler(other, 10, policy=Policy.do_nothing())


def test_subclasses_are_taken():
    optimizer = type("Mine", (AdamW,), {})([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert LearnedScheduler(optimizer, 10, policy=Policy.do_nothing()).get_last_lr()


def test_a_second_scheduler_is_refused_until_the_first_is_off():
    job = Job()
    first = LearnedScheduler(job.optimizer, 50, policy=always(1.0, 1.0, 1.0))
    job.updates(10, first)
    with pytest.raises(ValueError, match=r"has a LearnedScheduler already.*detach"):
        LearnedScheduler(job.optimizer, 50, policy=Policy.do_nothing())
    group = job.optimizer.param_groups[0]
    held = group["lr"], group["betas"]
    first.detach()
    first.detach()  # twice does no harm
    assert (group["lr"], group["betas"]) == held
    plain = Job()
    plain.model.load_state_dict(job.model.state_dict())
    plain.optimizer.load_state_dict(copy.deepcopy(job.optimizer.state_dict()))
    plain.done = job.done
    for _ in range(3):
        plain.update()
        job.update(first)  # no hook, and step() does nothing
    assert torch.equal(plain.weights(), job.weights())
    assert (group["lr"], group["betas"]) == held
    second = LearnedScheduler(job.optimizer, 50, policy=Policy.do_nothing())
    assert second.get_last_lr() == [pytest.approx(held[0] * 0.01)]
    job.update(second)


def test_policy_by_path(tmp_path):
    path = save_policy(reactive(), tmp_path / "p.safetensors")
    for source in (path, str(path)):
        scheduler = LearnedScheduler(Job().optimizer, 9, policy=source)
        assert scheduler.policy.digest == reactive().digest
    path.write_bytes(path.read_bytes()[:-1])
    optimizer = Job().optimizer
    for broken, error in ((path, PolicyFileError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            LearnedScheduler(optimizer, 9, policy=broken)
    LearnedScheduler(optimizer, 9, policy=reactive())  # the failures have left nothing behind


def test_one_warning_after_the_horizon_and_the_last_values_hold():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 20, policy=reactive())
    job.updates(20, scheduler)
    lr, betas = scheduler.get_last_lr(), job.optimizer.param_groups[0]["betas"]
    assert lr[0] > 0
    with pytest.warns(UserWarning, match="total_steps=20") as caught:
        job.updates(5, scheduler)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert scheduler.get_last_lr() == lr
    assert job.optimizer.param_groups[0]["betas"] == betas
    assert scheduler.history[-1].step < 20


def test_step_before_the_optimizer_is_warned_about():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 20, policy=reactive())
    with pytest.warns(UserWarning, match=r"before optimizer.step\(\)"):
        scheduler.step(1.0)
    job.updates(19, scheduler)
    assert scheduler.history[-1].step == 19 - 1


def test_updates_without_any_gradient_are_left_alone():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 20, policy=reactive())
    job.update(scheduler)
    before = job.weights()
    job.optimizer.zero_grad()
    job.optimizer.step()
    scheduler.step(1.0)
    assert torch.equal(job.weights(), before)


def test_a_foreign_scheduler_is_overruled_and_named_once():
    alone, job = Job(), Job()
    reference = LearnedScheduler(alone.optimizer, 30, policy=reactive())
    foreign = torch.optim.lr_scheduler.StepLR(job.optimizer, 1, gamma=0.5)
    scheduler = LearnedScheduler(job.optimizer, 30, policy=reactive())
    alone.updates(30, reference)
    with pytest.warns(UserWarning, match=r"StepLR changed .* param groups \[0\]") as caught:
        job.updates(30, scheduler, after=foreign.step)
    assert len(caught) == 1
    assert torch.equal(alone.weights(), job.weights())
    other = Job()
    scheduler = LearnedScheduler(other.optimizer, 30, policy=Policy.do_nothing())
    other.optimizer.param_groups[0]["betas"] = (0.5, 0.999)
    with pytest.warns(UserWarning, match="something else changed"):
        other.update(scheduler)
    assert other.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_no_reference_cycle_and_hooks_go_with_the_scheduler():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 30, policy=reactive())
    job.update(scheduler)
    gone = weakref.ref(scheduler)
    gc.collect()
    gc.disable()
    try:
        del scheduler
        assert gone() is None
    finally:
        gc.enable()
    assert not job.optimizer._optimizer_step_pre_hooks
    assert not job.optimizer._optimizer_step_post_hooks
    LearnedScheduler(job.optimizer, 30, policy=reactive())


def test_an_optimizer_with_a_scheduler_can_be_copied():
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 30, policy=reactive())
    job.update(scheduler)
    copied = copy.deepcopy(job.optimizer)
    assert copied.param_groups[0]["lr"] == job.optimizer.param_groups[0]["lr"]


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu_the_same_decisions_are_taken(fused):
    plain, job = Job(dtype=torch.float32), Job(dtype=torch.float32)
    job.inputs, job.targets = job.inputs.cuda(), job.targets.cuda()
    job.model.cuda()
    job.optimizer = AdamW(job.model.parameters(), lr=1e-2, fused=fused)
    one = LearnedScheduler(plain.optimizer, 80, policy=reactive())
    two = LearnedScheduler(job.optimizer, 80, policy=reactive())
    for step in range(80):
        for j, s in ((plain, one), (job, two)):
            j.update(s, scale=math.nan if step == 41 else 1.0)
    assert one.skipped_steps == two.skipped_steps == 1
    for a, b in zip(one.history, two.history, strict=True):
        np.testing.assert_allclose(a.features, b.features, atol=1e-3)
    torch.testing.assert_close(plain.weights(), job.weights().cpu(), rtol=1e-3, atol=1e-4)
    assert not hasattr(job.optimizer, "found_inf")


@pytest.mark.gpu
def test_on_a_gpu_only_decisions_wait():
    job = Job(dtype=torch.float32)
    job.inputs, job.targets = job.inputs.cuda(), job.targets.cuda()
    job.model.cuda()
    job.optimizer = AdamW(job.model.parameters(), lr=1e-2, fused=True)
    scheduler = LearnedScheduler(job.optimizer, 400, policy=reactive())
    job.updates(10, scheduler)
    loss = job.loss()
    loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):  # the next decision is the tenth
            job.optimizer.step()
            scheduler.step(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
