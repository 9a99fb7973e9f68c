"""An affine change of the loss changes nothing that a policy sees or does.

``a * loss + b`` with a > 0 is the same job to an AdamW whose eps is scaled along: features,
decisions and weights have to be the same, whether losses are large, tiny, zero or negative.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES

STEPS = 160


def random_policy():
    rng = np.random.default_rng(4)
    shapes = [(12, NUM_FEATURES), (3, 12)]
    layers = [(0.15 * rng.normal(size=s), 0.15 * rng.normal(size=s[0])) for s in shapes]
    # Within bounds, so that training is no chaos in which rounding errors grow.
    return Policy(layers, control=ControlConfig(lr_bounds=(0.2, 2.0)))


@cache
def job(factor=1.0, shift=0.0):
    """A regression whose training and validation losses are changed by an affine map."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 5, generator=g, dtype=torch.float64)
    targets = inputs.sin() @ torch.randn(5, 1, generator=g, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-8 * abs(factor))
    scheduler = LearnedScheduler(optimizer, STEPS, policy=random_policy())
    for step in range(STEPS):
        rows = torch.randint(256, (16,), generator=g)
        loss = factor * (model(inputs[rows]) - targets[rows]).square().mean() + shift
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 30 == 0:
            with torch.no_grad():
                valid = (model(inputs) - targets).square().mean()
            scheduler.observe_validation(factor * valid + shift)
        scheduler.step(loss)
    return scheduler, model


@pytest.mark.parametrize(("factor", "shift"), [(1024.0, 0.0), (1 / 1024, -5.0), (1.0, -100.0)])
def test_affine_changes_of_the_loss_change_no_feature_and_no_decision(factor, shift):
    plain, plain_model = job()
    changed, changed_model = job(factor, shift)
    assert len(plain.history) == 39
    for a, b in zip(plain.history, changed.history, strict=True):
        np.testing.assert_allclose(b.features, a.features, atol=1e-6, err_msg=f"step {a.step}")
        np.testing.assert_allclose(b.action, a.action, atol=1e-6)
        assert b.lr == pytest.approx(a.lr, rel=1e-6)
        assert b.clip_threshold == pytest.approx(factor * a.clip_threshold, rel=1e-6)
        assert b.loss == pytest.approx(factor * a.loss + shift, rel=1e-6, abs=1e-9)
    for a, b in zip(plain_model.parameters(), changed_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert np.ptp([d.action[0] for d in plain.history]) > 0.1  # the policy did react


def test_features_do_depend_on_the_loss():
    """The test above could not fail if they did not."""
    plain, _ = job()
    other, _ = job(factor=-1.0)  # uphill
    assert not np.allclose(plain.history[5].features, other.history[5].features, atol=1e-3)
    assert not np.allclose(plain.history[5].action, other.history[5].action, atol=1e-3)
