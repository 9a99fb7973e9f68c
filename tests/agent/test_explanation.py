"""Explanations: exact gradients, and attributions that add up."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from pacesetter.agent.policy.explanation import explain
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURE_NAMES, FEATURES, NUM_FEATURES

NETWORKS = {"linear": [], "two": [64, 64], "three": [8, 9, 10]}


def make_policy(name, activation, *, scale=1.0):
    rng = np.random.default_rng(0)
    sizes = [NUM_FEATURES, *NETWORKS[name], 3]
    layers = [
        (rng.normal(size=(b, a)) * scale / np.sqrt(a), scale * rng.normal(size=b))
        for a, b in pairwise(sizes)
    ]
    return Policy(layers, activation=activation)


def make_features(seed=1):
    return 1.5 * np.random.default_rng(seed).normal(size=NUM_FEATURES)


def by_autograd(policy, features):
    """The network in torch: output before clipping, and its Jacobian."""
    activate = torch.tanh if policy.activation == "tanh" else torch.relu

    def network(x):
        for i, layer in enumerate(policy.layers):
            weight, bias = (torch.from_numpy(a).double() for a in layer)
            x = functional.linear(activate(x) if i else x, weight, bias)
        return x

    at = torch.from_numpy(features)
    return network(at).numpy(), torch.autograd.functional.jacobian(network, at).numpy()


every_network = pytest.mark.parametrize("name", NETWORKS)
every_activation = pytest.mark.parametrize("activation", ["tanh", "relu"])


@every_network
@every_activation
def test_gradients_are_those_of_autograd(name, activation):
    policy, features = make_policy(name, activation), make_features()
    found = explain(policy, features)
    raw, jacobian = by_autograd(policy, features)
    np.testing.assert_allclose(found.raw, raw, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.gradients, jacobian, rtol=1e-10, atol=1e-12)
    assert np.abs(jacobian).max() > 0.01
    np.testing.assert_array_equal(found.action, policy.act(features[None])[0])


@every_network
@every_activation
@pytest.mark.parametrize(("scale", "elsewhere"), [(0.3, False), (1.0, True), (5.0, False)])
def test_attributions_add_up_to_the_difference(name, activation, scale, elsewhere):
    policy, features = make_policy(name, activation, scale=scale), make_features()
    reference = make_features(seed=2) if elsewhere else np.zeros(NUM_FEATURES)
    found = explain(policy, features, reference=reference if elsewhere else None)
    expected = by_autograd(policy, features)[0] - by_autograd(policy, reference)[0]
    np.testing.assert_allclose(found.attributions.sum(1), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.reference, reference)


@every_activation
def test_attributions_are_the_integral_along_the_line(activation):
    """Completeness alone would allow a wrong share-out: compare with a plain fine sum."""
    policy, features = make_policy("two", activation), make_features()
    places = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([by_autograd(policy, features * t)[1] for t in places], axis=0)
    found = explain(policy, features)
    np.testing.assert_allclose(found.attributions, mean * features, atol=2e-3)


def test_table_has_the_strongest_first_with_their_meaning():
    policy, features = make_policy("two", "tanh"), make_features()
    found = explain(policy, features)
    rows = found.table(top=4)
    assert [row["action"] for row in rows] == [n for n in ACTION_NAMES for _ in range(4)]
    for i, name in enumerate(ACTION_NAMES):
        mine = [row for row in rows if row["action"] == name]
        sizes = sorted(np.abs(found.attributions[i]), reverse=True)[:4]
        assert [abs(row["attribution"]) for row in mine] == sizes
        for row in mine:
            j = FEATURE_NAMES.index(row["feature"])
            assert row["value"] == features[j]
            assert row["gradient"] == found.gradients[i, j]
            assert row["meaning"] == FEATURES[j].meaning
            assert all(type(cell) in (str, float) for cell in row.values())
    assert len(found.table(top=1000)) == 3 * NUM_FEATURES


def test_text_has_a_line_per_action():
    weight, features = np.zeros((3, NUM_FEATURES)), np.zeros(NUM_FEATURES)
    slow, cosine = FEATURE_NAMES.index("loss_drop_slow"), FEATURE_NAMES.index("cos_update")
    weight[0, slow], weight[0, cosine], weight[1, slow] = 0.25, -0.5, 2.0
    features[slow], features[cosine] = 2.0, 0.5
    text = str(explain(Policy([(weight, [0.125, 0.0, 0.0])]), features))
    assert text.splitlines() == [
        "log_lr +0.38 (from +0.12): loss_drop_slow +0.50 (feature 2), cos_update -0.25 "
        "(feature 0.5)",
        "log_one_minus_momentum +1.00 (from +0.00, clipped): loss_drop_slow +4.00 (feature 2)",
        "log_clip_ratio +0.00 (from +0.00): no feature matters",
    ]


@every_activation
@pytest.mark.parametrize("size", [1e3, 1e20, 1e37])
def test_absurd_weights_give_finite_numbers(activation, size):
    found = explain(make_policy("three", activation, scale=size), 5 * np.ones(NUM_FEATURES))
    for array in (found.raw, found.reference_raw, found.gradients, found.attributions):
        assert np.isfinite(array).all()
    assert len(str(found).splitlines()) == 3


def test_features_that_cannot_be_explained():
    policy = Policy.do_nothing()
    with pytest.raises(ValueError, match=r"features must have shape \(\d+,\), but got \(3,\)"):
        explain(policy, np.zeros(3))
    with pytest.raises(ValueError, match="features must be finite"):
        explain(policy, np.full(NUM_FEATURES, np.nan))
    with pytest.raises(ValueError, match="reference must have shape"):
        explain(policy, np.zeros(NUM_FEATURES), reference=np.zeros((1, NUM_FEATURES)))
