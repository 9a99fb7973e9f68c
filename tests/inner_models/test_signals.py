"""Statistics of losses and gradients: against a plain reference, on host and device alike."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pacesetter.inner_models.watch.signals import (
    COUNTED_AT_MOST,
    NO_GRADIENT,
    NORM_RATE,
    HostSignals,
    IntervalStatistics,
    TrainingSignals,
)

NAMES = [f.name for f in fields(IntervalStatistics)]
KINDS = (HostSignals, TrainingSignals)
WINDOW = (2.0, 1.0, [0.5, 1.0, 0.25, 1.0, 0.1])


def finite(value):
    return abs(value) < 1e150


class SlowSignals:
    """One run, written out."""

    def __init__(self):
        self.mean, self.count, self.steps = 0.0, 0, []

    def record(self, loss, norm, ratio, window):
        threshold = self.mean * ratio if self.count else math.inf
        clipped = finite(norm) and norm > threshold
        if finite(norm) and norm > 0:
            counted = min(norm, COUNTED_AT_MOST * self.mean) if self.count else norm
            self.count += 1
            self.mean += max(1 / self.count, NORM_RATE) * (counted - self.mean)
        self.steps.append((loss, norm, clipped, window))
        return (threshold / norm if clipped else 1.0), threshold, finite(norm)

    def summary(self):
        losses, norms, clipped, windows = zip(*self.steps, strict=True)
        windows = [w for w in windows if w is not None]
        known = []
        for _, grad_sq, row in windows:
            if row is not None and grad_sq > 0:
                gm, mm, gu, uu, size = row
                known.append((gm / math.sqrt(grad_sq * mm), gu / math.sqrt(grad_sq * uu), size))
        cosines = np.mean(known, axis=0) if known else [math.nan] * 3
        stats = dict(zip(("cos_momentum", "cos_update", "update_norm"), cosines, strict=True))
        for name, values in (("loss", losses), ("norm", norms)):
            kept = list(filter(finite, values)) or [math.nan]
            stats |= {f"{name}_mean": np.mean(kept), f"{name}_std": np.std(kept)}
        return stats | {
            "clipped_share": np.mean(clipped),
            "nonfinite_share": np.mean([not finite(x) for x in np.maximum(losses, norms)]),
            "param_norm": np.mean([math.sqrt(w[0]) for w in windows]),
            "norm_running": self.mean,
        }


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def make(kind):
    return HostSignals() if kind is HostSignals else TrainingSignals(1, device="cpu")


def assert_same(one, two):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def random_step(rng, num_runs):
    """A step of some runs, a few of which are broken or zero."""
    losses, norms = 3 + rng.normal(size=num_runs), rng.lognormal(sigma=1.5, size=num_runs)
    for values in (losses, norms):
        broken = rng.random(num_runs) < 0.1
        values[broken] = rng.choice([math.nan, math.inf, 1e200], size=broken.sum())
    norms[rng.random(num_runs) < 0.1] = 0.0
    grad, momentum, update = rng.normal(size=(3, num_runs, 5))
    pairs = ((grad, momentum), (momentum, momentum), (grad, update), (update, update))
    rows = [*((a * b).sum(1) for a, b in pairs), rng.uniform(1e-3, 1e-2, num_runs)]
    window = (rng.uniform(1, 9, num_runs), (grad * grad).sum(1), rows)
    return losses, norms, rng.uniform(0.5, 2.0, num_runs), window


def feed(signals, step):
    """One step into either twin; returns what it says."""
    loss, norm, ratio, window = step

    def made(x):
        return x if isinstance(signals, HostSignals) else tensor(np.atleast_1d(x))

    told = signals.record_gradient(made(norm), made(ratio))
    if window is not None:
        param_sq, grad_sq, row = window
        directions = None if row is None else tuple(map(made, row))
        signals.record_window(param_sq=made(param_sq), grad_sq=made(grad_sq), directions=directions)
    signals.record_loss(made(loss))
    return np.array([np.asarray(t, dtype=float).reshape(-1) for t in told])


def test_statistics_equal_a_plain_reference_over_several_intervals():
    rng = np.random.default_rng(0)
    signals, slow = TrainingSignals(5, device="cpu"), [SlowSignals() for _ in range(5)]
    for interval, count in enumerate((1, 30, 7, 100)):
        for i in range(count):
            loss, norm, ratio, (param_sq, grad_sq, rows) = random_step(rng, 5)
            loss[1] = math.nan  # a run that never has a finite loss
            grad_sq[0] = 0.0  # a gradient without direction
            window = (param_sq, grad_sq, rows if interval else None) if i >= count - 3 else None
            told = feed(signals, (loss, norm, ratio, window))
            for run, one in enumerate(slow):
                row = [r[run] for r in rows] if interval else None
                own = window and (param_sq[run], grad_sq[run], row)
                expected = one.record(loss[run], norm[run], ratio[run], own)
                assert told[:, run] == pytest.approx(np.array(expected, float), rel=1e-12)
        stats = signals.fetch()
        for run, one in enumerate(slow):
            np.testing.assert_array_equal(stats.losses[:, run], [step[0] for step in one.steps])
            np.testing.assert_array_equal(stats.norms[:, run], [step[1] for step in one.steps])
            for name, value in one.summary().items():
                seen = getattr(stats, name)[run]
                np.testing.assert_allclose(seen, value, rtol=1e-10, atol=1e-12, err_msg=name)
            one.steps = []


numbers = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30, 1e149, 1e151, 1e308, 5e-324]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
norms = st.one_of(numbers.map(abs), st.just(NO_GRADIENT))
windows = st.one_of(st.none(), st.tuples(norms, norms, st.lists(numbers, min_size=5, max_size=5)))
steps = st.lists(st.tuples(numbers, norms, st.floats(0.5, 20.0), windows), max_size=40)


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, min_size=1, max_size=3))
def test_host_and_device_agree_bit_for_bit_whatever_comes(intervals):
    host, device = map(make, KINDS)
    for interval in intervals:
        for step in interval:
            np.testing.assert_array_equal(feed(host, step), feed(device, step))
        one = host.fetch()
        assert_same(one, device.fetch())
        assert 0 <= one.clipped_share <= 1
        assert 0 <= one.nonfinite_share <= 1
        assert one.losses.shape == one.norms.shape == (len(interval), 1)


def test_values_that_are_all_the_same_have_no_spread_and_large_constants_hide_none():
    for constant in (0.1, -7e12, 1e100):
        signals = HostSignals()
        for _ in range(33):
            signals.record_gradient(abs(constant), 4.0)
            signals.record_loss(constant)
        stats = signals.fetch()
        assert stats.loss_mean == constant
        assert stats.loss_std == stats.norm_std == 0
    for step in range(10):
        signals.record_loss(1e9 + step % 2)
    stats = signals.fetch()
    assert stats.loss_std == 0.5
    assert stats.loss_mean == 1e9 + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_a_gradient_is_not_broken_and_moves_no_threshold(kind):
    signals = make(kind)
    feed(signals, (1.0, 2.0, 4.0, None))
    feed(signals, (2.0, NO_GRADIENT, 4.0, None))
    signals.record_loss(3.0 if kind is HostSignals else tensor([3.0]))
    stats = signals.fetch()
    assert stats.nonfinite_share == stats.clipped_share == 0
    assert stats.loss_mean == stats.norm_mean == stats.norm_running == 2
    np.testing.assert_array_equal(stats.norms[:, 0], [2.0, math.nan, math.nan])


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1], KINDS[1:] * 2])
@pytest.mark.parametrize("cut", [0, 1, 17, 29])
def test_state_goes_on_in_the_middle_of_an_interval_bit_for_bit(kinds, cut):
    first, second = map(make, kinds)
    rng, table = np.random.default_rng(1), []
    for i in range(60):
        loss, norm, _, _ = random_step(rng, 1)
        table.append((float(loss[0]), float(norm[0]), 0.8, None if i % 9 else WINDOW))
    for step in table[:25]:
        feed(first, step)
    first.fetch()
    for step in table[25 : 25 + cut]:
        feed(first, step)
    feed(second, (9.0, 9.0, 4.0, WINDOW))  # what it held before is forgotten
    second.load_state_dict(first.state_dict())
    for step in table[25 + cut :]:
        np.testing.assert_array_equal(feed(first, step), feed(second, step))
    assert_same(first.fetch(), second.fetch())


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]])
def test_state_between_gradient_and_loss_keeps_the_gradient(kinds):
    first, second = map(make, kinds)
    three, four = (x if kinds is KINDS else tensor([x]) for x in (3.0, 4.0))
    first.record_gradient(three, four)
    second.load_state_dict(first.state_dict())
    second.record_loss(tensor([1.0]) if kinds is KINDS else 1.0)
    assert second.fetch().norms == 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_rows_can_be_averaged_over_processes_before_anything_is_made_of_them(kind):
    sent = []
    signals, other = make(kind), make(kind)
    for i in range(5):
        feed(signals, (float(i), 1.0 + i, 4.0, WINDOW))
        feed(other, (i + 10.0, 1.0 + i, 4.0, WINDOW))
    other.fetch(lambda rows: sent.append(rows) or rows)
    stats = signals.fetch(lambda rows: (rows + sent[0]) / 2)
    np.testing.assert_array_equal(stats.losses[:, 0], np.arange(5) + 5.0)
    np.testing.assert_array_equal(stats.norms[:, 0], np.arange(5) + 1.0)
    assert stats.cos_momentum == 0.5


def test_tables_that_were_made_ready_do_not_move_and_recorded_steps_can_be_replayed():
    """As the trainer's CUDA graphs do: the host sees one step recorded, the device takes many."""
    signals, seen = TrainingSignals(2, device="cpu"), []
    for steps in (3, 5, 90, 40):
        seen.append(signals.begin_interval(steps))
        losses, norms = torch.rand(2, steps, 2, dtype=torch.float64)
        held = signals._rows.data_ptr()
        for loss, norm in zip(losses, norms, strict=True):
            signals.record_gradient(norm, torch.ones(2, dtype=torch.float64))
            signals.record_loss(loss)
            signals._steps = min(signals._steps, 1)  # a replay runs no Python
        assert signals._rows.data_ptr() == held
        stats = signals.fetch()
        np.testing.assert_array_equal(stats.losses, losses.numpy())
        np.testing.assert_array_equal(stats.norms, norms.numpy())
    assert seen == [False, False, True, False]


@pytest.mark.gpu
def test_recorded_steps_are_replayed_by_a_gpu():
    signals, graph = TrainingSignals(2, device="cuda"), torch.cuda.CUDAGraph()
    norm, loss, ratio = (torch.full((2,), x, device="cuda").double() for x in (1.0, 0.0, 4.0))

    def step():
        signals.record_gradient(norm, ratio)
        signals.record_loss(loss)

    signals.begin_interval(20)
    step()
    signals.fetch()
    signals.begin_interval(20)
    with torch.cuda.graph(graph):
        step()
        loss.add_(1.0)
    for _ in range(20):
        graph.replay()
    stats = signals.fetch()
    np.testing.assert_array_equal(stats.losses[:, 0], np.arange(20.0))
    assert (stats.norms == 1).all()
