"""The contract of `LearnedScheduler`, over all optimizers that it supports."""

import copy
import gc
import inspect
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import KINDS, Job, always, feature, reactive, start
from torch import nn
from torch.optim import SGD, AdamW

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.plugin.updates import restore_found_inf, set_found_inf
from pacesetter.agent.policy.policy import Policy, PolicyFileError, save_policy
from pacesetter.envs.actions import ControlConfig, interval_ends
from pacesetter.envs.features import FEATURES

UNKNOWN = {f.name: -f.centre / f.scale for f in FEATURES}
# Of the kinds, those that differ from another in settings alone.
WAYS = {"AdamW-foreach", "AdamW-amsgrad", "Adam", "Adam-fused", "SGD-nesterov", "SGD-plain"}
# For runs that the guard is to step into, of which every time is a warning.
GUARDED = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")


def idle(**control):
    """A policy that does nothing."""
    return Policy.do_nothing(ControlConfig(**control))


def base_schedule(step, total, num_intervals=40):
    """The schedule of a policy that does nothing, by hand."""
    first = interval_ends(total, num_intervals)[0]  # of even ones: the ramp's length
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / total))
    return (0.01 + 0.99 * min(1.0, step / first)) * decay


@pytest.mark.parametrize("name", KINDS)
def test_doing_nothing_is_a_ramp_and_a_cosine_and_nothing_else(name):
    plain, job = Job(name), Job(name)
    groups = copy.deepcopy(plain.optimizer.param_groups[0])
    _, scheduler = start(20, idle(clip_ratio_start=20.0, num_intervals=10), job=job)
    for step in range(20):
        lr = groups["lr"] * base_schedule(step, 20, 10)
        assert scheduler.get_last_lr() == [pytest.approx(lr, rel=1e-12)]
        plain.optimizer.param_groups[0]["lr"] = job.optimizer.param_groups[0]["lr"]
        plain.update()
        job.update(scheduler)
        assert torch.equal(job.weights(), plain.weights())
    for key in ("betas", "momentum"):
        assert job.optimizer.param_groups[0].get(key) == groups.get(key)
    assert len(scheduler.history) == 9


@pytest.mark.parametrize("name", [n for n in KINDS if n == "AdamW" or "-f" not in n])
def test_a_policy_moves_learning_rate_and_momentum(name):
    job = Job(name)
    group = job.optimizer.param_groups[0]
    start_lr = group["lr"]
    mu = group["betas"][0] if "betas" in group else group["momentum"]
    _, scheduler = start(20, always(-0.25, 1.0, -1.0, num_intervals=10), job=job)
    for step in range(20):
        decisions = step // 2
        one_minus = min((1 - mu) * math.exp(0.15 * decisions), 0.7) if mu else 1.0
        lr = start_lr * base_schedule(step, 20, 10) * math.exp(-0.0875 * decisions)
        if name.startswith(("SGD", "RMSprop")) and mu:
            lr *= one_minus / (1 - mu)
        assert group["lr"] == pytest.approx(lr, rel=1e-9)
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        assert momentum == pytest.approx(1 - one_minus if mu else 0.0, abs=1e-12)
        job.update(scheduler, scale=1e-3)
    last = scheduler.history[-1]
    assert (last.step, last.action) == (18, (-0.25, 1.0, -1.0))
    assert last.momentum == (pytest.approx(1 - one_minus) if mu else None)
    assert feature(last, "adaptive") == (-1.0 if "SGD" in name else 1.0)
    # SGD and RMSprop without momentum have no state to read directions from.
    known = feature(last, "cos_momentum") != pytest.approx(UNKNOWN["cos_momentum"])
    assert known == bool(mu)


@pytest.mark.parametrize("total", [1, 2, 79])
def test_one_fetch_per_decision_at_the_ends_of_intervals(total, monkeypatch):
    job, scheduler = start(total, reactive())
    fetches, monitor = [], scheduler._run.monitor
    fetch = monitor.fetch
    monkeypatch.setattr(monitor, "fetch", lambda **kwargs: fetches.append(1) or fetch(**kwargs))
    job.run(total, scheduler)
    expected = list(interval_ends(total, 40, 1.5)[:-1])
    assert [d.step for d in scheduler.history] == expected
    assert len(fetches) == len(expected) + 1  # the last interval is looked at too


