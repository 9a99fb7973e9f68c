"""A job stopped at any step and resumed ends in the same weights, bit for bit."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import interval_ends
from pacesetter.envs.features import NUM_FEATURES

# Updates break on purpose: the guard says so.
pytestmark = pytest.mark.filterwarnings("ignore:LearnedScheduler. ")

TOTAL = 100
ENDS = interval_ends(TOTAL, 40, 1.5)[:-1]
OPTIMIZERS = {
    "AdamW": lambda p: AdamW(p, lr=1e-2),
    "AdamW-fused": lambda p: AdamW(p, lr=1e-2, fused=True),
    "AdamW-tensor-lr": lambda p: AdamW(p, lr=torch.tensor(1e-2), foreach=False),
    "Adam": lambda p: Adam(p, lr=1e-2),
    "SGD": lambda p: SGD(p, lr=1e-2, momentum=0.9),
    "RMSprop": lambda p: RMSprop(p, lr=1e-3, momentum=0.5),
    "NAdam": lambda p: NAdam(p, lr=1e-2),
    "RAdam": lambda p: RAdam(p, lr=1e-2),
}


def reactive(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(8, NUM_FEATURES), (3, 8)]
    return Policy([(0.2 * rng.normal(size=s), 0.2 * rng.normal(size=s[0])) for s in shapes])


class Job:
    def __init__(self, name="AdamW", *, policy=None, total=TOTAL, groups=2):
        g = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 4, generator=g)
        self.targets = self.inputs.sin().sum(1, keepdim=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        params = [list(self.model[0].parameters()), list(self.model[2].parameters())]
        if groups == 1:
            params = [params[0] + params[1]]
        self.optimizer = OPTIMIZERS[name]([{"params": p} for p in params])
        self.policy, self.total = policy or reactive(), total
        self.scheduler = None

    def attach(self):
        self.scheduler = LearnedScheduler(self.optimizer, self.total, policy=self.policy)
        return self

    def run(self, first, last):
        for step in range(first, last):
            rows = [(7 * step + i) % 64 for i in range(8)]
            loss = (self.model(self.inputs[rows]) - self.targets[rows]).square().mean()
            if step == 50:
                loss = loss * math.nan
            if step % 20 == 7:
                self.scheduler.observe_validation(loss)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
        return self

    def checkpoint(self):
        """Through a file, read back with nothing but tensors and plain types allowed."""
        file = io.BytesIO()
        parts = ("model", "optimizer", "scheduler")
        torch.save({name: getattr(self, name).state_dict() for name in parts}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def resumed(name, state, order):
    """A fresh process would do one of these."""
    job = Job(name)
    job.model.load_state_dict(state["model"])
    if order == "optimizer, attach, scheduler":
        job.optimizer.load_state_dict(state["optimizer"])
        job.attach().scheduler.load_state_dict(state["scheduler"])
    elif order == "attach, optimizer, scheduler":
        job.attach().optimizer.load_state_dict(state["optimizer"])
        job.scheduler.load_state_dict(state["scheduler"])
    else:
        job.attach().scheduler.load_state_dict(state["scheduler"])
        job.optimizer.load_state_dict(state["optimizer"])
    return job


ORDERS = (
    "optimizer, attach, scheduler",
    "attach, optimizer, scheduler",
    "attach, scheduler, optimizer",
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_jobs_end_in_the_same_weights(name):
    whole = Job(name).attach().run(0, TOTAL)
    # Start, decision, mid-interval, in and after the broken update, validation waiting, end.
    stops = (0, 3, 28, 50, 51, 97, TOTAL) if name == "AdamW" else (3, 51)
    for i, stop in enumerate(stops):
        stopped = Job(name).attach().run(0, stop)
        job = resumed(name, stopped.checkpoint(), ORDERS[i % len(ORDERS)]).run(stop, TOTAL)
        assert torch.equal(job.weights(), whole.weights()), f"stopped at {stop}"
        assert [d.step for d in job.scheduler.history] == list(ENDS)
        assert repr(list(job.scheduler.history)) == repr(list(whole.scheduler.history))
        assert job.scheduler.skipped_steps == whole.scheduler.skipped_steps == 1
        assert job.scheduler.last_clip_norm == whole.scheduler.last_clip_norm
        assert job.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_the_state_is_a_copy():
    job = Job().attach().run(0, 40)
    state = job.scheduler.state_dict()
    before = repr(copy.deepcopy(state))
    job.run(40, 60)
    Job().attach().scheduler.load_state_dict(state)
    assert repr(state) == before


def test_the_state_holds_no_weights_of_the_policy():
    state = Job().attach().run(0, 40).scheduler.state_dict()
    assert state["policy"] == reactive().digest
    del state["history"]
    file = io.BytesIO()
    torch.save(state, file)
    # The numbers of one update each, and the snapshot of a small job: no network of 64 x 64.
    assert len(file.getvalue()) < 16000


def test_states_that_do_not_belong_are_refused():
    state = Job().attach().run(0, 10).scheduler.state_dict()
    with pytest.raises(ValueError, match="taken with policy="):
        Job(policy=reactive(seed=1)).attach().scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="total_steps=100, but this scheduler has 200"):
        Job(total=200).attach().scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match=r"2 param groups, .* has 1"):
        Job(groups=1).attach().scheduler.load_state_dict(state)
    for version in (1, 2, 99, None, "3"):
        with pytest.raises(ValueError, match=f"version 3, but got {version!r}: load it with"):
            Job().attach().scheduler.load_state_dict({**state, "version": version})


def test_a_refused_state_changes_nothing():
    state = Job().attach().run(0, 10).scheduler.state_dict()
    job = Job(groups=1).attach().run(0, 20)
    before = repr(job.scheduler.state_dict())
    with pytest.raises(ValueError, match="param groups"):
        job.scheduler.load_state_dict(state)
    assert repr(job.scheduler.state_dict()) == before


def test_group_that_had_joined_is_restored():
    def run(job, first, last, extra):
        for step in range(first, last):
            if step == 10:
                job.optimizer.add_param_group({"params": [extra], "lr": 0.3})
            extra.grad = torch.ones(2)
            job.run(step, step + 1)

    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    whole = Job().attach()
    run(whole, 0, 60, one)
    part = Job().attach()
    run(part, 0, 30, two)
    state = part.checkpoint()
    again, extra = Job(), nn.Parameter(two.detach().clone())
    again.model.load_state_dict(state["model"])
    again.optimizer.add_param_group({"params": [extra], "lr": 1e9})
    again.optimizer.load_state_dict(state["optimizer"])
    again.attach().scheduler.load_state_dict(state["scheduler"])
    run(again, 30, 60, extra)
    assert torch.equal(again.weights(), whole.weights())
    assert torch.equal(extra, one)
