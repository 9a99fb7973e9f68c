"""What users of schedulers, optimizers and trainers have reported, tried on the plug-in."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from jobs import KINDS, Job, always, feature, reactive, start
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, RMSprop, lr_scheduler

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.plugin.snapshot import JobSnapshot
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig

GUARDED = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")
NOTHING = Policy.do_nothing()
RATES = pytest.mark.parametrize("lr", [0.002, torch.tensor(0.002).double()], ids=["", "tensor"])


def kinds_of(scheduler):
    return [i.kind for i in scheduler.history.interventions]


@pytest.mark.parametrize("frozen", ["all", "first", "one of two groups", "no gradient"])
@pytest.mark.parametrize("name", ["AdamW", "SGD-plain"])
def test_parameters_are_those_with_a_gradient(frozen, name):
    job, scheduler = start(60, reactive(), job=Job(name, groups=({}, {})))
    whole = list(job.model.parameters())
    some = {"all": whole, "first": whole[:1]}.get(frozen, whole[2:])
    for _ in range(60):
        loss = job.loss()
        loss.backward()
        for p in some:
            p.requires_grad_(False)
            p.grad = None if frozen == "no gradient" else p.grad
        job.optimizer.step()
        scheduler.step(loss)
        for p in whole:
            p.requires_grad_(True)
        job.optimizer.zero_grad()
        job.done += 1
    assert all(np.isfinite(d.features).all() for d in scheduler.history)
    assert len({feature(d, "log_param_growth") for d in scheduler.history}) > 1


@pytest.mark.parametrize("kind", [AdamW, Adam, NAdam, RAdam, RMSprop, SGD])
def test_a_group_may_be_empty(kind):
    weight = nn.Parameter(torch.ones(3))
    for groups in ([[], [weight]], [[weight], []]):
        groups = [{"params": group} for group in groups]
        optimizer = kind(groups, lr=torch.tensor(0.01), foreach=False)
        scheduler = LearnedScheduler(optimizer, 20, policy=always(0.5, 0.5, 0))
        for _ in range(20):
            weight.grad = torch.ones(3)
            optimizer.step()
            scheduler.step(1.0)
        scheduler.detach(restore=True)
        assert [float(g["lr"]) for g in optimizer.param_groups] == [pytest.approx(0.01)] * 2


@pytest.mark.parametrize(
    "options", [{}, {"rollback": True}, {"rollback": False}, {"dry_run": True}], ids=str
)
def test_lazy_parameters_and_buffers(options):
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1))
    used = model[:3]  # the last stays lazy
    optimizer = AdamW(model.parameters())
    scheduler = LearnedScheduler(optimizer, 20, policy=NOTHING, model=model, **options)
    for _ in range(20):
        used(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step(1.0)
    snapshot = scheduler._run.snapshot
    wanted = options.get("rollback", not options)
    assert bool(scheduler.rollback_bytes) == (snapshot is not None) == wanted
    if wanted:
        snapshot.restore()
        assert used[1].num_batches_tracked != 20


def test_large_lazy_parameters_get_no_snapshot_after_all():
    with torch.device("meta"):
        model = nn.LazyLinear(4000)
        optimizer = SGD(model.parameters(), lr=0.1)
        scheduler = LearnedScheduler(optimizer, 10, policy=NOTHING)
        model(torch.empty(2, 20000))
    optimizer.step()
    assert scheduler.rollback_bytes == 0


def test_inference_mode_is_refused():
    job, scheduler = start(10, NOTHING)
    scheduler.detach()
    calls = (lambda: LearnedScheduler(job.optimizer, 10), lambda: scheduler.load_state_dict({}))
    for call in calls:
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"mode\(\).* outside of it"):
            call()
    LearnedScheduler(job.optimizer, 10)


def longer(p):
    return nn.Parameter(torch.cat([p.data, p.data[:1]]))


def grown_in_place(p, optimizer):
    p.grad, p.data = None, longer(p).data
    optimizer.state.pop(p)


def new():
    return nn.Parameter(torch.full((3,), 7.0))


CHANGES = {  # groups, the first one's parameters, optimizer, model
    "replaced": lambda g, p, o, m: p.append(longer(p.pop())),
    "grown in place": lambda g, p, o, m: grown_in_place(p[0], o),
    "joined a group": lambda g, p, o, m: p.insert(0, new()),
    "left a group": lambda g, p, o, m: p.pop(0),
    "group left": lambda g, p, o, m: g.pop(0),
    "group joined": lambda g, p, o, m: (o.add_param_group({"params": [new()]}), g.reverse()),
    "buffer grown": lambda g, p, o, m: m.register_buffer("seen", torch.full((5,), 7.0)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_rollback_pairs_tensors_by_what_they_are(change, kind):
    """All weights have one shape: one that is paired by position would get another's values."""
    params = [nn.Parameter(torch.full((3,), float(i))) for i in range(4)]
    optimizer = KINDS[kind][0]([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    model = nn.Module()
    model.register_buffer("seen", torch.zeros(1))
    model.register_buffer("other", torch.zeros(5))
    scheduler = LearnedScheduler(optimizer, 100, policy=NOTHING)  # has to get along with it

    def now():
        live = [p for group in optimizer.param_groups for p in group["params"]]
        return {p: (p.detach().clone(), copy.deepcopy(optimizer.state[p])) for p in live}

    def update():
        for i, p in enumerate(now()):
            p.grad = torch.full_like(p, 1.0 + i)
        optimizer.step()
        scheduler.step(1.0)

    update()
    snapshot = JobSnapshot(optimizer, model)
    snapshot.keep()
    kept = now()
    groups = optimizer.param_groups
    CHANGES[change](groups, groups[0]["params"], optimizer, model)
    update()
    model.other += 1.0
    moved = now()
    snapshot.restore()
    for p, found in now().items():
        known = p in kept and kept[p][0].shape == p.shape
        weight, state = (kept if known else moved)[p]
        assert torch.equal(found[0], weight)
        assert all(np.array_equal(found[1][name], value) for name, value in state.items())
    assert torch.equal(model.other, torch.zeros(5))
    assert torch.equal(model.seen, torch.full((5,), 7.0) if len(model.seen) > 1 else torch.zeros(1))


@pytest.mark.parametrize(("count", "kind"), [(2, "lr_cut"), (1, "rollback")])
def test_a_rollback_says_once_what_it_leaves_alone(count, kind):
    optimizer = SGD([nn.Parameter(torch.ones(4)) for _ in range(2)], lr=1e-3)
    scheduler = LearnedScheduler(optimizer, 100, policy=NOTHING)
    slots = optimizer.param_groups[0]["params"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(100):
            for p in slots:
                p.grad = torch.ones_like(p)
            optimizer.step()
            scheduler.step(1.0 if step < 50 else math.nan)
            if step >= 50:
                slots[:count] = map(longer, slots[:count])
    cuts = [i for i in scheduler.history.interventions if "divided by 10" in i.detail]
    assert {i.kind for i in cuts} == {kind}
    told = [text for w in caught if "has changed its shape" in (text := str(w.message))]
    assert len(told) == 1
    assert f"(tensors: {count})" in told[0]


@pytest.mark.parametrize("kind", ["AdamW-fused", "SGD", "NAdam"])
def test_a_copy_goes_on_where_the_original_stands(kind):
    job, scheduler = start(60, reactive(), job=Job(kind, norm=True, dtype=torch.float32))
    job.run(30, scheduler)
    twin, again = copy.deepcopy((job, scheduler))  # pickles go the same way
    for one, its in ((job, scheduler), (twin, again)):
        one.run(30, its)
        assert its.skipped_steps == 0
    assert torch.equal(job.weights(), twin.weights())
    assert list(again.history) == list(scheduler.history)
    again.detach()
    assert not twin.optimizer._optimizer_step_pre_hooks
    assert job.optimizer._optimizer_step_pre_hooks
    copy.deepcopy(again).detach()
    with pytest.raises(ValueError, match="has a LearnedScheduler already"):
        copy.copy(scheduler)


@RATES
@pytest.mark.parametrize("options", [{}, {"control": "lr"}, {"control": "clip"}, {"dry_run": True}])
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop"])
def test_the_rate_of_a_group_that_joins_is_in_force(kind, options, lr):
    job, scheduler = start(100, always(0.2, 0.3, 0), job=Job(kind), **options)
    job.run(50, scheduler)
    late = nn.Parameter(torch.ones(2))
    group = {"params": [late], "lr": copy.deepcopy(lr), "foreach": False}
    job.optimizer.add_param_group(group)
    late.grad = torch.ones(2)
    job.optimizer.step()
    first, second = (float(g["lr"]) for g in job.optimizer.param_groups)
    assert second == pytest.approx(0.002, rel=1e-6)
    scheduler.step(1.0)
    job.run(20, scheduler)
    one, two = (float(g["lr"]) for g in job.optimizer.param_groups)
    assert two / one == pytest.approx(second / first, rel=1e-6)


@RATES
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "RMSprop", "NAdam"])
def test_detaching_may_restore_the_starts(kind, lr):
    job = Job(kind, groups=({}, {"lr": 0.005}), lr=copy.deepcopy(lr), foreach=False)
    before = repr(job.optimizer.param_groups)
    _, scheduler = start(60, always(0.2, 0.5, 0), job=job)
    first = scheduler.get_last_lr()
    job.run(60, scheduler)
    for _ in range(2):  # twice does no harm
        scheduler.detach(restore=True)
    job.optimizer.zero_grad()
    for group, start_lr in zip(job.optimizer.param_groups, (float(lr), 0.005), strict=True):
        assert float(group["lr"]) == start_lr
        key = "betas" if "betas" in group else "momentum"
        assert f"'{key}': {group[key]!r}" in before
    assert LearnedScheduler(job.optimizer, 60, policy=NOTHING).get_last_lr() == first


class Once(SGD):
    def step(self, closure=None):
        return super().step(closure)


class Twice(Once):
    fails = False

    def step(self, closure=None):
        loss = None if closure is None else closure()
        if self.fails:
            raise RuntimeError("out of memory")
        super().step()
        return loss


@pytest.mark.parametrize("kind", [Once, Twice])
@pytest.mark.parametrize("closure", [False, True])
def test_a_step_within_a_step_is_the_same_update(kind, closure):
    SGD([nn.Parameter(torch.ones(1))], lr=1.0)  # from here on the parent's step has hooks as well
    job = Job("SGD")
    job.optimizer = kind(job.model.parameters(), lr=1e-2)
    _, scheduler = start(60, NOTHING, job=job)
    seen, calls = scheduler.on_gradients, []
    scheduler.on_gradients = lambda: (calls.append(1), seen())
    for fails in (False, True, True, False):  # what failed is not under way any more
        job.loss().backward()
        given = (lambda: 1.0,) if closure else ()
        job.optimizer.fails = fails and kind is Twice
        if job.optimizer.fails:
            with pytest.raises(RuntimeError, match="out of memory"):
                job.optimizer.step(*given)
        else:
            job.optimizer.step(*given)
            scheduler.step(1.0)
    assert len(calls) == 4


def with_drift(kind, drift, **options):
    """A job whose loss has a part that its weights have nothing to do with."""
    job, scheduler = start(300, NOTHING, job=Job(kind), **options)
    for step in range(300):
        job.update()
        scheduler.step(job.losses[-1] + drift(step))
    return job, scheduler


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop-plain"])
@pytest.mark.parametrize(
    "drift", [lambda t: t / 20, lambda t: 5 * (t > 100), lambda t: -20 + t / 10], ids=range(3)
)
def test_a_loss_that_rises_while_the_weights_are_sane_is_no_divergence(kind, drift):
    job, scheduler = with_drift(kind, drift)
    assert not kinds_of(scheduler)
    scheduler._run.snapshot.restore()  # what is kept is not that of the beginning
    assert (job.weights() - Job(kind).weights()).norm() > 0.1


@GUARDED
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
@pytest.mark.parametrize("drift", [1e6, math.inf, math.nan])
def test_what_no_opponent_can_do_is_one_still(kind, drift):
    kinds = kinds_of(with_drift(kind, lambda step: drift if step > 150 else 0.0)[1])
    assert kinds[:2] == ["lr_cut", "rollback"]
    assert drift == 1e6 or kinds.count("handover") == 1
    assert "rollback" not in "".join(kinds).partition("handover")[2]


def test_the_guard_can_be_switched_off():
    for drift in (1e6, math.nan):
        _, scheduler = with_drift("SGD", lambda step, d=drift: d * (step > 50), guard=False)
        assert not kinds_of(scheduler)
        assert scheduler.rollback_bytes == 0
    with pytest.raises(ValueError, match="rollback=True needs the guard"):
        start(100, NOTHING, guard=False, rollback=True)


@GUARDED
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize(
    ("period", "broken", "answered"),
    [(7, {3}, False), (10, {4, 5}, False), (3, {0}, False), (20, {4, 5, 6}, True), (2, {0}, True)],
)
def test_single_broken_updates_are_skipped_and_streaks_are_answered(
    period, broken, answered, guard
):
    job, scheduler = start(280, NOTHING, guard=guard)
    for step in range(280):
        job.update(scheduler, scale=math.nan if step % period in broken else 1.0)
    assert scheduler.skipped_steps == sum(step % period in broken for step in range(280))
    assert bool(kinds_of(scheduler)) == (answered and guard)


@pytest.mark.parametrize("name", ["Adam-fused", "SGD-fused"])
def test_scaled_gradients_whose_squares_overflow(name):
    policy = Policy.do_nothing(ControlConfig(clip_ratio_start=0.7))
    one, two = (start(40, policy, job=Job(name, dtype=torch.float32)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**110, growth_interval=10**6)
    for _ in range(40):
        one[0].update(one[1])
        job, loss = two[0], two[0].loss()
        job.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(job.optimizer)
        scaler.update()
        two[1].step(loss)
        job.done += 1
    assert two[1].skipped_steps == 0
    for a, b in zip(one[1].history, two[1].history, strict=True):
        np.testing.assert_allclose(a.features, b.features, rtol=1e-2, atol=1e-2)


FOREIGN = {
    "nothing": lambda job, state: None,
    "a list": lambda job, state: [state],
    "no entries": lambda job, state: {},
    "StepLR": lambda job, state: lr_scheduler.StepLR(job.optimizer, 3).state_dict(),
    "plateau": lambda job, state: lr_scheduler.ReduceLROnPlateau(job.optimizer).state_dict(),
    "the optimizer's": lambda job, state: job.optimizer.state_dict(),
    "its history alone": lambda job, state: {"version": 3, "history": state["history"]},
    "an empty run": lambda job, state: {**state, "run": None},
    "half a run": lambda job, state: {**state, "run": {"total_steps": 60, "steps": 30}},
    "no guard": lambda job, state: {**state, "run": {**state["run"], "decider": {}}},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_states_of_something_else_are_refused(name):
    job, scheduler = start(60, NOTHING)
    job.run(30, scheduler)
    state = scheduler.state_dict()
    before = repr(state)
    with pytest.raises((TypeError, ValueError), match=r"expected .* from LearnedScheduler.st"):
        scheduler.load_state_dict(FOREIGN[name](Job(), state))
    assert repr(scheduler.state_dict()) == before


OTHERS = {
    "kind": (Job("SGD"), "taken with AdamW, but this optimizer is of the kind SGD"),
    "near kind": (Job("Adam"), "taken with AdamW, but this optimizer is of the kind Adam"),
    "layers": (Job(norm=True), r"in param group 0, the shape of parameter 2 was \(1, 8\)"),
    "groups": (Job(groups=({}, {})), r"the shape of parameter 2 was \(1, 8\), but is none here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_states_of_other_jobs_are_refused(name):
    job, scheduler = start(60, NOTHING)
    job.run(10, scheduler)
    other, message = OTHERS[name]
    theirs = LearnedScheduler(other.optimizer, 60, policy=NOTHING)
    with pytest.raises(ValueError, match=message):
        theirs.load_state_dict(scheduler.state_dict())
    subclass = type("Mine", (AdamW,), {})(Job().model.parameters(), lr=1e-3)
    LearnedScheduler(subclass, 60, policy=NOTHING).load_state_dict(scheduler.state_dict())
