"""The encoder: invariances, bounds, and values recomputed by hand."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacesetter.envs.actions import ActionCodec, ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, FEATURE_NAMES, FEATURES, FeatureEncoder
from pacesetter.inner_models.watch.signals import IntervalStatistics

NAMES = [f.name for f in fields(IntervalStatistics)]


def make_codec(runs=1):
    return ActionCodec(
        ControlConfig(),
        total_steps=400,
        momentum_start=np.full(runs, 0.9),
        momentum_scales_lr=False,
    )


def statistics(**values):
    base = {
        "loss_mean": 1.0,
        "loss_std": 0.1,
        "norm_mean": 2.0,
        "norm_std": 0.5,
        "norm_running": 2.0,
        "clipped_share": 0.1,
        "nonfinite_share": 0.0,
        "cos_momentum": 0.4,
        "cos_update": 0.2,
        "update_norm": 0.01,
        "param_norm": 5.0,
    }
    return IntervalStatistics(**{n: np.array([v]) for n, v in {**base, **values}.items()})


def encode_all(sequence, valid=None, adaptive=True):
    codec, encoder, rows = make_codec(), FeatureEncoder(1, adaptive=adaptive), []
    for k, stats in enumerate(sequence):
        if valid is not None and valid[k] is not None:
            encoder.observe_validation(np.array([valid[k]]))
        rows.append(encoder.encode(stats, codec, interval=k + 1)[0])
    return np.array(rows)


def raw(row):
    return {f.name: value * f.scale + f.centre for f, value in zip(FEATURES, row, strict=True)}


anything = st.one_of(
    st.floats(-1e30, 1e30), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308])
)


@given(
    st.lists(st.lists(anything, min_size=len(NAMES), max_size=len(NAMES)), min_size=1, max_size=6)
)
def test_whatever_the_statistics_features_are_finite_and_bounded(table):
    sequence = [
        IntervalStatistics(**{n: np.array([v]) for n, v in zip(NAMES, row, strict=True)})
        for row in table
    ]
    shares = {"clipped_share": np.ones(1), "nonfinite_share": np.ones(1)}  # never NaN
    sequence = [replace(s, **shares) for s in sequence]
    with np.errstate(all="ignore"):
        features = encode_all(sequence, valid=[row[0] for row in table])
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= FEATURE_BOUND


def run_of_losses(seed=0, length=8):
    rng = np.random.default_rng(seed)
    losses = 2.0 * 0.8 ** np.arange(length) + 0.05 * rng.normal(size=length)
    return [
        statistics(
            loss_mean=loss,
            loss_std=rng.uniform(0.05, 0.2),
            norm_mean=rng.uniform(0.5, 2),
            norm_std=rng.uniform(0.1, 0.4),
            cos_update=rng.uniform(-1, 1),
        )
        for loss in losses
    ], list(losses + 0.3)


@pytest.mark.parametrize("factor", [1024.0, 1 / 1024, 3.7])
@pytest.mark.parametrize("shift", [0.0, -5.0, 1e3])
def test_an_affine_change_of_the_loss_changes_nothing(factor, shift):
    sequence, valid = run_of_losses()
    changed = [
        replace(
            s,
            loss_mean=factor * s.loss_mean + shift,
            loss_std=factor * s.loss_std,
            norm_mean=factor * s.norm_mean,
            norm_std=factor * s.norm_std,
        )
        for s in sequence
    ]
    before = encode_all(sequence, valid)
    after = encode_all(changed, [factor * v + shift for v in valid])
    assert np.abs(before - after).max() < 1e-6
    assert np.abs(before[1:] - before[:-1]).max() > 0.1  # the features do move


def test_scaling_all_weights_and_updates_changes_nothing():
    sequence, _ = run_of_losses()
    changed = [
        replace(s, update_norm=s.update_norm * 8, param_norm=s.param_norm * 8) for s in sequence
    ]
    assert np.allclose(encode_all(sequence), encode_all(changed), atol=1e-9)


def test_values_by_hand():
    changes = {"loss_mean": 0.7, "norm_mean": 1.0, "cos_update": -0.4, "param_norm": 10.0}
    rows = encode_all([statistics(), statistics(**changes)], valid=[1.5, None])
    expected = (
        {
            "progress": 2 / 400,
            "loss_drop": 0,
            "valid_known": 1,
            "valid_age": 0,
            "valid_gap": math.log1p(0.5 / 0.1),
        },
        {
            "loss_drop": math.log1p(0.3 / 0.1),
            "loss_drop_total": math.log1p(0.3 / 0.1),
            "loss_above_best": 0,
            "loss_drop_share": 1,
            "log_loss_spread": math.log(0.1 / 0.3),
            "norm_total": math.log(0.5),
            "norm_spread": math.log(0.5),
            "cos_update": -0.4,
            "cos_update_slow": 0.7 * 0.2 + 0.3 * -0.4,
            "log_update_size": math.log(0.001),
            "log_param_growth": math.log(2),
            "valid_age": math.log(2),
            "clipped_share": 0.1,
            "log_horizon": math.log(400),
        },
    )
    for row, values in zip(rows, expected, strict=True):
        found = raw(row)
        assert {name: found[name] for name in values} == pytest.approx(values)


def test_an_interval_without_a_finite_loss_holds_the_last_mean():
    rows = encode_all(
        [statistics(), statistics(loss_mean=math.nan, loss_std=math.nan, nonfinite_share=1.0)]
    )
    second = raw(rows[1])
    assert second["loss_drop"] == pytest.approx(0, abs=1e-12)
    assert second["nonfinite_share"] == 1


def test_validation_that_is_not_finite_is_none_and_none_is_all_zero():
    rows = encode_all([statistics()] * 2, valid=[math.nan, None])
    for row in rows:
        values = raw(row)
        assert [values[n] for n in FEATURE_NAMES if n.startswith("valid_")] == [0] * 5


def test_state_round_trip():
    sequence, valid = run_of_losses()
    whole = encode_all(sequence, valid)
    codec, one, two = make_codec(), *(FeatureEncoder(1, adaptive=True) for _ in range(2))
    for k, stats in enumerate(sequence):
        encoder = one if k < 4 else two
        if k == 4:
            two.load_state_dict(one.state_dict())
        encoder.observe_validation(np.array([valid[k]]))
        assert np.array_equal(encoder.encode(stats, codec, interval=k + 1)[0], whole[k])
