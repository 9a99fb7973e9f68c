"""Learning on from a policy: it starts there, never ends below it, and resumes to the same end."""

import csv
import json
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from pacesetter.agent.policy.policy import Policy, PolicyInfo, load_policy, save_policy
from pacesetter.agent.runs.interruption import Stopped
from pacesetter.agent.training import callbacks
from pacesetter.agent.training.callbacks import CHECKPOINT, POLICY, VALIDATION
from pacesetter.agent.training.config import (
    FINE_TUNING_LEARNING_RATE,
    FINE_TUNING_LOG_STD,
    fine_tuning_config,
    meter_families,
    validation_families,
)
from pacesetter.agent.training.train import make_learner, train
from pacesetter.agent.training.validation import ValidationSuite
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.features import NUM_FEATURES
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.cli import train as cli_train
from pacesetter.experiments.presets import PRESETS
from pacesetter.inner_models.registry import META_TRAIN, family_names
from pacesetter.inner_models.registry import VALIDATION as VALIDATION_FAMILIES
from tiny import TINY, SmallFamily


def a_policy(*, hidden=(8,), activation="tanh", seed=0, families=("gone:Family",)):
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(scale=0.2, size=(n, m)), rng.normal(scale=0.1, size=n))
        for m, n in pairwise([NUM_FEATURES, *hidden, 3])
    ]
    control = ControlConfig(num_intervals=5, lr_step=0.3)
    info = PolicyInfo(families=families, preset="old", seed=9, decisions=1000)
    return Policy(layers, activation=activation, control=control, info=info)


def settings(policy, family="tiny:family", **changes):
    names = {"families": (family,), "validation_families": (family,)}
    env = EnvConfig(num_groups=1, tasks_per_group=2, siblings=2, spread_floor=0.1)
    config = replace(TINY, decisions=32, env=env, validation_tasks=2, checkpoint_every=2, **names)
    return replace(fine_tuning_config(config, policy), **changes)


def tuned(config, out, policy, **options):
    return train(config, out, init=policy, progress=False, meter=False, **options)


def rows_of(out):
    with (out / VALIDATION).open() as file:
        return [(int(r["rollout"]), float(r["mean_log_ratio"])) for r in csv.DictReader(file)]


def test_settings_are_those_of_the_policy_and_gentler():
    policy = a_policy(hidden=(7, 9))
    bold = replace(PRESETS["laptop"], log_std=-0.7)
    config = fine_tuning_config(bold, policy)
    assert config.env.control == policy.control
    assert config.hidden == (7, 9)
    assert config.log_std == FINE_TUNING_LOG_STD < bold.log_std
    assert config.learning_rate == FINE_TUNING_LEARNING_RATE < bold.learning_rate
    timid = fine_tuning_config(replace(bold, learning_rate=1e-5, log_std=-3.0), policy)
    assert (timid.learning_rate, timid.log_std) == (1e-5, -3.0)


@pytest.mark.parametrize(
    ("hidden", "activation"), [((8,), "tanh"), ((6, 5, 4), "relu"), ((), "tanh")]
)
def test_the_learner_acts_like_the_policy_that_it_starts_from(hidden, activation):
    policy = a_policy(hidden=hidden, activation=activation)
    config = settings(policy)
    env = ScheduleVecEnv([SmallFamily()], num_groups=1, siblings=2, control=config.env.control)
    model = make_learner(config, env, seed=0, init=policy)
    features = np.random.default_rng(1).uniform(-2, 2, (50, NUM_FEATURES)).astype(np.float32)
    actions, _ = model.predict(features, deterministic=True)
    assert actions == pytest.approx(policy.act(features), abs=1e-5)
    assert np.ptp(actions) > 0.1
    assert model.policy.log_std.detach().numpy() == pytest.approx([FINE_TUNING_LOG_STD] * 3)
    afresh = make_learner(config, env, seed=0)
    assert torch.equal(model.policy.value_net.weight, afresh.policy.value_net.weight)


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    policy, out = a_policy(), tmp_path / "run"
    other = EnvConfig(control=ControlConfig(num_intervals=6, lr_step=0.3))
    for changes, message in (
        ({"env": other}, "num_intervals: 6 in the settings, 5 in the.*fine_tuning_config"),
        ({"hidden": (9,)}, r"hidden: \(9,\) in the settings, \(8,\) in the policy"),
    ):
        with pytest.raises(ValueError, match=message):
            tuned(settings(policy, **changes), out, policy)
    assert not out.exists()
    # So is a family whose losses have no logarithm; the folder stays free.
    with pytest.raises(ValueError, match=r"'tiny:NegativeFamily/0' cannot be used.*log of a loss"):
        tuned(settings(policy, "tiny:NegativeFamily"), out, policy)
    tuned(settings(policy, decisions=17), out, policy)


def test_the_start_is_validated_first_and_recorded(tmp_path):
    policy, out = a_policy(), tmp_path / "run"
    config = settings(policy)
    then = {"seed": 3, "preset": "tiny"}
    found = load_policy(tuned(config, out, policy, **then))
    rows = rows_of(out)
    assert [row[0] for row in rows] == [0, *sorted(callbacks._validation_points(config))]
    suite = ValidationSuite(config)
    assert rows[0][1] == pytest.approx(suite.score(policy.act).mean(), rel=1e-6)
    assert suite.score(found.act).mean() == pytest.approx(min(s for _, s in rows), rel=1e-6)
    known = {"families": ["gone:Family"], "preset": "old", "seed": 9, "decisions": 1000}
    assert found.info.provenance["init"] == {"sha256": policy.digest, **known}
    assert found.info.families == ("tiny:family", "gone:Family")
    assert found.info.decisions >= 1000
    assert found.control == policy.control
    assert json.loads((out / "run.json").read_text())["settings"]["init"] == policy.digest
    other = a_policy(seed=1)
    for now, named in ((other, f"'{other.digest}'"), (None, "None")):
        with pytest.raises(ValueError, match=f"init: '{policy.digest}' then, {named} now"):
            tuned(config, out, now, resume=True, **then)


