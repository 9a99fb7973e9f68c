"""Statistics of comparisons against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from pacesetter.experiments.statistics import (
    Interval,
    bootstrap_interval,
    comparable,
    interquartile_mean,
    iqm_over_runs,
    paired_log_ratios,
    quantile_band,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_bootstrap_of_one_stratum_agrees_with_scipy():
    values = rng(1).normal(0.3, 1.0, size=12)
    ours = bootstrap_interval(values[None], generator=rng(2), num_resamples=50_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=50_000, rng=rng(3)
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_keeps_strata_apart():
    # Tasks that differ by far, seeds that do not: resampled within tasks, nothing can vary.
    values = np.repeat(np.array([[0.0], [100.0]]), 5, axis=1)
    found = bootstrap_interval(values, generator=rng())
    assert found == Interval(50.0, 50.0, 50.0)


def test_bootstrap_repeats_with_its_generator_and_covers_more_with_more_confidence():
    values = rng(1).normal(size=(3, 5))
    first, again = (bootstrap_interval(values, generator=rng(4)) for _ in range(2))
    assert first == again
    wide = bootstrap_interval(values, generator=rng(4), confidence=0.99)
    assert wide.low < first.low < first.estimate < first.high < wide.high


def test_bootstrap_coverage():
    """95 % intervals hold the truth about as often as 20 normal values allow."""
    hits = 0
    for trial in range(300):
        values = rng(trial).normal(1.0, 1.0, size=(4, 20))
        found = bootstrap_interval(values, generator=rng(trial + 1000), num_resamples=500)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 < hits / 300 < 0.98


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((0, 5)), np.array([[1.0, np.nan]])], ids=["1d", "empty", "nan"]
)
def test_bootstrap_refuses(values):
    with pytest.raises(ValueError, match="values"):
        bootstrap_interval(values, generator=rng())


@pytest.mark.parametrize("size", [1, 4, 5, 7, 40])
def test_interquartile_mean_agrees_with_scipy(size):
    values = rng(size).normal(size=(3, size))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=-1))
    assert iqm_over_runs(values) == pytest.approx(stats.trim_mean(values.ravel(), 0.25))


def test_log_ratios_are_paired():
    losses, reference = np.array([[1.0, 8.0]]), np.array([[2.0, 4.0]])
    assert paired_log_ratios(losses, reference) == pytest.approx(np.log([[0.5, 2.0]]))
    for bad in (np.array([[1.0, -1.0]]), np.array([[1.0, np.inf]]), np.array([[1.0]])):
        with pytest.raises(ValueError, match=r"log ratios|in pairs"):
            paired_log_ratios(bad, reference)


def test_comparable_of_positive_losses_is_their_log_ratio():
    losses = rng().uniform(0.1, 3.0, size=(3, 2, 4))
    values = comparable(losses, untrained=np.array([2.0, 2.0]))
    for t in range(2):
        expected = paired_log_ratios(losses[1, t : t + 1], losses[0, t : t + 1])
        assert values[1, t] - values[0, t] == pytest.approx(expected[0])


def test_comparable_takes_no_log_of_a_negative_and_no_notice_of_scale():
    losses = rng().normal(size=(3, 1, 4))
    untrained = np.array([5.0])
    values = comparable(losses, untrained=untrained)
    assert values * losses.std() == pytest.approx(losses)
    moved = comparable(7 * losses - 100, untrained=7 * untrained - 100)
    assert np.diff(moved, axis=0) == pytest.approx(np.diff(values, axis=0))


def test_diverged_run_counts_as_untrained_or_as_the_worst():
    losses = np.array([[[1.0, np.nan]], [[3.0, 1.0]]])
    low = comparable(losses, untrained=np.array([2.0]))
    high = comparable(losses, untrained=np.array([10.0]))
    assert low[0, 0, 1] == pytest.approx(np.log(3.0))
    assert high[0, 0, 1] == pytest.approx(np.log(10.0))
    nothing = comparable(np.full((2, 1, 2), np.inf), untrained=np.array([2.0]))
    assert nothing == pytest.approx(np.log(2.0))


def test_comparable_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_tasks"):
        comparable(np.ones((2, 3, 4)), untrained=np.ones(4))
    with pytest.raises(ValueError, match="finite"):
        comparable(np.ones((1, 1, 1)), untrained=np.array([np.nan]))


def test_quantile_band_leaves_out_what_is_unknown():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    median, low, high = quantile_band(values, low=0.0, high=1.0)
    assert (median[0], low[0], high[0]) == (2.0, 1.0, 3.0)
    assert np.isnan([median[1], low[1], high[1]]).all()
