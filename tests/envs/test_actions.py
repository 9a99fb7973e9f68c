"""The codec: bounds, round trips, and the schedule written out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacesetter.envs.actions import ActionCodec, ControlConfig, base_decay, interval_ends


def codec(total_steps=400, momentum=0.9, *, scales=False, runs=1, options=(), **changes):
    return ActionCodec(
        ControlConfig(**changes),
        total_steps=total_steps,
        momentum_start=np.full(runs, momentum),
        momentum_scales_lr=scales,
        **dict(options),
    )


@given(st.integers(1, 200_000), st.integers(1, 60), st.floats(1.0, 3.0))
def test_intervals_cover_the_run_number_k_and_may_be_denser_early(total_steps, number, power):
    count = number if total_steps >= 2 * number else max(1, total_steps // 2)
    even = interval_ends(total_steps, number)
    assert even == tuple(math.floor(k * total_steps / count) for k in range(1, count + 1))
    ends = interval_ends(total_steps, number, power)
    assert len(ends) == count
    assert ends[-1] == total_steps
    for lengths in (np.diff((0, *even)), np.diff((0, *ends))):
        assert lengths.min() >= min(2, total_steps)
    assert all(early <= late for early, late in zip(ends, even, strict=True))
    # Rounding aside, no interval is shorter than the one before it.
    assert (np.diff(lengths[:-1]) >= -2).all()


def test_doing_nothing_is_a_ramp_and_a_cosine():
    factors = codec(400).lr_factors(0, 400)[:, 0]
    for step in range(400):
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * step / 400)) / 2
        ramp = 0.01 + 0.99 * step / 10 if step < 10 else 1.0
        assert factors[step] == pytest.approx(cosine * ramp, rel=1e-12)
    assert factors[0] == pytest.approx(0.01)


actions = st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), min_size=1, max_size=60)


@given(actions, st.floats(0.001, 0.999), st.booleans())
def test_whatever_the_actions_hyperparameters_stay_in_bounds(sequence, momentum, scales):
    c = codec(momentum=momentum, scales=scales)
    for action in sequence:
        c.apply([action])
        assert abs(c.lr_offset[0]) <= math.log(1e4) + 1e-9
        low = min(momentum, 0.3)
        high = max(momentum, 0.99)
        assert low - 1e-9 <= c.momentum[0] <= high + 1e-9
        assert 0.5 - 1e-9 <= c.clip_ratio[0] <= 20 + 1e-9
        coupling = (1 - c.momentum[0]) / (1 - momentum) if scales else 1.0
        factor = c.lr_factors(200, 1)[0, 0] / coupling
        assert 1e-4 * (1 - 1e-9) <= factor <= 1e4 * (1 + 1e-9)


def test_one_action_moves_each_hyperparameter_by_its_step():
    c = codec(runs=2)
    before = c.lr_factors(200, 1)
    c.apply([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    after = c.lr_factors(200, 1)
    assert after[0, 0] / before[0, 0] == pytest.approx(math.exp(0.35))
    assert after[0, 1] == before[0, 1]
    assert c.momentum == pytest.approx([1 - 0.1 * math.exp(-0.15), 0.9])
    assert c.momentum[1] == 0.9  # exactly the user's own
    assert c.clip_ratio == pytest.approx([4 * math.exp(0.075), 4])


def test_an_action_and_its_opposite_cancel():
    c = codec()
    for action in ([0.5, -0.3, 0.9], [-0.5, 0.3, -0.9]):
        c.apply([action])
    assert c.lr_offset[0] == pytest.approx(0, abs=1e-12)
    assert c.momentum[0] == pytest.approx(0.9)
    assert c.clip_ratio[0] == pytest.approx(4)


def test_momentum_of_sgd_is_no_second_learning_rate():
    c = codec(scales=True)
    before = c.lr_factors(200, 1)[0, 0] / (1 - c.momentum[0])
    c.apply([[0.0, 1.0, 0.0]])
    assert c.momentum[0] < 0.9
    assert c.lr_factors(200, 1)[0, 0] / (1 - c.momentum[0]) == pytest.approx(before)


def test_a_user_without_momentum_keeps_none():
    c = codec(momentum=0.0, scales=True)
    c.apply([[0.0, -1.0, 0.0]])
    assert c.momentum[0] == 0
    assert c.lr_factors(200, 1)[0, 0] == pytest.approx(base_decay(0.5, 0.01))


def test_the_guard_cuts_on_top_of_the_action():
    c = codec(runs=2)
    c.apply([[1.0, 0, 0], [1.0, 0, 0]], lr_cut=np.array([-math.log(2), 0.0]))
    assert c.lr_offset == pytest.approx([0.35 - math.log(2), 0.35])


def test_late_in_a_run_the_rate_may_be_held_but_not_raised_above_its_peak():
    c = codec(runs=2, decision_power=1.0)
    starts = [0, *c.ends[:-1]]
    levels = []
    for k, start in enumerate(starts):
        levels.append(c.lr_factors(start + 9, 1)[0])  # the last step of each interval
        # The first run always raises; the second lowers at first, and then raises.
        c.apply([[1, 0, 0], [-1 if k < 10 else 1, 0, 0]])
    levels = np.array(levels)
    early = np.array(starts) <= 0.4 * 400
    # Until then nothing is in the way: a start that is a hundred times too low can recover.
    assert levels[early][-1, 0] > 100
    assert levels[early][-1, 0] == levels[early][:, 0].max()
    peaks = np.maximum(levels[early].max(axis=0), 1.0)  # the start counts
    assert (levels[~early] <= peaks * 1.001).all()
    # Held against the decay, as far as the bounds of the offset go.
    assert levels[-1, 0] > 0.5 * levels[early][:, 0].max()
    # A run that went down may come back to where it was, its start.
    assert 0.8 < levels[~early][:, 1].max() <= 1.001


def test_the_guard_leaves_a_run_little_headroom():
    c = codec(runs=2)
    c.apply(np.zeros((2, 3)), lr_cut=-math.log(10), headroom=[math.log(3), math.inf])
    cut = np.exp(c.lr_offset)
    for _ in range(20):
        c.apply([[1.0, 0, 0]] * 2)
    raised = c.lr_factors(c.ends[20], 1)[0]
    assert raised[0] <= 3.001 * cut[0]
    assert raised[1] > 10 * cut[1]


def test_narrower_bounds_hold_the_rate():
    c = codec(options={"lr_bounds": (0.5, 2.0)})
    levels = []
    for end, action in zip(c.ends[:-1], [1.0] * 20 + [-1.0] * 19, strict=True):
        c.apply([[action, 0, 0]])
        levels.append(c.lr_factors(end, 1)[0, 0])
    assert 1.9 < max(levels[5:]) <= 2.0
    assert min(levels[5:]) == pytest.approx(0.5)


def test_without_a_ramp_the_first_step_is_a_full_one():
    c = codec(options={"ramp": False})
    assert c.lr_factors(0, 1)[0, 0] == 1.0


@pytest.mark.parametrize("step", [0, 5, 170, 399, 400])
def test_a_later_end_makes_no_jump(step):
    c = codec(400)
    while c.decisions < len(c.ends) and c.ends[c.decisions] <= step:
        c.apply([[0.3, 0.1, 0.0]])
    before = c.lr_factors(min(step, 399), 1)[0, 0]  # at the horizon, the last one holds
    c.extend(1000, step=step)
    assert c.lr_factors(step, 1)[0, 0] == pytest.approx(before, rel=1e-9)
    assert c.ends == codec(1000).ends
    assert c.ends[c.decisions] > step
    assert c.decisions == 0 or c.ends[c.decisions - 1] <= step
    twin = codec(400)
    twin.load_state_dict(c.state_dict())
    for each in (c, twin):  # the peak and the ceiling are kept as well
        each.apply([[1.0, -0.2, 0.1]])
    assert np.array_equal(twin.lr_factors(step, 100), c.lr_factors(step, 100))
    assert twin.ends == c.ends


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: codec().apply([0.0, 0.0, 0.0]), r"shape \(1, 3\), but got \(3,\)"),
        (lambda: codec().apply([[math.nan, 0.0, 0.0]]), "finite"),
        (lambda: codec(0), "positive integer, but got 0"),
        (lambda: ControlConfig(num_intervals=0), "num_intervals must be positive, but got 0"),
        (lambda: ControlConfig(decision_power=0.5), r"must lie in \[1, 4\], but got 0.5"),
        (lambda: ControlConfig(lr_bounds=(2.0, 3.0)), "must hold 1"),
        (lambda: ControlConfig(clip_ratio_bounds=(3.0, 2.0)), "positive and ordered"),
    ],
)
def test_bad_input_is_refused_with_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
