"""Jobs with a `GradScaler` or with parameters of 16 bits: gradients are seen as they really are."""

import math

import jobs
import numpy as np
import pytest
import torch
from jobs import feature
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.plugin.updates import overflowed
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig

CLIPS = ControlConfig(clip_ratio_start=0.7, clip_ratio_bounds=(0.5, 0.8))
TOTAL = 20
every_kind = pytest.mark.parametrize("name", ["AdamW", "AdamW-fused", "SGD-fused"])
either_way = pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled"])


class Job(jobs.Job):
    """With a scaler, trained as the documentation of GradScaler has it."""

    def __init__(self, name, *, scale=None, unscale=False, device="cpu", **scaling):
        super().__init__(name, dtype=torch.float32, device=device)
        self.targets *= 10
        scaling = {"init_scale": scale or 1.0, "growth_interval": 10**6, **scaling}
        self.scaler = GradScaler(device, enabled=scale is not None, **scaling)
        self.unscale = unscale
        policy = Policy.do_nothing(CLIPS)
        self.scheduler = LearnedScheduler(self.optimizer, TOTAL, policy=policy)

    def update(self, *, poison=False):
        loss = self.loss()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if poison:
            self.model[0].weight.grad[0, 0] = math.inf
        if self.unscale:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step(loss)
        self.done += 1

    def until(self, step):
        while self.done < step:
            self.update()
        return self


@every_kind
@either_way
def test_statistics_and_clipping_are_those_of_the_unscaled_gradients(name, unscale):
    plain, job = Job(name), Job(name, scale=2.0**16, unscale=unscale)
    for _ in range(TOTAL):
        plain.update()
        job.update()
        # A scale that is a power of two rounds nothing.
        norm = pytest.approx(plain.scheduler.last_clip_norm, rel=1e-6)
        assert job.scheduler.last_clip_norm == norm
    torch.testing.assert_close(job.weights(), plain.weights(), rtol=1e-5, atol=1e-6)
    for seen, wanted in zip(job.scheduler.history, plain.scheduler.history, strict=True):
        np.testing.assert_allclose(seen.features, wanted.features, rtol=1e-4, atol=1e-5)
    shares = [feature(d, "clipped_share") for d in plain.scheduler.history]
    assert max(shares) > min(shares)  # clipping was put to the test
    assert job.scheduler.skipped_steps == 0
    assert not hasattr(job.optimizer, "found_inf")


@every_kind
@either_way
def test_updates_that_the_scaler_skips_are_counted_and_the_horizon_is_kept(name, unscale):
    job = Job(name, scale=1.0, unscale=unscale)
    job.until(5)
    before, lr = job.weights(), job.scheduler.get_last_lr()[0]
    job.scaler.update(2.0**127)
    job.update()  # the gradients overflow
    assert torch.equal(job.weights(), before)
    assert job.scheduler.skipped_steps == 1
    assert job.scheduler.get_last_lr()[0] != lr  # time has passed
    job.scaler.update(1.0)
    job.until(TOTAL)
    assert job.scheduler.skipped_steps == 1
    assert not torch.equal(job.weights(), before)
    # An overflow is the scaler's affair: no answer to it, and no trace in the threshold.
    history = Job(name).until(TOTAL).scheduler.history
    assert [d.step for d in job.scheduler.history] == [d.step for d in history]
    assert [d.lr_factor for d in job.scheduler.history] == [d.lr_factor for d in history]
    assert math.isfinite(job.scheduler.last_clip_norm)


@every_kind
@pytest.mark.filterwarnings("ignore:LearnedScheduler. lr_cut")
def test_a_gradient_that_breaks_by_itself_is_skipped_with_and_without_a_scaler(name):
    for scale in (None, 2.0**10):
        job = Job(name, scale=scale, backoff_factor=1.0 - 1e-9)
        before = job.until(5).weights()
        job.update(poison=True)
        assert torch.equal(job.weights(), before)
        assert not torch.equal(job.until(7).weights(), before)
        assert job.scheduler.skipped_steps == 1


def test_what_a_scaler_left_out_can_be_told_from_a_loop_in_the_wrong_order():
    weight = nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], lr=0.1)
    assert not overflowed(optimizer)
    for value in (3.0, math.inf, math.nan):
        weight.grad = torch.tensor([1.0, 2.0, value])
        assert overflowed(optimizer) == (not math.isfinite(value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_parameters_of_16_bits(dtype, fused):
    """Norms are added up in more bits than the gradients have: these squares overflow float16."""
    weight = nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer = SGD([weight], lr=1e-4, momentum=0.9, fused=fused)
    policy = Policy.do_nothing(ControlConfig(clip_ratio_start=0.5, ramp_start=1.0))
    scheduler = LearnedScheduler(optimizer, 20, policy=policy)
    for step in range(20):
        weight.grad = torch.full((4,), 1000.0, dtype=dtype)
        optimizer.step()
        assert scheduler.last_clip_norm == (1000.0 if step else math.inf)
        assert not step or weight.grad.float().norm() == pytest.approx(1000.0, rel=1e-2)
        scheduler.step(1.0)
    assert scheduler.skipped_steps == 0
    assert all(np.isfinite(d.features).all() for d in scheduler.history)


@pytest.mark.parametrize("name", ["AdamW", "AdamW-fused"])
def test_a_model_of_bfloat16_learns(name):
    job = jobs.Job(name, dtype=torch.bfloat16)
    _, scheduler = jobs.start(120, Policy.do_nothing(), job=job)
    losses = job.run(120, scheduler).losses
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.gpu
@every_kind
@either_way
def test_on_a_gpu_the_same(name, unscale):
    plain, job = Job(name), Job(name, scale=2.0**16, unscale=unscale, device="cuda")
    for _ in range(TOTAL):
        plain.update()
        job.update()
        threshold = pytest.approx(plain.scheduler.last_clip_norm, rel=1e-3)
        assert job.scheduler.last_clip_norm == threshold
    torch.testing.assert_close(job.weights().cpu(), plain.weights(), rtol=1e-3, atol=1e-4)
    assert job.scheduler.skipped_steps == 0
