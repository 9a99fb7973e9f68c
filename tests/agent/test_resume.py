"""A job stopped at any step and resumed ends in the same weights, bit for bit."""

import io
import math

import pytest
import torch
from jobs import Job, reactive, through_a_file
from torch import nn

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.envs.actions import interval_ends

# Updates break on purpose: the guard says so.
pytestmark = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")

TOTAL = 60


def start(name="AdamW", *, groups=2):
    if name == "AdamW-tensor-lr":
        return Job(groups=[{}] * groups, lr=torch.tensor(1e-2), foreach=False)
    return Job(name, groups=[{}] * groups, dtype=torch.float32)


def attach(job, total=TOTAL, seed=0):
    return LearnedScheduler(job.optimizer, total, policy=reactive(seed))


def go(job, scheduler, until):
    while job.done < until:
        if job.done % 20 == 7:
            scheduler.observe_validation(1 / job.done)
        job.update(scheduler, scale=math.nan if job.done == 30 else 1.0)
    return job


def resumed(name, saved, order):
    """What a fresh process may do, in any order."""
    job, scheduler = start(name), None
    job.model.load_state_dict(saved[0])
    for part in order:
        if part == "attach":
            scheduler = attach(job)
        else:
            owner = job.optimizer if part == "optimizer" else scheduler
            owner.load_state_dict(saved[1 if part == "optimizer" else 2])
    return job, scheduler


ORDERS = (
    ("optimizer", "attach", "scheduler"),
    ("attach", "optimizer", "scheduler"),
    ("attach", "scheduler", "optimizer"),
)


@pytest.mark.parametrize(
    "name", ["AdamW", "AdamW-fused", "AdamW-tensor-lr", "SGD", "RMSprop", "NAdam", "RAdam"]
)
def test_resumed_jobs_end_in_the_same_weights(name):
    whole = start(name)
    expected = attach(whole)
    go(whole, expected, TOTAL)
    # Start, validation waiting, before and after the broken update, end.
    stops = (0, 28, 30, 31, TOTAL) if name == "AdamW" else (31,)
    stopped = start(name)
    scheduler = attach(stopped)
    for i, stop in enumerate(stops):
        go(stopped, scheduler, stop)
        saved = through_a_file(stopped.model, stopped.optimizer, scheduler)
        job, again = resumed(name, saved, ORDERS[i % len(ORDERS)])
        job.done = stop
        go(job, again, TOTAL)
        assert torch.equal(job.weights(), whole.weights()), f"stopped at {stop}"
        assert [d.step for d in again.history] == list(interval_ends(TOTAL, 40, 1.5)[:-1])
        assert repr(list(again.history)) == repr(list(expected.history))
        assert again.skipped_steps == expected.skipped_steps == 1
        assert again.last_clip_norm == expected.last_clip_norm
        assert again.get_last_lr() == expected.get_last_lr()


def test_the_state_is_a_copy_without_the_weights_of_the_policy():
    job, file = start(), io.BytesIO()
    scheduler = attach(job)
    go(job, scheduler, 20)
    state = scheduler.state_dict()
    before = repr(state)
    go(job, scheduler, 30)
    attach(start()).load_state_dict(state)
    assert repr(state) == before
    assert state.pop("policy") == reactive().digest
    del state["history"]
    torch.save(state, file)
    # The numbers of one update each, and the snapshot of a small job: no network of 64 x 64.
    assert len(file.getvalue()) < 16000


def test_states_that_do_not_belong_are_refused_and_change_nothing():
    job = start()
    scheduler = attach(job)
    go(job, scheduler, 10)
    state = scheduler.state_dict()
    versions = [({}, {"version": v}, f"version 3, but got {v!r}") for v in (1, 99, None, "3")]
    for mine, changes, message in (
        ({"seed": 1}, {}, "taken with policy="),
        ({"total": 200}, {}, "total_steps=60, but this scheduler has 200"),
        ({"groups": 1}, {}, r"2 param groups, .* has 1"),
        *versions,
    ):
        other = start(groups=mine.pop("groups", 2))
        scheduler = attach(other, **mine)
        go(other, scheduler, 10)
        before = repr(scheduler.state_dict())
        with pytest.raises(ValueError, match=message):
            scheduler.load_state_dict({**state, **changes})
        assert repr(scheduler.state_dict()) == before


def test_a_group_that_had_joined_is_restored():
    def run(job, scheduler, extra, until):
        while job.done < until:
            if job.done == 10:
                job.optimizer.add_param_group({"params": [extra], "lr": 0.3})
            extra.grad = torch.ones(2)
            go(job, scheduler, job.done + 1)

    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    whole, part, again = start(), start(), start()
    run(whole, attach(whole), one, 60)
    scheduler = attach(part)
    run(part, scheduler, two, 30)
    model, optimizer, state = through_a_file(part.model, part.optimizer, scheduler)
    extra, again.done = nn.Parameter(two.detach().clone()), 30
    again.model.load_state_dict(model)
    again.optimizer.add_param_group({"params": [extra], "lr": 1e9})
    again.optimizer.load_state_dict(optimizer)
    scheduler = attach(again)
    scheduler.load_state_dict(state)
    run(again, scheduler, extra, 60)
    assert torch.equal(again.weights(), whole.weights())
    assert torch.equal(extra, one)
