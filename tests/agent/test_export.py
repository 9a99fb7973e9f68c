"""From a Stable-Baselines3 PPO to a policy file that decides the same."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from pacesetter.agent.policy.export import (
    METADATA_FILE,
    export_onnx,
    export_policy,
    export_program,
    policy_from_model,
)
from pacesetter.agent.policy.policy import Policy, load_policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.envs.gym_env import action_space, observation_space


class Toy(gymnasium.Env):
    """The right spaces and nothing behind them."""

    observation_space, action_space = observation_space(), action_space()


class Controlled(Toy):
    control = ControlConfig(num_intervals=9)


def make_model(env=Toy, policy="MlpPolicy", **policy_kwargs):
    envs = env if not isinstance(env, type) else DummyVecEnv([env])
    return PPO(policy, envs, n_steps=4, batch_size=4, seed=5, policy_kwargs=policy_kwargs)


NETWORKS = (
    {},
    {"net_arch": [8, 8, 8], "activation_fn": nn.ReLU},
    {"net_arch": {"pi": [16], "vf": [4, 4]}},
    {"net_arch": []},
)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_file_acts_like_the_model(tmp_path, network):
    model = make_model(**network)
    for p in model.policy.parameters():  # PPO starts with tiny actions: make them cover the range
        p.data.mul_(3.0).add_(0.05)
    path = export_policy(model, tmp_path / "p.safetensors", families=["toy"], preset="none")
    features = np.random.default_rng(0).uniform(-2, 2, (200, NUM_FEATURES)).astype(np.float32)
    expected, _ = model.predict(features, deterministic=True)
    policy = load_policy(path)
    np.testing.assert_allclose(policy.act(features), expected, atol=1e-6)
    assert np.ptp(expected) > 0.1
    assert policy.control == ControlConfig()
    assert policy.header["families"] == ["toy"]
    assert (policy.header["seed"], policy.header["decisions"]) == (5, 0)
    assert "stable-baselines3" in policy.header["versions"]
    copied = policy_from_model(model)
    for p in model.policy.parameters():
        p.data.add_(1.0)
    assert np.array_equal(copied.act(features), policy.act(features))


def test_control_comes_from_the_environments_unless_given():
    model = make_model(Controlled)
    assert policy_from_model(model).control == Controlled.control
    other = ControlConfig(num_intervals=3)
    assert policy_from_model(model, control=other).control == other
    model.env = None
    assert policy_from_model(model).control == ControlConfig()
    model = make_model(DummyVecEnv([Controlled, Controlled]))
    model.get_env().envs[1].unwrapped.control = ControlConfig()
    with pytest.raises(ValueError, match="differ in their control"):
        policy_from_model(model)


def test_other_spaces_networks_and_normalisation_outside_of_the_encoder_are_refused():
    for name, space, message in (
        ("observation_space", spaces.Box(-5, 5, (7,), np.float32), r"shape \(32,\).*\(7,\)"),
        ("action_space", spaces.Box(-1, 1, (2,), np.float32), r"Box\(-1, 1, \(3,\)\).*\(2,\)"),
        ("action_space", spaces.Box(0, 1, (3,), np.float32), r"Box\(-1, 1, \(3,\)\)"),
        ("action_space", spaces.Discrete(3), r"Box\(-1, 1, \(3,\)\).*Discrete\(3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            policy_from_model(make_model(type("Other", (Toy,), {name: space})))
    mixed, unbiased = make_model(net_arch=[4, 4]), make_model()
    mixed.policy.mlp_extractor.policy_net[1] = nn.ReLU()
    unbiased.policy.action_net = nn.Linear(64, 3, bias=False)
    squashed = {"use_sde": True, "policy_kwargs": {"squash_output": True}}
    toys = DummyVecEnv([Toy])
    for model, message in (
        (make_model(activation_fn=nn.GELU, net_arch=[4]), r"Tanh or ReLU.*GELU"),
        (mixed, r"one kind of activation.*'relu', 'tanh'"),
        (unbiased, "linear layers with biases"),
        (PPO("MlpPolicy", toys, n_steps=4, batch_size=4, **squashed), "squashes"),
        (make_model(VecNormalize(toys)), "VecNormalize"),
    ):
        with pytest.raises(ValueError, match=message):
            policy_from_model(model)
    assert policy_from_model(make_model(VecNormalize(toys, norm_obs=False))).layers


# -- other runtimes ---------------------------------------------------------------------------


class Liar(Policy):
    """Says other actions than its network computes."""

    def act(self, features):
        return super().act(features) + 1e-3


@pytest.mark.slow  # ONNX Script takes seconds
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_other_runtimes_compute_the_same_actions(tmp_path, activation):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(9, NUM_FEATURES)) / 4, rng.normal(size=9))]
    layers += [(rng.normal(size=(3, 9)) / 3, rng.normal(size=3))]
    policy = Policy(layers, activation=activation)
    features = rng.uniform(-2, 2, (300, NUM_FEATURES)).astype(np.float32)
    expected = policy.act(features)
    assert np.ptp(expected) > 1

    path = export_onnx(policy, tmp_path / "new" / "p.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["action"], {"features": features})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    said = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(said["features"]) == list(FEATURE_NAMES)
    assert said["sha256"] == policy.digest

    path = export_program(policy, tmp_path / "new" / "p.pt2")
    extra = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=extra)
    for rows in (features, features[:1]):
        found = program.module()(torch.from_numpy(rows)).numpy()
        np.testing.assert_allclose(found, policy.act(rows), atol=1e-6)
    assert json.loads(extra[METADATA_FILE])["sha256"] == policy.digest
    assert sorted(p.name for p in path.parent.iterdir()) == ["p.onnx", "p.pt2"]


@pytest.mark.parametrize(
    ("write", "name"),
    [(export_program, "p.pt2"), pytest.param(export_onnx, "p.onnx", marks=pytest.mark.slow)],
)
def test_what_computes_other_actions_or_lacks_its_ending_is_not_written(tmp_path, write, name):
    pytest.importorskip("onnxruntime")
    liar = Liar([(np.zeros((3, NUM_FEATURES)), np.zeros(3))])
    with pytest.raises(ValueError, match=r"is off by 0\.001: it was not written"):
        write(liar, tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"must end in \.pt2, but got 'p\.pt'"):
        export_program(Policy.do_nothing(), tmp_path / "p.pt")
