"""Statistics of comparisons against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from pacesetter.experiments.analysis.statistics import (
    Resamples,
    bootstrap_p_value,
    comparable,
    critical_difference,
    fill_diverged,
    friedman_p_value,
    holm,
    improvement_probabilities,
    interquartile_mean,
    iqm_over_runs,
    mean_ranks,
    performance_profile,
    share_interval,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def interval(values, *, seed):
    return Resamples.draw(*values.shape, generator=rng(seed)).interval(values)


BOTH = Resamples.draw(10, 8, generator=rng())
"""Resamples of 10 tasks and 8 seeds."""
WITHIN = Resamples(np.broadcast_to(np.arange(10), BOTH.tasks.shape), BOTH.seeds)
"""Such that keep every task."""


def test_bootstrap_of_one_task_agrees_with_scipy_and_repeats():
    values = rng(1).normal(0.3, 1.0, size=(1, 12))
    ours = interval(values, seed=2)
    options = {"method": "percentile", "n_resamples": 10_000, "rng": rng(3)}
    theirs = stats.bootstrap((values[0],), np.mean, **options).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert interval(values, seed=2) == ours


@pytest.mark.parametrize("size", [1, 4, 7])
def test_interquartile_mean_agrees_with_scipy(size):
    values = rng(size).normal(size=(3, size))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=-1))
    assert iqm_over_runs(values) == pytest.approx(stats.trim_mean(values.ravel(), 0.25))


def test_comparable_of_positive_losses_is_their_log_ratio():
    losses = rng().uniform(0.1, 3.0, size=(3, 2, 4))
    values = comparable(losses, untrained=np.array([2.0, 2.0]))
    for t in range(2):
        assert values[1, t] - values[0, t] == pytest.approx(np.log(losses[1, t] / losses[0, t]))


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
    assert fill_diverged(losses, untrained=np.array([2.0]))[0, 0].tolist() == [1.0, 3.0]
    assert high[0, 0, 1] == pytest.approx(np.log(10.0))
    nothing = comparable(np.full((2, 1, 2), np.inf), untrained=np.array([2.0]))
    assert nothing == pytest.approx(np.log(2.0))


def test_comparable_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_tasks"):
        comparable(np.ones((2, 3, 4)), untrained=np.ones(4))
    with pytest.raises(ValueError, match="finite"):
        comparable(np.ones((1, 1, 1)), untrained=np.array([np.nan]))


def rliable_values():
    generator = rng(5)
    ours = generator.normal(size=(10, 8)) + generator.normal(size=(10, 1))
    return ours, generator.normal(size=(10, 8)) + 0.3


@pytest.mark.parametrize(
    ("draws", "iqm", "mean"),
    [
        (WITHIN, (-0.71758, -0.94993, -0.48499), (-0.70535, -0.88836, -0.52425)),
        (BOTH, (-0.71758, -1.35730, -0.06755), (-0.70535, -1.23431, -0.17138)),
    ],
    ids=["seeds", "tasks and seeds"],
)
def test_intervals_are_those_of_rliable(draws, iqm, mean):
    """Numbers from rliable 1.2.0: `get_interval_estimates` with `task_bootstrap` off and on."""
    ours, _ = rliable_values()
    for expected, statistic in ((iqm, (iqm_over_runs,)), (mean, ())):
        found = draws.interval(ours, *statistic)
        assert (found.estimate, found.low, found.high) == pytest.approx(expected, abs=0.03)


def test_a_single_run_has_no_interval():
    found = interval(np.array([[-3.0]]), seed=0)
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert 1.0 <= interval(np.array([[1.0], [2.0], [4.0]]), seed=0).high <= 4.0


def test_bootstrap_p_value_goes_with_the_interval():
    draws = Resamples.draw(5, 6, generator=rng(0))
    noise = rng(1).normal(size=(5, 6))
    seen = set()
    for shift in np.linspace(-1.5, 1.5, 60):
        values = noise + shift
        found = draws.interval(values)
        p_value = bootstrap_p_value(draws.means(values))
        assert (p_value < 0.05) == (found.high < 0 or found.low > 0)
        seen.add(p_value < 0.05)
    assert seen == {True, False}
    assert bootstrap_p_value(np.zeros(99)) == 1.0


def test_holm_rejects_what_its_steps_reject():
    """Against the procedure as Holm wrote it: go on while p < alpha / what is left."""
    for trial in range(50):
        p_values = rng(trial).uniform(0, 0.1, size=7)
        corrected = holm(p_values.tolist())
        rejected = set()
        for left, i in zip(range(7, 0, -1), np.argsort(p_values), strict=True):
            if p_values[i] >= 0.05 / left:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(corrected) if p < 0.05} == rejected
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_probability_of_improvement_agrees_with_scipy_and_rliable():
    ours, rival = rliable_values()
    found, tied = improvement_probabilities(-ours, np.stack((-rival, -ours)), resamples=WITHIN)
    expected = [stats.mannwhitneyu(x, y).statistic / 64 for x, y in zip(ours, rival, strict=True)]
    assert found.estimate == pytest.approx(np.mean(expected))
    # rliable 1.2.0 gives 0.2609 [0.1875, 0.3375]; it does not resample in pairs.
    ends = (0.26094, 0.1875, 0.3375)
    assert (found.estimate, found.low, found.high) == pytest.approx(ends, abs=0.02)
    assert (tied.estimate, tied.low) == (0.5, pytest.approx(0.5))
    both = Resamples.draw(10, 8, generator=rng(0), num_resamples=40)
    (wide,) = improvement_probabilities(-ours, -rival[None], resamples=both)
    plain = []
    for tasks, seeds in zip(both.tasks, both.seeds, strict=True):
        pairs = [
            (ours[t, s][:, None] > rival[t, s][None]).mean()
            for t, s in zip(tasks, seeds, strict=True)
        ]
        plain.append(np.mean(pairs))
    assert (wide.low, wide.high) == pytest.approx(tuple(np.quantile(plain, (0.025, 0.975))))


def test_performance_profile_is_the_share_of_runs_above():
    ours, _ = rliable_values()
    thresholds = np.linspace(-2, 2, 5)
    share, low, high = performance_profile(ours, thresholds, resamples=WITHIN)
    # rliable 1.2.0, `create_performance_profile` of the same data.
    assert share == pytest.approx([0.825, 0.575, 0.2875, 0.0625, 0.0125])
    assert share == pytest.approx([(ours > t).mean() for t in thresholds])
    assert low == pytest.approx([0.75, 0.5, 0.2125, 0.025, 0.0], abs=0.014)
    assert high == pytest.approx([0.8875, 0.65, 0.375, 0.1125, 0.0375], abs=0.014)


def test_ranks_and_friedman_agree_with_scipy():
    losses = rng(3).normal(size=(4, 9)) + np.arange(4)[:, None]
    expected = np.mean([stats.rankdata(column) for column in losses.T], axis=0)
    assert mean_ranks(losses) == pytest.approx(expected)
    # Friedman's statistic from its formula, and its p-value from the chi-square distribution.
    statistic = 12 * 9 / (4 * 5) * (np.square(expected).sum() - 4 * 25 / 4)
    assert friedman_p_value(losses) == pytest.approx(stats.chi2.sf(statistic, 3))
    assert mean_ranks(np.ones((3, 4))).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("arms", "quantile"), [(2, 1.960), (10, 3.164)])
def test_critical_difference_has_the_quantiles_of_demsar(arms, quantile):
    """Table 5 of Demšar 2006."""
    expected = quantile * np.sqrt(arms * (arms + 1) / (6 * 12))
    assert critical_difference(arms, 12) == pytest.approx(expected, rel=1e-3)


def test_share_has_an_interval_even_where_nothing_happened():
    draws = Resamples.draw(2, 10, generator=rng())
    none = share_interval(np.zeros((2, 10), dtype=bool), draws)
    wilson = stats.binomtest(0, 20).proportion_ci(method="wilson")
    assert (none.estimate, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(wilson.high)
    # One task always, one never: seeds say little about the next task.
    split = share_interval(np.repeat([[True], [False]], 10, axis=1), draws)
    assert (split.estimate, split.low, split.high) == (0.5, 0.0, 1.0)
