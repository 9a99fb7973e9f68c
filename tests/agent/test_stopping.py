"""What follows from validation losses: early stopping, and a lower rate where they rise."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import Job, start

from pacesetter.agent.plugin.decider import EarlyStopping
from pacesetter.agent.policy.policy import load_policy
from pacesetter.envs.actions import ActionCodec, ControlConfig
from pacesetter.envs.features import FeatureEncoder
from pacesetter.inner_models.watch.signals import IntervalStatistics


def run(stopping, intervals):
    """Feeds lists of losses, one list per interval; returns where it says stop, from 1."""
    stops = []
    for number, losses in enumerate(intervals, start=1):
        for loss in losses:
            stopping.observe(loss)
        stopping.interval_over()
        if stopping.should_stop:
            stops.append(number)
    return stops


def test_stops_when_patience_is_over():
    stopping = EarlyStopping(3)
    assert run(stopping, [[5.0], [4.0], [4.5], [4.1], [4.0], [6.0]]) == [5, 6]
    assert (stopping.best, stopping.waited) == (4.0, 4)
    stopping.observe(0.5)  # takes the stop back at once
    assert not stopping.should_stop
    stopping.interval_over()
    assert (stopping.best, stopping.waited) == (0.5, 0)


@pytest.mark.parametrize(
    ("patience", "intervals", "stops", "best"),
    [
        (1, [[]] * 50, [], None),
        (1, [[math.nan], [math.inf], [-math.inf]] * 20, [], None),
        # Intervals without a validation do not count.
        (2, [[1.0], [], [], [2.0], [], [], [2.0], [], []], [7, 8, 9], 1.0),
        # Of several losses in an interval the best counts.
        (1, [[3.0], [9.0, 2.0, 8.0], [7.0, 1.0], [1.5, 1.0]], [4], 1.0),
        # Broken losses are no better than the best.
        (2, [[1.0], [math.nan], [-math.inf]], [3], 1.0),
        (2, [[1.0], [math.inf], [math.inf]], [3], 1.0),
        (None, [[1.0], *[[2.0]] * 100], [], 1.0),
    ],
)
def test_when_it_stops(patience, intervals, stops, best):
    stopping = EarlyStopping(patience)
    assert run(stopping, intervals) == stops
    assert stopping.best == best


losses = st.one_of(st.floats(-5, 5), st.sampled_from([math.nan, math.inf]))


@given(st.lists(st.lists(losses, max_size=3), max_size=30), st.integers(0, 30))
def test_state_goes_on_at_any_point(intervals, cut):
    first, second = EarlyStopping(3), EarlyStopping(3)
    run(first, intervals[:cut])
    first.observe(-1.0)  # in the middle of an interval
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    assert run(second, intervals[cut:]) == run(first, intervals[cut:])


def observed(*losses: float | None) -> list[bool]:
    """Whether a run overfits after each of its validation losses, one (or None) per interval."""
    codec = ActionCodec(
        ControlConfig(), total_steps=400, momentum_start=[0.9], momentum_scales_lr=False
    )
    encoder = FeatureEncoder(1, adaptive=True)
    answers = []
    for interval, loss in enumerate(losses, start=1):
        if loss is not None:
            encoder.observe_validation(np.array([loss]))
        encoder.encode(_stats(1.0 / interval), codec, interval=interval)
        answers.append(bool(encoder.overfitting[0]))
    return answers


def _stats(loss: float) -> IntervalStatistics:
    """An interval in which all but the loss is one."""
    names = IntervalStatistics.__dataclass_fields__.keys() - {"losses", "norms"}
    return IntervalStatistics(
        **{name: np.ones(1) for name in names} | {"loss_mean": np.array([loss])}
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((2.0, 1.0, 1.02, 1.04), [False, False, False, True]),  # 3 % of a fall of 1
        ((2.0, 1.0, 1.04, 0.9), [False, False, True, False]),
        ((2.0, 1.0, 1.5, None, None), [False, False, True, True, False]),  # too old to go by
        ((None, None), [False, False]),
        ((1.0, 1.1), [False, True]),  # it never fell
        ((-2.0, -3.0, -2.9), [False, False, True]),
    ],
)
def test_when_a_run_overfits(losses, expected):
    assert observed(*losses) == expected
    # An affine change of the loss changes nothing.
    scaled = [None if loss is None else 1e3 * loss - 7 for loss in losses]
    assert observed(*scaled) == expected


def test_in_a_job_too_and_the_history_says_so():
    # Without its meter: this job may look strange to it, which is not what is asked.
    policy = load_policy("default").with_familiarity(None)
    job, scheduler = start(80, policy, job=Job(lr=1e-3))
    for step in range(80):
        # Falls for a quarter of the run, and rises from then on.
        scheduler.observe_validation(abs(step - 20) / 20)
        job.update(scheduler)
    actions = np.array([decision.action[0] for decision in scheduler.history])
    steps = np.array([decision.step for decision in scheduler.history])
    assert (actions[steps > 22] == -1).all()
    assert (actions[steps < 20] > -1).any()
    kinds = [intervention.kind for intervention in scheduler.history.interventions]
    assert kinds.count("overfitting") == 1
