"""What a user may choose of the plug-in: each choice, alone and in the ways people combine them."""

import copy
import math
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jobs
import numpy as np
import pytest
import torch
from jobs import always, feature, reactive, start, through_a_file
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, SequentialLR

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.training.meter import fit_familiarity
from pacesetter.envs.actions import interval_ends
from pacesetter.envs.features import NUM_FEATURES

GUARDED = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")
gentle = partial(reactive, size=0.05)
Job = partial(jobs.Job, norm=True, dtype=torch.float32)


def same(one, two):
    states = [torch.cat([t.flatten() for t in j.model.state_dict().values()]) for j in (one, two)]
    return torch.equal(*states)


def whole_loss(job):
    """Over all data, by the statistics of one batch of 64."""
    model = copy.deepcopy(job.model)
    return (model(job.inputs) - job.targets).square().mean().item()


def wreck(job):
    with torch.no_grad():
        for p in job.model.parameters():
            p.mul_(1e4)


def test_a_warm_up_of_the_users_own_is_left_alone_and_its_end_is_the_start():
    policy = always(0, 1, -1, clip_ratio_start=0.5)
    job, scheduler = start(50, policy, job=Job(lr=0.1), warmup_steps=10)
    plain = Job(lr=0.1)
    warm_ups = [LinearLR(j.optimizer, 0.1, total_iters=10) for j in (plain, job)]
    plain.run(10, after=warm_ups[0].step)
    job.run(5, scheduler, after=warm_ups[1].step)
    scheduler.observe_validation(5.0)
    job.run(5, scheduler, after=warm_ups[1].step)
    assert same(job, plain)
    assert job.lrs == pytest.approx([0.01 + 0.009 * i for i in range(10)])
    assert not scheduler.history
    job.run(40, scheduler)
    for step, lr in enumerate(job.lrs[10:]):
        # No second ramp: the schedule begins at its full rate.
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * step / 40)) / 2
        assert lr == pytest.approx(0.1 * decay)
    assert [d.step for d in scheduler.history] == [10 + e for e in interval_ends(40, 40, 1.5)[:-1]]
    assert scheduler.total_steps == 50
    assert job.optimizer.param_groups[0]["betas"][0] < 0.9
    first = scheduler.history[0]
    assert first.valid_loss == 5.0  # from the warm-up
    assert feature(first, "valid_known") == 1.0


REFUSED = {
    "Expected integer warmup_steps of zero or more": ("warmup_steps", -1, 1.5, "2", None, True),
    "warmup_steps must be below total_steps=10": ("warmup_steps", 10),
    r"control must be some of \('lr', 'momentum', 'clip'\)": (
        *("control", (), ("rate",), "momentums", ("lr", 3)),
    ),
    "lr_bounds must be two learning rates": (
        *("lr_bounds", (0.1,), (0.1, 0.01), (0, 1), (1e-3, math.inf), "ab", 3, (math.nan, 1)),
    ),
    "Expected positive integer patience": ("patience", 0, -1, 2.5, "3", True),
    r"torch.nn.Module whose buffers .* got list": ("model", [1]),
    r"on_decision\(decision\), but got int": ("callbacks", [3]),
}


def test_choices_out_of_range_are_refused():
    optimizer = Job().optimizer
    for message, (name, *values) in REFUSED.items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=message):
                LearnedScheduler(optimizer, 10, **{name: value})


@pytest.mark.filterwarnings("ignore:.*LearnedScheduler sets")
def test_composed_schedulers_are_refused_with_the_recipe():
    job, scheduler = start(50, Policy.do_nothing())
    warm_up = LinearLR(job.optimizer, total_iters=5)
    with pytest.raises(TypeError, match="warmup_steps=N"):
        SequentialLR(job.optimizer, [warm_up, scheduler], milestones=[5])
    chained = ChainedScheduler([warm_up, scheduler])
    job.run(1)
    with pytest.raises(TypeError, match="warmup_steps=N"):
        chained.step()
    with pytest.raises(TypeError, match=r"step\(loss\)"):
        scheduler.step()


@pytest.mark.parametrize("control", [("lr",), ("momentum", "clip"), "lr", ["clip", "lr"]], ids=str)
def test_what_is_not_controlled_is_the_users_own(control):
    policy = always(-0.5, 0.8, -1.0, clip_ratio_start=0.5)
    job, scheduler = start(40, policy, job=Job(), control=control)
    own = None if "lr" in control else LambdaLR(job.optimizer, lambda step: 1 / (1 + step))
    for step in range(40):
        job.run(1, scheduler, after=own.step if own else lambda: None)
        group = job.optimizer.param_groups[0]
        assert own is None or group["lr"] == pytest.approx(0.01 / (2 + step))
        assert "momentum" in control or group["betas"] == (0.9, 0.999)
        assert math.isfinite(scheduler.last_clip_norm) == ("clip" in control and step > 0)
    last = scheduler.history[-1]
    assert scheduler.get_last_lr() == own.get_last_lr() if own else group["lr"] < 1e-4
    assert (group["betas"][0] < 0.8) == ("momentum" in control)
    assert math.isfinite(last.clip_threshold) == ("clip" in control)
    pairs = zip((-0.5, 0.8, -1), ("lr", "momentum", "clip"), strict=True)
    assert last.action == pytest.approx([a * (name in control) for a, name in pairs])


