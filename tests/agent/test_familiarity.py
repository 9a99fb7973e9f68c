"""The meter: familiar jobs pass, nonsense does not, and a file keeps it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pacesetter.agent.policy.familiarity import (
    LEFT_OUT,
    STALLED,
    Familiarity,
    FamiliarityMeter,
)
from pacesetter.agent.policy.policy import Policy, parse_policy
from pacesetter.agent.training.meter import collect_features, fit_familiarity, observe_runs
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.inner_models.registry import fixed_task

POLICY = Policy.do_nothing(ControlConfig(num_intervals=12))
FAMILIES = ("logistic", "quadratic")


@pytest.fixture(scope="module")
def seen():
    return collect_features(POLICY, FAMILIES, num_runs=24, seed=3)


@pytest.fixture(scope="module")
def familiarity(seen):
    return fit_familiarity(seen.features, runs=seen.runs)


def flagged(familiarity, features):
    """Which runs of features (decisions, runs, F) are ever unfamiliar."""
    meter = FamiliarityMeter(familiarity, num_runs=features.shape[1])
    return np.any([meter.update(row) for row in features], axis=0)


def test_features_are_collected_reproducibly(seen):
    one, again = (collect_features(POLICY, FAMILIES, num_runs=4, seed=3) for _ in range(2))
    assert np.array_equal(again.features, one.features)
    assert np.array_equal(again.runs, one.runs)
    assert seen.features.shape == (len(seen.runs), NUM_FEATURES)
    assert len(np.unique(seen.runs)) == 24
    for run in np.unique(seen.runs):
        progress = seen.features[seen.runs == run, FEATURE_NAMES.index("progress")]
        assert (np.diff(progress) > 0).all()


def test_typical_distance_is_one(familiarity, seen):
    distance = familiarity.distance(seen.features)
    assert distance.dtype == np.float64
    assert np.median(distance) == pytest.approx(1.0, abs=0.01)
    assert np.quantile(distance, 0.9) == pytest.approx(2.0, abs=0.02)


def test_new_runs_of_the_families_are_familiar_from_any_start(familiarity):
    for family in FAMILIES:
        task = fixed_task(family, 0)
        starts = (3e-5, 1e-4, 1e-3, 1e-2, 3e-2)
        tasks = [task.with_optimizer(lr=lr).with_seed(i) for i, lr in enumerate(starts)]
        assert not flagged(familiarity, observe_runs(POLICY, tasks)).any()


def test_random_features_are_unfamiliar_unless_there_is_no_description(familiarity):
    features = np.random.default_rng(0).uniform(-5, 5, (11, 20, NUM_FEATURES))
    assert flagged(familiarity, features).all()
    assert not flagged(None, features).any()


def test_a_loss_that_never_changes_is_unfamiliar(familiarity, seen):
    usual = np.stack([seen.features[seen.runs == run][:8] for run in range(4)], axis=1)
    meter = FamiliarityMeter(familiarity, num_runs=4)
    columns = [i for i, name in enumerate(FEATURE_NAMES) if "loss_" in name]
    usual[:, 1, columns] = usual[0, 1, columns]  # the second run's loss stands still
    answers = np.stack([meter.update(row) for row in usual])
    assert not answers[:STALLED].any()
    assert answers[STALLED:, 1].all()
    assert not answers[:, [0, 2, 3]].any()


def test_what_a_user_decides_makes_no_job_strange(familiarity, seen):
    changed = seen.features[:50].copy()
    changed[:, [FEATURE_NAMES.index(name) for name in LEFT_OUT]] = 5.0
    assert familiarity.distance(changed) == pytest.approx(familiarity.distance(seen.features[:50]))


def test_distance_is_minus_the_log_density():
    """Against a single Gaussian, written out."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(150, NUM_FEATURES)) * np.linspace(0.5, 2, NUM_FEATURES)
    found = fit_familiarity(features)
    keep = [i for i, name in enumerate(FEATURE_NAMES) if name not in LEFT_OUT]
    x = features[:, keep]
    covariance = np.cov(x.T, bias=True) + 0.1 * np.eye(len(keep))
    gap = x - x.mean(axis=0)
    nll = 0.5 * np.einsum("ni,ij,nj->n", gap, np.linalg.inv(covariance), gap)
    low, high = np.quantile(nll, (0.5, 0.9))
    expected = np.maximum(0, 1 + (nll - low) / (high - low))
    assert found.distance(features) == pytest.approx(expected, abs=1e-4)
    assert found.mean == pytest.approx(features.mean(axis=0), abs=1e-6)


def test_constant_features_do_no_harm():
    features = np.zeros((100, NUM_FEATURES))
    found = fit_familiarity(features, runs=np.arange(100) // 10)
    assert np.isfinite(found.distance(np.concatenate([features, features + 5]))).all()


def test_the_meter_smooths_and_resumes(familiarity, seen):
    rows = seen.features[:6]
    whole = FamiliarityMeter(familiarity)
    expected = 1.0
    for i, row in enumerate(rows):
        whole.update(row[None])
        expected = 0.8 * expected + 0.2 * familiarity.distance(row[None])[0]
        assert whole.distance[0] == pytest.approx(expected)
        if i == 2:
            state = json.loads(json.dumps(whole.state_dict()))
    rest = FamiliarityMeter(familiarity)
    rest.load_state_dict(state)
    for row in rows[3:]:
        rest.update(row[None])
    assert rest.state_dict() == whole.state_dict()


def test_a_policy_file_keeps_the_meter(familiarity, seen):
    policy = POLICY.with_familiarity(familiarity)
    again = parse_policy(policy.to_bytes(), source="file")
    distances = (each.familiarity.distance(seen.features) for each in (policy, again))
    assert np.array_equal(*distances)
    assert again.familiarity.threshold == familiarity.threshold
    assert again.to_bytes() == policy.to_bytes()
    other = replace(familiarity, threshold=2 * familiarity.threshold)
    assert len({POLICY.digest, policy.digest, POLICY.with_familiarity(other).digest}) == 3


def test_what_makes_no_sense_or_cannot_be_fitted_is_refused(familiarity):
    rows = np.zeros((50, NUM_FEATURES))

    def changed(**changes):
        return lambda: Familiarity(**{**vars(familiarity), **changes})

    for refused, message in (
        (changed(threshold=0.0), "must be positive"),
        (changed(scale=float("nan")), "scale must be a finite float"),
        (changed(typical=1), "typical must be a finite float, but got 1"),
        (changed(mean=np.zeros(3)), r"mean needs shape \(32,\), but got \(3,\)"),
        (changed(mean=np.full(NUM_FEATURES, np.inf)), "not finite"),
        (lambda: collect_features(POLICY, [], num_runs=5, seed=0), "family.*but got 0 and 5"),
        (lambda: fit_familiarity(rows, runs=np.zeros(50)), "need at least 8 runs, but got 1"),
        (lambda: fit_familiarity(rows * np.nan), "finite and of shape"),
        (lambda: fit_familiarity(rows, runs=np.zeros(3)), r"runs must have shape \(50,\)"),
        (lambda: familiarity.distance(np.zeros((2, 5))), r"must have shape \(n, 32\)"),
        (lambda: FamiliarityMeter(familiarity).update(rows), r"must have shape \(1, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
