"""The guard by itself: what counts as divergence, what does not, and how the answers escalate."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from pacesetter.envs.actions import interval_ends
from pacesetter.inner_models.watch.guard import HEADROOM, LR_CUT, ROLLBACK_CUT, DivergenceGuard


def interval(losses, norms=1.0):
    """The part of an interval's statistics that the guard reads; one run per column."""
    losses = np.asarray(losses, dtype=np.float64)
    losses = losses.reshape(len(losses), -1)
    norms = np.broadcast_to(np.asarray(norms, dtype=np.float64).reshape(-1, 1), losses.shape)
    broken = ~(np.isfinite(losses) & np.isfinite(norms))
    return SimpleNamespace(losses=losses, norms=norms, nonfinite_share=broken.mean(axis=0))


def verdicts(loss, *, total=1000, norm=lambda t: 1.0):
    """What the guard says over a run whose losses and norms are functions of the step."""
    guard = DivergenceGuard(1)
    ends = (0, *interval_ends(total, 40, 1.5))
    return [
        guard.judge(interval([loss(t) for t in steps], [norm(t) for t in steps]))
        for steps in (range(a, b) for a, b in pairwise(ends))
    ]


def alarms(found):
    return [bool(v.alarm[0]) for v in found]


def assert_same(one, other, run=0):
    for name, value in vars(one).items():
        assert value[run] == getattr(other, name)[0], name


NOISE = np.random.default_rng(0).normal(size=6000)
SANE = {
    "learning": lambda t: 2.3 * math.exp(-t / 200) + 0.3 + 0.1 * NOISE[t],
    "nothing to learn": lambda t: 2.3 + NOISE[t],
    "batches of very different losses": lambda t: 0.01 * math.exp(1.5 * NOISE[t]),
    "below zero": lambda t: -5 * (1 - math.exp(-t / 100)) + 0.3 * NOISE[t],
    "learned by heart": lambda t: 2.3 * math.exp(-t / 30 + 0.8 * NOISE[t]),
    "constant": lambda t: 2.3,
    "zero": lambda t: 0.0,
    "a spike": lambda t: 2.3 * math.exp(-t / 100) + 0.05 * NOISE[t] + 3 * (t in (300, 301)),
    "waves": lambda t: 2.3 * math.exp(-t / 100) + 0.5 * math.sin(t / 50),
    "jumps of 1e30": lambda t: 1e30 * NOISE[t],
}


@pytest.mark.parametrize("total", [100, 1000, 5000])
@pytest.mark.parametrize("name", SANE)
def test_sane_runs_are_left_alone(name, total):
    found = verdicts(lambda t: SANE[name](t * 1000 // total), total=total)
    assert sum(alarms(found)) <= (1 if name == "batches of very different losses" else 0)
    assert not any(v.roll_back[0] or v.plain[0] for v in found)
    assert np.mean([v.good[0] for v in found]) > 0.7


DIVERGED = {
    "a plateau far up": lambda t: 2.3 if t < 3 else 1000 * math.exp(NOISE[t] / 2),
    "an explosion": lambda t: 2.3 if t < 5 else 2.3 * 1.3 ** min(t, 200),
    "no number any more": lambda t: 2.3 if t < 5 else math.nan,
    "all lost again": lambda t: 2.3 * math.exp(-t / 100) + 0.01 if t < 500 else 2.3,
    "below zero, up and away": lambda t: -5.0 + 0.1 * NOISE[t] if t < 400 else -5 + (t - 400) * 0.5,
}


@pytest.mark.parametrize("name", DIVERGED)
def test_divergence_is_answered_by_a_cut_and_then_by_going_back(name):
    found = verdicts(DIVERGED[name])
    when = [i for i, alarm in enumerate(alarms(found)) if alarm]
    if name != "all lost again":
        assert when[0] <= (25 if name.startswith("below") else 3)
    assert when[1] <= when[0] + 2
    first, second = found[when[0]], found[when[1]]
    answers = [(float(v.lr_cut[0]), v.roll_back[0], v.headroom[0]) for v in (first, second)]
    assert answers == [(-LR_CUT, False, math.inf), (-ROLLBACK_CUT, True, HEADROOM)]
    assert not second.good[0]


def test_who_goes_on_diverging_is_handed_over_once_and_for_good():
    found = verdicts(DIVERGED["no number any more"])
    when = [i for i, v in enumerate(found) if v.handed_over[0]]
    assert when == [alarms(found).index(True) + 3]
    assert [bool(v.plain[0]) for v in found] == [i >= when[0] for i in range(len(found))]
    assert found[-1].roll_back[0]  # the guard stays on watch


def test_gradients_far_above_their_history_count_while_the_loss_is_no_better():
    def norm(t):
        return 1e3 if t > 500 else 1.0

    assert any(alarms(verdicts(lambda t: 1.0 + 0.1 * abs(NOISE[t]), norm=norm)))
    assert not any(alarms(verdicts(lambda t: 1.0 - t / 1000, norm=norm)))


def test_old_alarms_are_forgotten_after_calm_and_a_few_broken_steps_only_halve_the_rate():
    guard, calm = DivergenceGuard(1), [1.0, 1.1, 0.9, 1.0] * 4
    guard.judge(interval(calm))
    for _ in range(10):
        broken = guard.judge(interval([math.nan] * 16))
        assert broken.alarm[0]
        assert not broken.roll_back[0]
        for _ in range(5):
            assert not guard.judge(interval(calm)).alarm[0]
    verdict = guard.judge(interval([*calm[:5], math.inf, *calm[6:]]))
    assert verdict.lr_cut[0] == -LR_CUT
    assert not verdict.alarm[0]
    assert not verdict.good[0]


def test_runs_are_judged_one_by_one():
    table = [DIVERGED["an explosion"], SANE["learning"], DIVERGED["no number any more"]]
    together = DivergenceGuard(3)
    ends = (0, *interval_ends(1000, 40, 1.5))
    alone = [verdicts(loss) for loss in table]
    for k, (a, b) in enumerate(pairwise(ends)):
        seen = together.judge(interval([[loss(t) for loss in table] for t in range(a, b)]))
        for run in range(3):
            assert_same(seen, alone[run][k], run)


def test_state_round_trip_through_json():
    guard = DivergenceGuard(1)
    losses = [DIVERGED["all lost again"](t) for t in range(1000)]
    for start in range(0, 1000, 50):
        loaded = DivergenceGuard(1)
        loaded.load_state_dict(json.loads(json.dumps(guard.state_dict())))
        part = interval(losses[start : start + 50])
        assert_same(guard.judge(part), loaded.judge(part))
    assert guard.state_dict()["plain"] == loaded.state_dict()["plain"]