def test_clipping_by_the_running_mean_of_earlier_norms():
    """Norms of zero do not count: a multiple of their mean would stop training for ever."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SGD([weight], lr=1.0)
    policy = idle(clip_ratio_start=2.0, ramp_start=1.0)
    scheduler = LearnedScheduler(optimizer, 1000, policy=policy)
    mean, count = 0.0, 0
    for norm in [0.0, 0.0, 1.0, 1.5, 50.0, 0.0, 2.0, 0.5, 100.0, 1.0]:
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


def test_groups_keep_to_their_own_starts():
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    held, starts = torch.tensor(0.3), [(0.1, 0.9), (0, 0.9), (0.3, 0.5), (0.2, 0.0)]
    groups = [
        {"params": [p], "lr": lr, "momentum": mu}
        for p, (lr, mu) in zip(params, starts, strict=True)
    ]
    groups[2]["lr"] = held
    optimizer = SGD(groups)
    scheduler = LearnedScheduler(optimizer, 40, policy=always(0.2, 1.0, 0.0))
    for step in range(25):
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step(1.0)
        decisions = (step + 1) // 2
        common = base_schedule(step + 1, 40, 20) * math.exp(0.07 * decisions)
        for group, (lr, mu) in zip(optimizer.param_groups, starts, strict=True):
            # Each from its own start, within its own bounds, and lr with its own momentum.
            change = min(0.15 * decisions, math.log(0.7 / (1 - mu)) if mu else 0.0)
            assert float(group["lr"]) == pytest.approx(lr * common * math.exp(change), rel=1e-5)
            expected = 1 - (1 - mu) * math.exp(change)
            assert group["momentum"] == pytest.approx(expected, abs=1e-9)
    assert optimizer.param_groups[2]["lr"] is held
    assert optimizer.param_groups[1]["lr"] == 0
    assert torch.equal(params[1], torch.ones(3))


def test_parameters_without_gradients_frozen_and_of_other_kinds():
    """Gradients of 2, 3 and 6 have together a norm of 7."""
    kinds = {torch.bfloat16: 2.0, torch.float32: 3.0, torch.float64: 6.0, torch.complex64: 0.0}
    trained = [nn.Parameter(torch.ones(1, dtype=kind)) for kind in kinds]
    frozen, unused = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = AdamW([*trained, frozen, unused], lr=1e-2)
    scheduler = LearnedScheduler(optimizer, 20, policy=idle(clip_ratio_start=0.5))
    for _ in range(20):
        for p, grad in zip(trained, kinds.values(), strict=True):
            p.grad = torch.full_like(p, grad)
        optimizer.step()
        scheduler.step(0.0)
    assert scheduler.last_clip_norm == pytest.approx(3.5)
    assert [p.grad.real.item() for p in trained] == pytest.approx([1.0, 1.5, 3.0, 0.0])
    assert all(p.real < 1 for p in trained[:3])
    assert torch.equal(frozen, torch.ones(3))
    assert torch.equal(unused, torch.ones(3))
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def test_repeated_rows_of_a_sparse_gradient_are_added_before_the_norm():
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.5)
    scheduler = LearnedScheduler(optimizer, 20, policy=idle(clip_ratio_start=0.5))
    for _ in range(2):
        optimizer.zero_grad()
        embedding(torch.tensor([1, 1])).sum().backward()
        optimizer.step()
        scheduler.step(0.0)
    assert scheduler.last_clip_norm == pytest.approx(0.5 * math.sqrt(4 * 2**2))
    expected = torch.zeros(5, 4)
    expected[1] = 2 * 0.5
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)
    for _ in range(18):  # to the end, with statistics of directions that are unknown
        optimizer.step()
        scheduler.step(0.0)
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


def test_maximising_the_negative_is_minimising():
    policy = reactive(num_intervals=10)
    down, one = start(20, policy)
    up, two = start(20, policy, job=Job(maximize=True))
    for step in range(20):
        down.update(one)
        up.update(two, scale=-1.0)
        if step % 5 == 0:
            one.observe_validation(step * 0.1)
            two.observe_validation(-step * 0.1)
    for a, b in zip(one.history, two.history, strict=True):
        np.testing.assert_allclose(a.features, b.features, atol=1e-12)
    torch.testing.assert_close(down.weights(), up.weights(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["positional", "keyword"])
def test_closures_see_the_same_as_a_plain_loop(how):
    control = {"clip_ratio_start": 0.7, "clip_ratio_bounds": (0.5, 0.8), "num_intervals": 10}
    (plain, one), (job, two) = (start(20, reactive(**control)) for _ in range(2))

    def closure():
        loss = job.loss()
        job.optimizer.zero_grad()
        loss.backward()
        return loss

    for _ in range(20):
        plain.update(one)
        step = job.optimizer.step
        loss = step(closure) if how == "positional" else step(closure=closure)
        job.done += 1
        two.step(loss)
    assert torch.equal(plain.weights(), job.weights())
    assert list(one.history) == list(two.history)
    assert max(feature(d, "clipped_share") for d in one.history) > 0


@pytest.mark.parametrize(
    "kind",
    [float, np.float32, round, lambda x: torch.tensor([[x]]), lambda x: torch.tensor(x).bfloat16()],
)
def test_losses_of_any_numeric_kind(kind):
    job, scheduler = start(8, reactive())
    for i in range(8):
        job.update()
        scheduler.observe_validation(kind(float(i)))
        scheduler.step(kind(float(i)))
    assert [d.loss for d in scheduler.history] == [0.5, 2.5, 4.5]


def assert_same_state(optimizer, state):
    after = optimizer.state_dict()["state"]
    for index, entries in state.items():
        for key, entry in entries.items():
            if entry is not None:
                torch.testing.assert_close(after[index][key], entry, rtol=0, atol=0)


@GUARDED
@pytest.mark.parametrize(
    ("name", "value"),
    [*((n, math.nan) for n in KINDS if n not in WAYS), ("SGD", math.inf), ("Adam", -math.inf)],
)
def test_broken_gradients_are_skipped_and_counted(name, value):
    job, scheduler = start(100, idle(decision_power=1.0), job=Job(name))
    job.run(5, scheduler)
    before, state = job.weights(), copy.deepcopy(job.optimizer.state_dict()["state"])
    job.optimizer.zero_grad()
    job.loss().backward()
    job.model[0].weight.grad[0, 0] = value
    job.optimizer.step()
    scheduler.step(job.loss())
    assert torch.equal(job.weights(), before)
    assert_same_state(job.optimizer, state)
    assert scheduler.skipped_steps == 1
    job.run(4, scheduler)
    assert not torch.equal(job.weights(), before)
    factors = [d.lr_factor / base_schedule(d.step, 100) for d in scheduler.history]
    assert factors == pytest.approx([1] * 4)
    assert not scheduler.history.interventions


@pytest.mark.parametrize("name", ["AdamW-fused", "SGD-fused"])
def test_fused_kernels_leave_out_an_update_when_told_to(name):
    """The way of a GPU, where the host does not know; CPU kernels obey the same flag."""
    job = Job(name, dtype=torch.float32).run(1)
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
    assert_same_state(job.optimizer, state)
    del job.optimizer.found_inf
    restore_found_inf(job.optimizer)  # nothing was set, nothing to restore
    assert not torch.equal(job.run(1).weights(), before)


numbers = st.one_of(
    st.floats(), st.sampled_from([0.0, 1e30, -1e30, math.nan, math.inf, -math.inf, 1e-300])
)


@GUARDED
@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=4, max_size=20), st.booleans())
def test_no_sequence_of_losses_and_gradients_breaks_a_job(table, momentum):
    name = "SGD" if momentum else "AdamW"
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


def test_arguments_that_are_refused_and_taken():
    optimizer, params = Job().optimizer, [nn.Parameter(torch.zeros(1))]
    for total in (0, -3, 2.0, "100", None, True, np.float64(5), math.nan):
        with pytest.raises(ValueError, match="Expected positive integer total_steps, but got"):
            LearnedScheduler(optimizer, total, policy=idle())
    for other in (torch.optim.Adagrad(params), torch.optim.LBFGS(params), nn.Linear(1, 1), None):
        with pytest.raises(TypeError, match=r"AdamW, Adam, SGD, .* RAdam and sub.* got"):
            LearnedScheduler(other, 10, policy=idle())
    subclass = type("Mine", (AdamW,), {})(params, lr=0.1)
    scheduler = LearnedScheduler(subclass, np.int64(5), policy=idle())
    assert type(scheduler.total_steps) is int
    for method in (scheduler.step, scheduler.observe_validation):
        for shape in ((2, 3), (0,)):
            with pytest.raises(ValueError, match=r"loss must be one number, but got shape \("):
                method(torch.zeros(shape))
        for wrong in (None, "1", [1.0], 1j):
            with pytest.raises(TypeError, match="loss must be a tensor or a number, but got"):
                method(wrong)
    assert not scheduler.history


def test_a_second_scheduler_is_refused_until_the_first_is_off():
    job, first = start(20, always(1.0, 1.0, 1.0))
    job.run(10, first)
    with pytest.raises(ValueError, match=r"has a LearnedScheduler already.*detach"):
        LearnedScheduler(job.optimizer, 50, policy=idle())
    group = job.optimizer.param_groups[0]
    held = group["lr"], group["betas"]
    first.detach()
    first.detach()  # twice does no harm
    assert (group["lr"], group["betas"]) == held
    plain = Job().take_over(job).run(3)
    job.run(3, first)  # no hook, and step() does nothing
    assert torch.equal(plain.weights(), job.weights())
    assert (group["lr"], group["betas"]) == held
    second = LearnedScheduler(job.optimizer, 50, policy=idle())
    assert second.get_last_lr() == [pytest.approx(held[0] * 0.01)]
    job.update(second)


def test_policy_by_path(tmp_path):
    path = save_policy(reactive(), tmp_path / "p.safetensors")
    job = Job()
    for source in (path, str(path)):
        _, scheduler = start(9, source, job=job)
        assert scheduler.policy.digest == reactive().digest
        scheduler.detach()
    path.write_bytes(path.read_bytes()[:-1])
    for broken, error in ((path, PolicyFileError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            start(9, broken, job=job)
    start(9, reactive(), job=job)  # the failures have left nothing behind


def test_one_warning_after_the_horizon_and_the_last_values_hold():
    job, scheduler = start(20, reactive())
    job.run(20, scheduler)
    lr, betas = scheduler.get_last_lr(), job.optimizer.param_groups[0]["betas"]
    assert lr[0] > 0
    with pytest.warns(UserWarning, match="total_steps=20") as caught:
        job.run(5, scheduler)
    assert len(caught) == 1
    assert caught[0].filename == inspect.getfile(Job)  # where step() was called
    assert scheduler.get_last_lr() == lr
    assert job.optimizer.param_groups[0]["betas"] == betas
    assert scheduler.history[-1].step < 20


@GUARDED
def test_steps_without_an_update_or_without_a_gradient():
    job, scheduler = start(20, reactive())
    with pytest.warns(UserWarning, match=r"before optimizer.step\(\)") as caught:
        list(map(scheduler.step, (1.0, 1.0)))
    assert len(caught) == 1
    job.run(17, scheduler)
    before = job.weights()
    job.optimizer.zero_grad()
    job.optimizer.step()
    scheduler.step(1.0)
    assert torch.equal(job.weights(), before)
    assert scheduler.history[-1].step == 19 - 1


def test_a_foreign_scheduler_is_overruled_and_named_once():
    (alone, reference), (job, scheduler) = (start(20, reactive()) for _ in range(2))
    foreign = torch.optim.lr_scheduler.StepLR(job.optimizer, 1, gamma=0.5)
    alone.run(20, reference)
    with pytest.warns(UserWarning, match=r"StepLR changed .* param groups \[0\]") as caught:
        job.run(20, scheduler, after=foreign.step)
    assert len(caught) == 1
    assert torch.equal(alone.weights(), job.weights())
    other, scheduler = start(20, idle())
    other.optimizer.param_groups[0]["betas"] = (0.5, 0.999)
    with pytest.warns(UserWarning, match="something else changed"):
        other.update(scheduler)
    assert other.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_no_reference_cycle_and_hooks_go_with_the_scheduler():
    job, scheduler = start(30, reactive())
    job.update(scheduler)
    copied = copy.deepcopy(job.optimizer)  # possible in spite of the hooks
    assert copied.param_groups[0]["lr"] == job.optimizer.param_groups[0]["lr"]
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


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu_the_same_decisions_are_taken(fused):
    plain, one = start(80, reactive(), job=Job(dtype=torch.float32))
    job = Job(dtype=torch.float32, device="cuda", fused=fused)
    _, two = start(80, reactive(), job=job)
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
    job = Job("AdamW-fused", dtype=torch.float32, device="cuda")
    _, scheduler = start(400, reactive(), job=job)
    job.run(10, scheduler)
    loss = job.loss()
    loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):  # the next decision is the tenth
            job.optimizer.step()
            scheduler.step(loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