@pytest.mark.parametrize(("scores", "best"), [((0.0, 0.5, 1.0), 0), ((0.0, -0.5, 1.0), 1)])
def test_what_comes_out_is_never_worse_than_what_went_in(tmp_path, monkeypatch, scores, best):
    policy, out = a_policy(), tmp_path / "run"
    left = list(scores)
    monkeypatch.setattr(ValidationSuite, "score", lambda self, act: np.array([left.pop(0)]))
    # PPO's rate falls to zero: of two rollouts the second one changes nothing.
    config = settings(policy, decisions=17, learning_rate=1e-2)
    assert config.rollouts == 2
    found = load_policy(tuned(config, out, policy))
    assert [score for _, score in rows_of(out)] == list(scores)
    weights = zip(chain(*found.layers), chain(*policy.layers), strict=True)
    assert all(np.array_equal(a, b) for a, b in weights) == (best == 0)
    state = torch.load(out / CHECKPOINT, weights_only=True)
    start = torch.from_numpy(policy.layers[-1][0])
    now, average = (x["action_net.weight"] for x in (state["policy"], state["extra"]["average"]))
    assert not torch.allclose(now, start)  # it has learned something
    share = 1 / 10 * 2 / 11  # of the policy that it started from, in the average
    assert torch.allclose(average, share * start + (1 - share) * now, atol=1e-7)


def test_stopped_and_resumed_it_ends_in_the_same_policy(tmp_path, monkeypatch):
    policy, calls = a_policy(), []
    config = settings(policy, decisions=60, learning_rate=1e-2)
    tuned(config, tmp_path / "whole", policy)

    def safe_point():
        calls.append(None)
        if len(calls) == 3:
            raise Stopped(2, safely=True)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "stop_requested", lambda: len(calls) == 2)
        patch.setattr(callbacks, "safe_point", safe_point)
        with pytest.raises(Stopped):
            tuned(config, tmp_path / "part", policy)
    done = torch.load(tmp_path / "part" / CHECKPOINT, weights_only=True)["num_timesteps"]
    assert done == 3 * config.rollout < config.rollouts * config.rollout
    tuned(config, tmp_path / "part", policy, resume=True)
    for name in (POLICY, VALIDATION):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_names_of_families():
    """Several at once; own ones judge, and the usual ones where bundled ones are mixed in."""
    config = settings(a_policy())
    policy = a_policy(families=("tiny:family", "gone:Family", "teacher-mlp", "mnist-mlp"))
    assert meter_families(config, policy) == ("tiny:family", "teacher-mlp")  # those that are there
    assert family_names("meta-train", "a:b", "teacher-mlp") == (*META_TRAIN, "a:b")
    with pytest.raises(ValueError, match="did you mean 'meta-train'"):
        family_names("meta-trian")
    for families, judges in (
        (["a:b", "c:d"], ("a:b", "c:d")),
        (["a:b", "quadratic"], ("a:b", *VALIDATION_FAMILIES)),
        (["quadratic"], VALIDATION_FAMILIES),
    ):
        assert validation_families(families) == judges


def parsed(*argv):
    return cli.make_parser().parse_args(["train", "--out", "x", *argv])


def test_settings_from_arguments():
    policy = a_policy()
    args = parsed("--families", "teacher-mlp,quadratic", "ratings", "--decisions", "5000")
    config = cli_train.config_of(args, None)
    assert config.families == ("teacher-mlp", "quadratic", "ratings")
    assert config.validation_families == VALIDATION_FAMILIES
    assert config.decisions == 5000
    assert config.learning_rate == PRESETS["laptop"].learning_rate
    args = parsed("--init", "default", "--validation-families", "digits-mlp")
    config = cli_train.config_of(args, policy)
    expected = fine_tuning_config(PRESETS["fine-tune"], policy)
    assert config == replace(expected, validation_families=("digits-mlp",))
    (remark,) = cli_train.remarks(parsed(), replace(config, families=("digits-vit",)))
    assert "digits-vit: held out" in remark


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    """The whole way, with a family from a file in the working directory."""
    code = (
        "from pacesetter.inner_models.families.convex import Quadratic, QuadraticRanges\n"
        "short = Quadratic(QuadraticRanges(horizon=(20, 24)))\n"
    )
    (tmp_path / "fine_tuned_family.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    save_policy(a_policy(), tmp_path / "start.safetensors")
    given = ["train", "--preset", "smoke", "--init", "start.safetensors", "--out", "run"]
    given += ["--families", "fine_tuned_family:short", "--decisions", "100"]
    assert cli.main([*given, "--json"]) == 0
    said = capsys.readouterr()
    assert "validating on fixed tasks of fine_tuned_family:short, 1 of each" in said.err
    found = json.loads(said.out)
    assert found["families"] == found["validation"]["families"] == ["fine_tuned_family:short"]
    assert found["init"] == a_policy().digest
    assert found["validation"]["best"] == min(found["validation"]["scores"])
    assert "--tasks fine_tuned_family:short/1," in found["next"]  # not the task it was chosen by
    assert load_policy(found["policy"]).digest == found["sha256"]
    assert cli.main([*given, "--resume", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "on the validation tasks" in said.out
