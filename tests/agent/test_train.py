"""Meta-training: it learns what can be learned, and a killed run ends as if it had not been."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from pacesetter.agent.policy.policy import load_policy
from pacesetter.agent.training import callbacks
from pacesetter.agent.training import train as ppo
from pacesetter.agent.training.callbacks import CHECKPOINT, POLICY, VALIDATION, _validation_points
from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.train import make_learner, train
from pacesetter.agent.training.validation import (
    FIRST_SEED,
    ValidationSuite,
    run_constant,
    run_policy,
)
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.envs.gym_env import action_space, observation_space
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.experiments.presets import PRESETS, get_preset
from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.registry import fixed_task
from tiny import TINY


def test_train_leaves_a_policy_and_its_story(trained):
    policy = load_policy(trained / POLICY)
    assert policy.info.families == TINY.families
    assert (policy.info.preset, policy.info.seed) == ("tiny", 3)
    assert 0 < policy.info.decisions <= TINY.rollouts * TINY.rollout
    assert policy.control == TINY.env.control
    assert policy.familiarity is not None
    assert policy.info.versions.keys() >= {"torch", "stable-baselines3", "gymnasium"}
    with (trained / VALIDATION).open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["rollout"]) for r in rows] == sorted(_validation_points(TINY))
    assert list((trained / "tensorboard").glob("events*"))
    settings = json.loads((trained / "run.json").read_text())["settings"]
    assert settings["seed"] == 3
    assert settings["config"]["env"]["siblings"] == TINY.env.siblings
    assert not settings["config"]["env"].keys() & {"device", "dtype"}  # they decide no result
    # The shipped file is the best by validation, so its score is the table's least.
    suite = ValidationSuite(TINY)
    best = min(float(r["mean_log_ratio"]) for r in rows)
    assert suite.score(policy.act).mean() == pytest.approx(best, rel=1e-6)


def test_a_folder_with_a_run_is_refused_and_resuming_another_run_too(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    again = {"seed": 3, "preset": "tiny", "progress": False}
    with pytest.raises(FileExistsError, match=r"already holds files.*--resume"):
        train(TINY, out, **again)
    with pytest.raises(ValueError, match=r"other settings.*seed: 3 then, 1 now"):
        train(TINY, out, **{**again, "seed": 1}, resume=True)
    wider = replace(TINY, env=replace(TINY.env, siblings=3))
    with pytest.raises(ValueError, match=r"config\.env\.siblings: 2 then, 3 now"):
        train(wider, out, **again, resume=True)
    with pytest.raises(FileNotFoundError, match="cannot resume"):
        train(TINY, tmp_path / "new", **again, resume=True)
    train(TINY, out, **again, resume=True)  # a finished run has nothing left to do
    assert (out / POLICY).read_bytes() == (trained / POLICY).read_bytes()
    (out / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        train(TINY, out, **again, resume=True)


def test_the_policy_is_an_average_of_weights_over_rollouts(trained, tmp_path):
    train(replace(TINY, averaging=0.0), tmp_path, seed=3, progress=False, meter=False)
    own, mean = (torch.load(f / CHECKPOINT, weights_only=True) for f in (tmp_path, trained))
    for name, now in own["policy"].items():
        assert torch.equal(own["extra"]["average"][name], now)
        assert torch.equal(mean["policy"][name], now)  # averaging does not touch the learner
    name = "action_net.weight"
    assert not torch.equal(mean["extra"]["average"][name], mean["policy"][name])


LONG = 320 // TINY.rollout  # rollouts
CODE = """
import dataclasses, pathlib, sys
from pacesetter.inner_models.engine.host import prepare_process
prepare_process()
from pacesetter.agent.training.train import train
from tiny import TINY
config = dataclasses.replace(TINY, decisions=320)
out, more = pathlib.Path(sys.argv[1]), {"progress": False, "meter": False}
train(config, out, seed=7, resume=len(sys.argv) > 2, **more)
"""


@pytest.mark.slow
@pytest.mark.processes
def test_kill_9_and_resume_gives_the_same_policy_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    checkpoint, tests = killed / CHECKPOINT, str(Path(__file__).parents[1])

    def started(*arguments):
        paths = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        return subprocess.Popen([sys.executable, "-c", CODE, *map(str, arguments)], env=environment)

    def done():
        return torch.load(checkpoint, weights_only=True)["num_timesteps"] / TINY.rollout

    assert started(whole).wait() == 0
    process = started(killed)
    while process.poll() is None and not (checkpoint.exists() and done() >= 4):
        time.sleep(0.01)
    time.sleep(0.1)  # into the middle of a rollout
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert 4 <= done() < LONG
    assert started(killed, "resume").wait() == 0
    for name in (POLICY, VALIDATION):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    states = (torch.load(out / CHECKPOINT, weights_only=True)["policy"] for out in (whole, killed))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one, other)  # the critic too, which no policy file has


class Echo(gymnasium.Env):
    """Rewards, at the end, how close the first action came to a feature: what PPO must learn."""

    observation_space, action_space = observation_space(), action_space()

    def __init__(self, num_decisions, seed):
        self.num_decisions, self._rng = num_decisions, np.random.default_rng(seed)

    def _draw(self):
        self.shown = self._rng.uniform(-1, 1, len(FEATURE_NAMES)).astype(np.float32)
        return self.shown

    def reset(self, *, seed=None, options=None):
        self._step, self._total = 0, 0.0
        return self._draw(), {}

    def step(self, action):
        self._total -= float(action[0] - 0.8 * self.shown[0]) ** 2
        self._step += 1
        done = self._step == self.num_decisions
        return self._draw(), self._total if done else 0.0, done, False, {}


def learner(config):
    length = config.env.num_decisions
    env = DummyVecEnv([partial(Echo, length, seed) for seed in range(config.env.num_envs)])
    env.num_decisions = length
    return make_learner(config, env, seed=0)


@pytest.mark.slow
def test_the_learner_learns_to_echo_a_feature_from_rewards_at_the_end():
    env = EnvConfig(control=ControlConfig(num_intervals=4))
    steps = {"learning_rate": 3e-3, "minibatches": 2, "epochs": 8}
    config = TrainConfig(decisions=30_000, env=env, **steps)
    model = learner(config)

    def error():
        features = np.random.default_rng(1).uniform(-1, 1, (500, len(FEATURE_NAMES)))
        actions, _ = model.predict(features.astype(np.float32), deterministic=True)
        return float(np.mean((actions[:, 0] - 0.8 * features[:, 0]) ** 2))

    before = error()
    model.learn(config.rollouts * config.rollout)
    assert before > 0.2
    assert error() < 0.25 * before


def test_rollouts_are_whole_episodes_with_undiscounted_returns():
    model, num_envs = learner(TINY), TINY.env.num_envs
    model.learn(TINY.rollout)
    buffer = model.rollout_buffer
    rewards = buffer.rewards
    # Once read for learning, these two are flat, one environment after another.
    values, advantages = (x.reshape(num_envs, -1).T for x in (buffer.values, buffer.advantages))
    # Generalised advantage with gamma = lambda = 1 is the return to come minus the value.
    to_come = np.cumsum(rewards[::-1], axis=0)[::-1]
    assert advantages == pytest.approx(to_come - values, abs=1e-5)
    assert rewards.shape == (4, num_envs)
    assert (rewards[:-1] == 0).all()


class IdleRows(BaseCallback):
    """Says of some entries that they are idle, and puts other numbers there."""

    def __init__(self, share, nonsense):
        super().__init__()
        self.share, self.nonsense = share, nonsense

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        idle = np.random.default_rng(0).random(buffer.returns.shape) < self.share
        for array in (buffer.observations, buffer.actions, buffer.returns, buffer.advantages):
            array[idle] += self.nonsense
        buffer.busy = ~idle.T.ravel()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_idle_rows_count_for_nothing_in_any_minibatch(share):
    config = replace(TINY, epochs=3, env=replace(TINY.env, tasks_per_group=8))
    ends = []
    for nonsense in (0.0, 3.0):
        model = learner(config)
        start = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(3 * config.rollout, callback=IdleRows(share, nonsense))
        ends.append(model.policy.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    moved = [name for name in start if not torch.equal(start[name], ends[0][name])]
    assert any("value_net" in name for name in moved)


def test_rows_are_idle_after_the_end_of_their_run(tmp_path, monkeypatch):
    """Of twelve decisions a run of ten steps has four."""
    masks = []

    class Watching(callbacks.MetaTraining):
        def _on_rollout_end(self):
            super()._on_rollout_end()
            masks.append(self.model.rollout_buffer.busy.reshape(self._config.env.num_envs, -1))

    def make_env(families, env, *, seed):
        ranges = TeacherRanges(num_train=(64, 64), horizon=(10, 10), eval_rows=16)
        longer = replace(ranges, horizon=(40, 40))
        both = [TeacherMLP(r, name=f"{r.horizon}") for r in (ranges, longer)]
        return ScheduleVecEnv(both, env, seed=seed)

    env = replace(TINY.env, num_groups=4, control=ControlConfig(num_intervals=13))
    monkeypatch.setattr(ppo, "MetaTraining", Watching)
    config = replace(TINY, decisions=1, env=env)
    train(config, tmp_path, progress=False, meter=False, make_env=make_env)
    counts = set(masks[0].sum(axis=1).tolist())
    assert counts == {4, 12}
    assert all((np.diff(row.astype(int)) <= 0).all() for row in masks[0])


def test_validation_compares_with_adamw_from_the_same_weights():
    task = fixed_task("teacher-mlp", 0)
    seeded = [task.with_seed(FIRST_SEED + i) for i in range(2)]
    reference = run_constant(seeded, 1e-3)
    for loss, t in zip(reference, seeded, strict=True):
        twin = ReferenceRun(t)
        for _ in range(task.horizon):
            twin.step(lr=1e-3, momentum=0.9)
        assert loss == pytest.approx(twin.evaluate("outer_valid"), rel=1e-3)
    judged = {"validation_families": ("teacher-mlp",), "validation_tasks": 1}
    runs = {"validation_starts": (1e-4, 1e-2), "validation_seeds": 2}
    suite = ValidationSuite(replace(TINY, env=EnvConfig(), **judged, **runs))
    score = suite.score(lambda features: np.zeros((len(features), 3)))
    assert score.shape == (1, 2, 2)
    slow = [t.with_optimizer(lr=1e-4) for t in seeded]
    losses = run_policy(lambda f: np.zeros((len(f), 3)), slow, control=ControlConfig())
    assert score[0, 0] == pytest.approx(np.log(losses / reference), rel=1e-5)


def test_bad_settings_are_refused():
    for settings, message in (
        ({"epochs": 0}, "epochs must be positive, but got 0"),
        ({"averaging": 1}, r"averaging must lie in \[0, 1\), but got 1"),
        ({"families": ("nothing",)}, "unknown task family"),
        ({"env": EnvConfig(control=ControlConfig(num_intervals=1))}, "at least 2 intervals"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(decisions=10, **settings)
    assert get_preset("laptop") is PRESETS["laptop"]
    with pytest.raises(ValueError, match="did you mean 'laptop'"):
        get_preset("labtop")
