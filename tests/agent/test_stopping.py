"""Early stopping: counts what it should, and nothing else."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacesetter.agent.plugin.decider import EarlyStopping


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
