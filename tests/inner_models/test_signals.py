"""Statistics of losses and gradients: against a plain reference, on host and device alike."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pacesetter.inner_models.engine.cuda_graphs import GraphedSteps
from pacesetter.inner_models.watch.signals import (
    COUNTED_AT_MOST,
    NO_GRADIENT,
    NORM_RATE,
    HostSignals,
    IntervalStatistics,
    TrainingSignals,
)

NAMES = [f.name for f in fields(IntervalStatistics)]
ABSURD = 1e150


def finite(value):
    return abs(value) < ABSURD


class SlowSignals:
    """One run, written out."""

    def __init__(self):
        self.mean, self.count = 0.0, 0
        self.steps, self.windows = [], []

    def record(self, loss, norm, ratio):
        threshold = self.mean * ratio if self.count else math.inf
        clipped = finite(norm) and norm > threshold
        if finite(norm) and norm > 0:
            counted = min(norm, COUNTED_AT_MOST * self.mean) if self.count else norm
            self.count += 1
            self.mean += max(1 / self.count, NORM_RATE) * (counted - self.mean)
        self.steps.append((loss, norm, clipped))
        return (threshold / norm if clipped else 1.0), threshold, finite(norm)

    def summary(self):
        losses = [x for x, _, _ in self.steps if finite(x)]
        norms = [n for _, n, _ in self.steps if finite(n)]
        known = []
        for _, grad_sq, row in self.windows:
            if row is None or grad_sq == 0:
                continue
            gm, mm, gu, uu, size = row
            if mm > 0 and uu > 0:
                known.append((gm / math.sqrt(grad_sq * mm), gu / math.sqrt(grad_sq * uu), size))
        mean = [float(np.mean(c)) for c in zip(*known, strict=True)] if known else [math.nan] * 3
        return {
            "loss_mean": np.mean(losses) if losses else math.nan,
            "loss_std": np.std(losses) if losses else math.nan,
            "norm_mean": np.mean(norms) if norms else math.nan,
            "norm_std": np.std(norms) if norms else math.nan,
            "clipped_share": np.mean([c for _, _, c in self.steps]),
            "nonfinite_share": np.mean([not (finite(x) and finite(n)) for x, n, _ in self.steps]),
            "cos_momentum": mean[0],
            "cos_update": mean[1],
            "update_norm": mean[2],
            "param_norm": np.mean([math.sqrt(p) for p, _, _ in self.windows]),
            "norm_running": self.mean,
        }


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_steps(rng, steps, num_runs):
    """Losses and norms of some runs, with a few that are broken or zero."""
    losses = 3 + rng.normal(size=(steps, num_runs))
    norms = rng.lognormal(sigma=1.5, size=(steps, num_runs))
    for table in (losses, norms):
        broken = rng.random(table.shape) < 0.1
        table[broken] = rng.choice([math.nan, math.inf, 1e200], size=broken.sum())
    norms[rng.random(norms.shape) < 0.1] = 0.0
    losses[:, 1] = math.nan  # a run that never had a finite loss
    return losses, norms


def random_window(rng, num_runs):
    vectors = rng.normal(size=(3, num_runs, 5))
    vectors[0, 0] = 0.0  # a gradient without direction
    grad, momentum, update = vectors
    dots = [(a * b).sum(1) for a, b in ((grad, momentum), (momentum, momentum), (grad, update))]
    update_sq = (update * update).sum(1)
    return (grad * grad).sum(1), [*dots, update_sq, 1e-3 * np.sqrt(update_sq)]


def test_statistics_equal_a_plain_reference_over_several_intervals():
    rng, num_runs = np.random.default_rng(0), 5
    signals = TrainingSignals(num_runs, device="cpu")
    slow = [SlowSignals() for _ in range(num_runs)]
    for interval, steps in enumerate((1, 30, 7, 100)):
        losses, norms = random_steps(rng, steps, num_runs)
        ratio = rng.uniform(0.5, 2.0, size=num_runs)
        for step in range(steps):
            told = signals.record_gradient(tensor(norms[step]), tensor(ratio))
            if step >= steps - 3:
                grad_sq, rows = random_window(rng, num_runs)
                known = interval > 0
                signals.record_window(
                    param_sq=tensor(np.full(num_runs, 4.0 + step)),
                    grad_sq=tensor(grad_sq),
                    directions=tuple(tensor(r) for r in rows) if known else None,
                )
                for i, s in enumerate(slow):
                    row = [float(r[i]) for r in rows] if known else None
                    s.windows.append((4.0 + step, float(grad_sq[i]), row))
            signals.record_loss(tensor(losses[step]))
            for i, s in enumerate(slow):
                expected = s.record(float(losses[step, i]), float(norms[step, i]), float(ratio[i]))
                for seen, wanted in zip(told, expected, strict=True):
                    assert float(seen[i]) == pytest.approx(float(wanted), rel=1e-12)
        stats = signals.fetch()
        np.testing.assert_array_equal(stats.losses, losses)
        np.testing.assert_array_equal(stats.norms, norms)
        for i, s in enumerate(slow):
            for name, value in s.summary().items():
                seen = getattr(stats, name)[i]
                np.testing.assert_allclose(seen, value, rtol=1e-10, atol=1e-12, err_msg=name)
            s.steps, s.windows = [], []


numbers = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30, 1e149, 1e151, 1e308, 5e-324]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
norms = st.one_of(numbers.map(abs), st.just(NO_GRADIENT))
windows = st.one_of(st.none(), st.tuples(norms, norms, st.lists(numbers, min_size=5, max_size=5)))
steps = st.lists(st.tuples(numbers, norms, st.floats(0.5, 20.0), windows), max_size=40)


def feed(signals, step):
    """One step into either twin; returns what it says."""
    loss, norm, ratio, window = step
    on_host = isinstance(signals, HostSignals)

    def made(x):
        return x if on_host else tensor([x])

    told = signals.record_gradient(made(norm), made(ratio))
    if window is not None:
        param_sq, grad_sq, row = window
        signals.record_window(
            param_sq=made(param_sq), grad_sq=made(grad_sq), directions=tuple(map(made, row))
        )
    signals.record_loss(made(loss))
    return [float(t) for t in told]


@settings(deadline=None, max_examples=40)
@given(st.lists(steps, min_size=1, max_size=3))
def test_host_and_device_agree_bit_for_bit_whatever_comes(intervals):
    host, device = HostSignals(), TrainingSignals(1, device="cpu")
    for interval in intervals:
        for step in interval:
            np.testing.assert_array_equal(feed(host, step), feed(device, step))
        one, two = host.fetch(), device.fetch()
        for name in NAMES:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
            if name not in ("losses", "norms"):
                assert getattr(one, name).shape == (1,)
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


def test_a_step_without_a_gradient_is_not_broken_and_moves_no_threshold():
    for signals in (HostSignals(), TrainingSignals(1, device="cpu")):
        feed(signals, (1.0, 2.0, 4.0, None))
        feed(signals, (2.0, NO_GRADIENT, 4.0, None))
        signals.record_loss(3.0 if isinstance(signals, HostSignals) else tensor([3.0]))
        stats = signals.fetch()
        assert stats.nonfinite_share == stats.clipped_share == 0
        assert stats.loss_mean == stats.norm_mean == stats.norm_running == 2
        np.testing.assert_array_equal(stats.norms[:, 0], [2.0, math.nan, math.nan])


@pytest.mark.parametrize("kinds", [(HostSignals, None), (None, HostSignals), (None, None)])
@pytest.mark.parametrize("cut", [0, 1, 17, 29])
def test_state_goes_on_in_the_middle_of_an_interval_bit_for_bit(kinds, cut):
    first, second = (k() if k else TrainingSignals(1, device="cpu") for k in kinds)
    rng = np.random.default_rng(1)
    losses, norms = random_steps(rng, 60, 2)
    window = (2.0, 1.0, [0.5, 1.0, 0.25, 1.0, 0.1])
    table = [(losses[i, 0], norms[i, 0], 0.8, window if i % 9 == 0 else None) for i in range(60)]
    for step in table[:25]:
        feed(first, step)
    first.fetch()
    for step in table[25 : 25 + cut]:
        feed(first, step)
    feed(second, (9.0, 9.0, 4.0, window))  # what it held before is forgotten
    second.load_state_dict(first.state_dict())
    for step in table[25 + cut :]:
        np.testing.assert_array_equal(feed(first, step), feed(second, step))
    one, two = first.fetch(), second.fetch()
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_state_between_gradient_and_loss_keeps_the_gradient():
    host, device = HostSignals(), TrainingSignals(1, device="cpu")
    host.record_gradient(3.0, 4.0)
    device.load_state_dict(host.state_dict())
    device.record_loss(tensor([1.0]))
    assert device.fetch().norms == 3.0
    device.record_gradient(tensor([5.0]), tensor([4.0]))
    host.load_state_dict(device.state_dict())
    host.record_loss(1.0)
    assert host.fetch().norms == 5.0


@pytest.mark.parametrize("kind", [HostSignals, TrainingSignals])
def test_rows_can_be_averaged_over_processes_before_anything_is_made_of_them(kind):
    def make():
        return HostSignals() if kind is HostSignals else TrainingSignals(1, device="cpu")

    window = (2.0, 1.0, [0.5, 1.0, 0.25, 1.0, 0.1])
    tables = [[(float(i + shift), 1.0 + i, 4.0, window) for i in range(5)] for shift in (0.0, 10.0)]
    sent = []
    other = make()
    for step in tables[1]:
        feed(other, step)
    other.fetch(lambda rows: sent.append(rows) or rows)
    signals = make()
    for step in tables[0]:
        feed(signals, step)
    stats = signals.fetch(lambda rows: (rows + sent[0]) / 2)
    np.testing.assert_array_equal(stats.losses[:, 0], np.arange(5) + 5.0)
    np.testing.assert_array_equal(stats.norms[:, 0], np.arange(5) + 1.0)
    assert stats.cos_momentum == 0.5


def test_tables_that_were_made_ready_do_not_move_and_recorded_steps_can_be_replayed():
    """As the trainer's CUDA graphs do: the host sees one step recorded, the device takes many."""
    signals, seen = TrainingSignals(2, device="cpu"), []

    def step(lr, columns, momentum, ratio, in_window, has_history):
        signals.record_gradient(columns[0], ratio)
        signals.record_loss(lr[:, 0])

    graphed = GraphedSteps(step, device=torch.device("cpu"))
    for steps in (3, 5, 90, 40):
        moved = signals.begin_interval(steps)
        seen.append(moved)
        lr = torch.rand(steps, 2, 1, dtype=torch.float64)
        norms = torch.rand(steps, 2, dtype=torch.float64)
        ones = torch.ones(2, dtype=torch.float64)
        step_now = graphed.begin(lr, [norms], constants=(ones[:, None], ones))
        held = signals._rows.data_ptr()
        for i in range(steps):
            step_now(lr[i], [norms[i]], ones, ones, False, False)
            signals._steps = min(signals._steps, 1)  # a replay runs no Python
        assert signals._rows.data_ptr() == held
        stats = signals.fetch()
        np.testing.assert_array_equal(stats.losses, lr[:, :, 0].numpy())
        np.testing.assert_array_equal(stats.norms, norms.numpy())
    assert seen == [False, False, True, False]


@pytest.mark.gpu
def test_recorded_steps_are_replayed_by_a_gpu():
    signals = TrainingSignals(2, device="cuda")
    norm, loss = torch.ones(2, device="cuda").double(), torch.zeros(2, device="cuda").double()
    ratio = torch.full((2,), 4.0, device="cuda").double()
    signals.begin_interval(20)
    signals.record_gradient(norm, ratio)
    signals.record_loss(loss)
    signals.fetch()
    signals.begin_interval(20)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        signals.record_gradient(norm, ratio)
        signals.record_loss(loss)
        loss.add_(1.0)
    for _ in range(20):
        graph.replay()
    stats = signals.fetch()
    np.testing.assert_array_equal(stats.losses[:, 0], np.arange(20.0))
    assert (stats.norms == 1).all()