@pytest.mark.parametrize("push", [1.0, -1.0])
def test_every_group_keeps_to_the_bounds_and_zero_stays_zero(push):
    job = Job("SGD-plain", groups=[{"lr": 0.005}, {"lr": 0.0}, {"lr": 0.02}])
    options = {"lr_bounds": (0.004, 0.03), "rollback": False}
    _, scheduler = start(40, always(push, 0, 0), job=job, **options)
    seen = set()
    for _ in range(40):
        job.run(1, scheduler)
        low, zero, high = (g["lr"] for g in job.optimizer.param_groups)
        assert zero == 0
        assert 0.004 <= low <= high <= 0.03
        seen.add((low, high))
    assert len(seen) > 1


def test_a_start_outside_the_bounds_is_refused_and_leaves_no_hooks():
    job = Job(lr=0.5)
    with pytest.raises(ValueError, match=r"param group 0 starts at a learning rate of 0.5"):
        LearnedScheduler(job.optimizer, 10, lr_bounds=(1e-4, 0.1))
    LearnedScheduler(job.optimizer, 10)


@pytest.mark.parametrize(
    ("name", "control", "rollback"),
    [
        ("SGD-plain", "lr", True),
        ("AdamW", ("lr", "momentum", "clip"), True),
        ("SGD-plain", "clip", True),
        ("SGD-plain", "lr", False),
    ],
)
def test_a_job_that_is_wrecked_in_the_middle(name, control, rollback):
    options = {"control": control, "rollback": rollback}
    job, scheduler = start(200, Policy.do_nothing(), job=Job(name, lr=0.05), **options)
    job.run(100, scheduler)
    wreck(job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job.run(100, scheduler)
    made = scheduler.history.interventions
    # Each intervention is one warning, with the step in it.
    assert [str(w.message) for w in caught] == [f"LearnedScheduler: {i}" for i in made]
    assert max(job.losses) > 1e3
    told = {i.kind: i.detail for i in made}
    assert [i.kind for i in made][:2] == ["lr_cut", "rollback"] or not rollback
    for detail in (told["lr_cut"], *([told["rollback"]] if rollback else [])):
        assert ("the learning rate is divided by" in detail) == ("lr" in control)
        assert ("the learning rate stays, as it is not under" in detail) == ("lr" not in control)
    assert (set(job.lrs) == {0.05}) == ("lr" not in control)
    assert (scheduler.rollback_bytes > 0) == rollback
    if not rollback:  # weights are never put back
        assert told.keys() <= {"lr_cut", "handover"}
        assert max(p.abs().max() for p in job.model.parameters()) > 1e2
    elif "lr" in control:
        assert np.mean(job.losses[-10:]) < 0.3 * np.mean(job.losses[:5])


def test_rollback_is_on_below_256_megabytes_only():
    with torch.device("meta"):
        small, large = nn.Linear(1000, 4000), nn.Linear(3000, 4000)
    for model, expected in ((small, True), (large, False)):
        for rollback in (None, True, False):
            scheduler = LearnedScheduler(AdamW(model.parameters()), 10, rollback=rollback)
            told = scheduler.rollback_bytes
            wanted = expected if rollback is None else rollback
            # Twice the weights and two moments in float32.
            assert told == (24 * sum(p.numel() for p in model.parameters()) if wanted else 0)


@GUARDED
@pytest.mark.parametrize(("name", "lr"), [("AdamW", 1e-2), ("SGD-plain", 5e-2)])
@pytest.mark.parametrize(
    ("total", "factor"),
    [(100, 1000)]
    + [pytest.param(1000, factor, marks=pytest.mark.slow) for factor in (10, 1000, 0.01)],
)
def test_a_start_that_is_far_off_ends_better_than_it_began(name, lr, factor, total):
    for rollback in (None, False):
        job = Job(name, lr=lr * factor)
        _, scheduler = start(total, "default", job=job, model=job.model, rollback=rollback)
        before = whole_loss(job)
        job.run(total, scheduler)
        assert job.weights().isfinite().all()
        assert rollback is False or whole_loss(job) < before


@GUARDED
@pytest.mark.parametrize("name", ["AdamW", "SGD-plain"])
def test_a_dry_run_changes_nothing_and_tells_what_it_would_do(name):
    plain, job = Job(name, lr=1e-2), Job(name, lr=1e-2)
    policy = always(-1, 0.5, -1, clip_ratio_start=0.5)
    _, scheduler = start(40, policy, job=job, dry_run=True)
    for i in range(4):
        if i == 3:  # nothing is skipped or put back either
            for one in (plain, job):
                with torch.no_grad():
                    one.model[0].weight[0, 0] = math.nan
        plain.run(10)
        job.run(10, scheduler)
        assert plain.lrs == job.lrs
        assert repr(plain.losses) == repr(job.losses)
        assert repr(plain.model.state_dict()) == repr(job.model.state_dict()), i
        assert repr(plain.optimizer.state_dict()) == repr(job.optimizer.state_dict())
    assert len(scheduler.history) == 19
    assert scheduler.history[-1].lr < 1e-4 < job.lrs[-1]
    assert scheduler.get_last_lr()[0] < 1e-4
    assert scheduler.rollback_bytes == 0
    assert scheduler.history.interventions


@pytest.mark.parametrize("at", [5, 24, 40])
def test_a_later_end_makes_no_jump_of_the_learning_rate(at):
    job, scheduler = start(40, gentle(), job=Job())
    job.run(at, scheduler)
    before = scheduler.get_last_lr()[0]
    scheduler.extend(100)
    assert scheduler.total_steps == 100
    assert scheduler.get_last_lr()[0] == pytest.approx(before, rel=0.02)
    job.run(100 - at, scheduler)
    jumps = np.abs(np.diff(np.log(job.lrs)))[5:]
    assert jumps.max() < 0.5
    assert [d.step for d in scheduler.history if d.step > at] == [
        e for e in interval_ends(100, 40, 1.5)[:-1] if e > at
    ]
    with pytest.warns(UserWarning, match="more often than total_steps=100"):
        job.run(1, scheduler)


def test_a_moved_end_keeps_what_was_done_at_the_old_one():
    job, scheduler = start(40, Policy.do_nothing(), job=Job("SGD-plain", lr=0.05), rollback=True)
    for end in (40, 60):
        if end > scheduler.total_steps:
            scheduler.extend(end)
        job.run(end - 2 - job.done, scheduler)
        wreck(job)
        with pytest.warns(UserWarning, match=f"rollback at {end}: the loss diverged in the last"):
            job.run(2, scheduler)
    history = scheduler.history
    assert [i.step for i in history.interventions if "last interval" in i.detail] == [40, 60]
    assert [i.step for i in history.interventions_at_end] == [60]


def test_the_end_only_moves_back():
    scheduler = LearnedScheduler(Job().optimizer, 100)
    for total in (100, 0, 1.5, None):
        with pytest.raises(ValueError, match=r"Expected (total_steps beyond|positive integer)"):
            scheduler.extend(total)


@pytest.mark.parametrize(("stop", "warmup_steps"), [(4, 8), (13, 0), (36, 8)])
def test_an_extended_run_resumes_bit_for_bit(stop, warmup_steps):
    def begin(total=40):
        job = Job()
        options = {"warmup_steps": warmup_steps, "model": job.model, "patience": 3}
        return start(total, gentle(), job=job, **options)

    def go(job, scheduler, until):
        while job.done < until:
            if job.done == 20:
                scheduler.extend(60)
            job.run(1, scheduler)
            if job.done % 10 == 0:
                scheduler.observe_validation(job.losses[-1])

    whole, scheduler = begin()
    go(whole, scheduler, 60)
    half, stopped = begin()
    go(half, stopped, stop)
    for total in (40, 60) if stop > 20 else (40,):
        model, optimizer, state = through_a_file(half.model, half.optimizer, stopped)
        again, resumed = begin(total)
        again.model.load_state_dict(model)
        again.optimizer.load_state_dict(optimizer)
        resumed.load_state_dict(state)
        again.done = stop
        go(again, resumed, 60)
        assert same(again, whole)
        assert list(resumed.history) == list(scheduler.history)
        assert resumed.should_stop == scheduler.should_stop
        thresholds = resumed.export_schedule().clip_thresholds
        assert thresholds == scheduler.export_schedule().clip_thresholds


def knowing(features, threshold):
    """A policy that raises the rate, and knows features around those given."""
    rng = np.random.default_rng(0)
    rows = np.clip(features + rng.normal(size=(500, NUM_FEATURES)), -5, 5)
    return always(0.2, 0.1, -0.1).with_familiarity(
        replace(fit_familiarity(rows), threshold=threshold)
    )


def test_in_a_strange_job_the_plain_decay_decides_and_it_is_said_once():
    strange, scheduler = start(40, knowing(np.full(NUM_FEATURES, 4.0), 1.5), job=Job())
    plain, doing_nothing = start(40, Policy.do_nothing(), job=Job())
    with pytest.warns(UserWarning, match="unlike all that the policy was trained on") as caught:
        strange.run(40, scheduler)
    assert len(caught) == 1
    (record,) = scheduler.history.interventions
    assert record.kind == "unfamiliar"
    assert record.step == scheduler.history[0].step
    plain.run(40, doing_nothing)
    assert strange.lrs == plain.lrs
    assert same(strange, plain)
    # The same policy, where nothing is strange, acts.
    job, known = start(20, knowing(np.zeros(NUM_FEATURES), 1e9), job=Job())
    job.run(20, known)
    assert known.history[-1].action == pytest.approx((0.2, 0.1, -0.1))


def test_bounds_hold_after_a_warm_up_and_a_resumption():
    def begin():
        job = Job(lr=1e-4, groups=({}, {}))  # where the warm-up begins: below the bounds
        job.seen = []
        options = {"warmup_steps": 10, "lr_bounds": (0.004, 0.02), "rollback": False}
        return start(40, always(1, 0, 0), job=job, **options)

    def warm_up(job):
        if job.done <= 10:
            for group, top in zip(job.optimizer.param_groups, (1e-2, 1.8e-2), strict=True):
                group["lr"] = top * job.done / 10
        else:
            job.seen.append([group["lr"] for group in job.optimizer.param_groups])

    whole, scheduler = begin()
    whole.run(40, scheduler, after=lambda: warm_up(whole))
    assert 0.004 <= np.min(whole.seen) <= np.max(whole.seen) == 0.02
    for stop in (5, 20):
        half, stopped = begin()
        half.run(stop, stopped, after=partial(warm_up, half))
        again, resumed = begin()
        again.take_over(half)
        resumed.load_state_dict(stopped.state_dict())
        again.run(40 - stop, resumed, after=partial(warm_up, again))
        assert again.seen == whole.seen[-len(again.seen) :]
        assert same(again, whole)


def test_should_stop_after_patience_intervals_without_a_better_validation_loss():
    job, scheduler = start(400, Policy.do_nothing(), job=Job(), patience=3)
    ends = interval_ends(400, 40, 1.5)
    for k in range(12):
        while job.done < ends[k]:
            if job.done == ends[k] - 1:
                scheduler.observe_validation(1.0 if k < 5 else 2.0)
            job.run(1, scheduler)
        # The best was first seen in interval 0; ties are no better.
        assert scheduler.should_stop == (k >= 3)


def test_callbacks_explanation_and_export_of_a_run(tmp_path):
    told, replay = [], Job()
    keep = SimpleNamespace(on_decision=told.append)
    job, scheduler = start(40, gentle(), job=Job(), callbacks=[keep])
    with pytest.raises(RuntimeError, match="no decision to explain yet"):
        scheduler.explain()
    job.run(40, scheduler)
    assert told == list(scheduler.history)
    assert scheduler.explain().action == pytest.approx(scheduler.history[-1].action)
    recorded = scheduler.export_schedule(tmp_path / "schedule.csv")
    assert len((tmp_path / "schedule.csv").read_text().splitlines()) == 41
    plain = recorded.to_lambda_lr(replay.optimizer)
    assert replay.run(40, after=plain.step).lrs == job.lrs


def test_the_schedule_of_a_run_is_what_was_applied_to_a_group_that_moves():
    job = Job(groups=[{"lr": 0.0}, {"lr": 0.01}])
    policy = always(-0.5, 0.5, -1.0, clip_ratio_start=1.0)
    _, scheduler = start(40, policy, job=job, warmup_steps=5)
    factors, thresholds = [], []
    for step in range(40):
        job.run(1)
        factors.append(job.optimizer.param_groups[1]["lr"] / 0.01)
        thresholds.append(scheduler.last_clip_norm)
        scheduler.step(job.losses[-1])
        if step in {2, 6, 20, 39}:  # in the warm-up, in the first interval, later, at the end
            recorded = scheduler.export_schedule()
            if step > 5:
                assert list(recorded.lr_factors) == factors
                assert list(recorded.clip_thresholds) == thresholds
    assert factors[:5] == [1.0] * 5
    assert thresholds[:5] == [math.inf] * 5
    assert len(set(thresholds)) > 30
    assert thresholds[6] < math.inf  # in the first interval already


def test_another_policy_goes_on_only_when_allowed():
    job, scheduler = start(40, gentle(0), job=Job())
    job.run(20, scheduler)
    state = scheduler.state_dict()
    scheduler.detach()
    _, other = start(40, gentle(1), job=job)
    with pytest.raises(ValueError, match="allow_other_policy=True"):
        other.load_state_dict(state)
    other.load_state_dict(state, allow_other_policy=True)
    job.run(20, other)
    assert [d.step for d in other.history] == list(interval_ends(40, 40, 1.5)[:-1])
