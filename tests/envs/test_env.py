"""The environments: their contracts, their determinism, and that one row is one environment."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check
from torch import nn

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.features import FEATURE_BOUND, NUM_FEATURES
from pacesetter.envs.gym_env import ScheduleEnv
from pacesetter.envs.registration import SCHEDULE_ID
from pacesetter.envs.rewards import CLIP, sibling_scores
from pacesetter.envs.runs import ScheduledRuns, draw_group
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits

ID = f"pacesetter.envs.registration:{SCHEDULE_ID}"
ONLY_SGD = {"adam_share": 0.0, "sgd_share": 1.0, "rmsprop_share": 0.0}
SHORT = {"control": ControlConfig(num_intervals=10)}
SMALL = TeacherMLP(TeacherRanges(num_train=(128, 256), horizon=(24, 36), eval_rows=32))
ONLY_ADAMW = {"adam_share": 0.0, "sgd_share": 0.0, "rmsprop_share": 0.0}
CALM = TeacherMLP(
    replace(SMALL.ranges, start_factor=(0.03, 0.3), loss_scale=(1.0, 1.0), **ONLY_ADAMW)
)


def own_task(*, seed=None, horizon=60, scale=1.0, **changes):
    """A user's own task: regression with a loss that is negative throughout."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 3, generator=generator)
    part = (inputs, inputs.sum(1, keepdim=True))
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)),
        lambda model, batch: scale * (model(batch[0]) - batch[1]).square().mean() - 100,
        Splits(part, part, part, part, allow_overlap=True),
        horizon=horizon,
        batch_size=16,
        seed=seed,
        **changes,
    )


def random_actions(steps, rows, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(steps, rows, 3)).astype(np.float32)


def rollout(env, actions, seed):
    observation, info = env.reset(seed=seed)
    trace = [(observation, 0.0, False, info)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        trace.append((observation, reward, terminated, info))
        if terminated:
            break
    return trace


@pytest.mark.parametrize(
    "task", [SMALL, own_task(), own_task(seed=3)], ids=["family", "task", "seeded-task"]
)
def test_both_checkers_pass(task):
    env = gymnasium.make(ID, task=task, **SHORT).unwrapped
    gymnasium_check(env, skip_render_check=True)
    sb3_check(env)


@pytest.mark.parametrize("task", [SMALL, own_task()], ids=["family", "own"])
def test_two_environments_with_one_seed_give_identical_rollouts(task):
    actions = random_actions(9, 1)[:, 0]
    one = rollout(ScheduleEnv(task, **SHORT), actions, seed=5)
    two = rollout(gymnasium.make(ID, task=task, **SHORT), actions, seed=5)
    other = rollout(ScheduleEnv(task, **SHORT), actions, seed=6)
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert np.array_equal(left[0], right[0])
        assert left[1:] == right[1:]
    assert any(
        not np.array_equal(left[0], right[0]) for left, right in zip(one, other, strict=False)
    )


def test_an_episode_ends_at_the_horizon_with_the_improvement_over_zero_actions():
    env = ScheduleEnv(own_task(seed=0))
    trace = rollout(env, np.zeros((99, 3), np.float32), seed=0)
    assert [t[2] for t in trace] == [False] * 29 + [True]  # 60 steps: 30 intervals, 29 decisions
    assert trace[-1][1] == 0.0  # zero actions are the reference itself
    assert trace[-1][3]["outer_valid_loss"] == trace[-1][3]["reference_loss"] < -90
    assert trace[-1][3]["step"] == 60
    timid = rollout(env, np.tile(np.float32([-1, 0, 0]), (99, 1)), seed=0)
    assert timid[-1][1] < 0
    assert all(t[1] == 0 for t in timid[:-1])


def lost(task):
    """The same task, of which every run ends with a loss that is not finite."""
    inputs, targets = task.splits.outer_valid[:2]
    rest = task.splits.outer_valid[2:]
    beyond = (inputs, torch.full_like(targets, torch.inf), *rest)
    return replace(task, splits=replace(task.splits, outer_valid=beyond))


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_the_guard_brings_a_hopeless_start_back(lr):
    runs = ScheduledRuns([own_task(seed=0, optimizer=OptimizerConfig(name="sgd", lr=lr))])
    features = runs.begin()
    while not runs.done:
        assert np.isfinite(features).all()
        features = runs.decide(np.zeros((1, 3)))
    untrained = InnerTrainer([own_task(seed=0)]).evaluate("outer_valid")[0]
    assert runs.final_losses()[0, 0] <= untrained + 1e-4


def test_an_interval_in_which_every_step_broke_ends_the_episode():
    env = ScheduleEnv(own_task(seed=0, optimizer=OptimizerConfig(name="sgd", lr=1e30)))
    trace = rollout(env, np.ones((99, 3), np.float32), seed=0)
    assert len(trace) < 30  # before the horizon
    assert trace[-1][1:3] == (-CLIP, True)
    assert np.isnan(trace[-1][3]["outer_valid_loss"])
    assert all(np.isfinite(t[0]).all() for t in trace)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(np.zeros(3, np.float32))
    assert not rollout(env, np.zeros((1, 3), np.float32), seed=0)[0][2]


def test_divergence_ends_the_episode_with_the_worst_reward():
    env = ScheduleEnv(lost(own_task(seed=0)))
    trace = rollout(env, np.zeros((99, 3), np.float32), seed=0)
    assert trace[-1][1:3] == (-CLIP, True)
    assert all(np.isfinite(t[0]).all() for t in trace)


@pytest.mark.parametrize(
    ("family", "dtype"), [(CALM, torch.float32), (SMALL, torch.float64)], ids=["float32", "float64"]
)
def test_vec_env_rows_have_the_features_of_single_environments(family, dtype):
    """In float32 with sane starts only: where training is chaos, the last digit decides."""
    layout = {"num_groups": 2, "tasks_per_group": 2, "siblings": 2, "seed": 4, **SHORT}
    venv = ScheduleVecEnv([family], **layout, dtype=dtype)
    first = venv.reset()
    actions = random_actions(venv.num_decisions, venv.num_envs)
    tasks, seen = venv.tasks, [first]
    for k in range(venv.num_decisions):
        observations, _, dones, infos = venv.step(actions[k])
        last = np.array([i["terminal_observation"] for i in infos]) if dones[0] else observations
        seen.append(last)
    assert dones.all()
    for row in (0, 3, 5, 6):
        single = rollout(ScheduleEnv(tasks[row], dtype=dtype, **SHORT), actions[:, row], seed=0)
        expected = np.stack([t[0] for t in single])
        assert np.abs(np.stack(seen)[:, row] - expected).max() < 1e-4
        loss = single[-1][3]["outer_valid_loss"]
        assert infos[row]["outer_valid_loss"] == pytest.approx(loss, rel=1e-4)


def test_vec_env_rewards_siblings_at_the_horizon_only_and_draws_new_tasks():
    venv = ScheduleVecEnv([SMALL], num_groups=2, tasks_per_group=2, siblings=4, seed=0, **SHORT)
    venv.reset()
    before = venv.tasks
    actions = random_actions(venv.num_decisions, venv.num_envs)
    for k in range(venv.num_decisions):
        observations, rewards, dones, infos = venv.step(actions[k])
        assert observations.shape == (16, NUM_FEATURES)
        assert np.abs(observations).max() <= FEATURE_BOUND
        if k < venv.num_decisions - 1:
            assert not rewards.any()
            assert not dones.any()
    losses = np.array([i["outer_valid_loss"] for i in infos]).reshape(4, 4)
    assert rewards.reshape(4, 4) == pytest.approx(sibling_scores(losses), abs=1e-6)
    assert np.abs(rewards).max() > 0.5
    assert all(old is not new for old, new in zip(before, venv.tasks, strict=True))


def test_vec_env_is_deterministic_and_any_episode_can_be_rebuilt():
    layout = {"num_groups": 2, "tasks_per_group": 1, "siblings": 2, "seed": 9, **SHORT}
    one, two = ScheduleVecEnv([SMALL], **layout), ScheduleVecEnv([SMALL], **layout)
    assert np.array_equal(one.reset(), two.reset())
    third = [one.reset(), one.reset()][1]
    rebuilt = ScheduleVecEnv([SMALL], **layout)
    rebuilt.next_episode = 2
    assert np.array_equal(rebuilt.reset(), third)
    one.seed(9)
    assert np.array_equal(one.reset(), ScheduleVecEnv([SMALL], **layout).reset())


def test_a_diverged_run_gets_the_worst_score_and_stays_masked():
    class Fragile(TeacherMLP):
        def build(self, shape, generator):
            return lost(super().build(shape, generator))

    # A linear map: nothing in it saturates, so that it runs off to infinity.
    ranges = TeacherRanges(
        horizon=(80, 90), depth=(0, 0), eval_rows=32, regression_share=1.0, **ONLY_SGD
    )
    family = Fragile(ranges)
    venv = ScheduleVecEnv([family], num_groups=1, tasks_per_group=1, siblings=2, seed=0)
    venv.reset()
    for _ in range(venv.num_decisions):
        observations, rewards, _, infos = venv.step(np.zeros((2, 3)))
        assert np.isfinite(observations).all()
    assert np.isnan(infos[0]["outer_valid_loss"])
    assert rewards.tolist() == [-CLIP, -CLIP]


def test_sibling_scores_by_hand():
    losses = np.array([[1.0, np.e, np.nan, np.e**2], [-1.0, 0.0, 1.0, 0.0], [1.0, 1.01, 1.0, 1.01]])
    spread = np.std([0, 1, 2])
    assert sibling_scores(losses)[0] == pytest.approx([1 / spread, 0, -CLIP, -1 / spread])
    spread = np.std([-1, 0, 1, 0])
    assert sibling_scores(losses)[1] == pytest.approx([1 / spread, 0, -1 / spread, 0])
    half = np.log(1.01) / 2
    assert sibling_scores(losses)[2] == pytest.approx(np.array([1, -1, 1, -1]) * half / 0.02)
    wide = sibling_scores(losses, spread_floor=0.1)[2]
    assert wide == pytest.approx(np.array([1, -1, 1, -1]) * half / 0.1)
    plain = sibling_scores(losses, spread_floor=2.0, form="difference")
    assert plain[0] == pytest.approx([0.5, 0, -CLIP, -0.5])
    assert plain[1] == pytest.approx([1 / spread, 0, -1 / spread, 0])  # no logs: the spread is one
    ranks = sibling_scores(losses, form="rank")
    assert ranks[0] == pytest.approx([1.5**0.5, 0, -CLIP, -(1.5**0.5)])
    assert ranks[1] == pytest.approx([2**0.5, 0, -(2**0.5), 0])
    assert ranks[2] == pytest.approx([1, -1, 1, -1])
    with pytest.raises(ValueError, match="z-score, difference, rank"):
        sibling_scores(losses, form="best")


def test_families_are_drawn_by_their_weights():
    families = (CALM, replace(CALM, name="dear"))
    config = EnvConfig(tasks_per_group=1, family_weights=(9.0, 1.0))
    names = [draw_group(families, config, 0, episode, 0).tasks[0].name for episode in range(60)]
    assert 0.02 < names.count("dear") / len(names) < 0.25


def test_rows_whose_run_is_over_are_idle_until_all_are():
    short = TeacherMLP(replace(CALM.ranges, horizon=(10, 10)), name="short")
    long = TeacherMLP(replace(CALM.ranges, horizon=(20, 20)), name="long")
    layout = {"num_groups": 2, "tasks_per_group": 1, "siblings": 2, **SHORT}
    for seed in range(50):
        venv = ScheduleVecEnv([short, long], **layout, seed=seed)
        venv.reset()
        names = [task.name for task in venv.tasks]
        if names == ["short", "short", "long", "long"]:
            break
    ends, idle = np.zeros((9, 4), bool), np.zeros((9, 4), bool)
    rewards = np.zeros((9, 4))
    for k in range(9):
        observations, rewards[k], ends[k], infos = venv.step(np.full((4, 3), 0.1 * (k % 2)))
        idle[k] = [info.get("idle", False) for info in infos]
        assert (observations[ends[k] & (k < 8)] == 0).all()
        if k < 8:
            assert (venv.idle == (np.arange(4) < 2) * (k >= 3)).all()
    # 10 steps are 5 intervals and so 4 decisions.
    assert (ends[:, :2] == (np.arange(9) >= 3)[:, None]).all()
    assert (idle[:, :2] == (np.arange(9) >= 4)[:, None]).all()
    assert not idle[:, 2:].any()
    assert (ends[:, 2:] == (np.arange(9) == 8)[:, None]).all()
    assert (rewards[idle] == 0).all()
    assert not venv.idle.any()
    assert observations.any(axis=1).all()


def test_bad_input_is_refused_with_what_came():
    with pytest.raises(ValueError, match="did you mean 'teacher-mlp'"):
        ScheduleEnv("teacher-mpl")
    with pytest.raises(TypeError, match="but got int"):
        ScheduleEnv(3)
    with pytest.raises(ValueError, match="at least 4 steps for one decision, but has 3"):
        ScheduleEnv(own_task(horizon=3))
    with pytest.raises(gymnasium.error.ResetNeeded):
        ScheduleEnv(own_task()).step(np.zeros(3, np.float32))
    env = ScheduleEnv(own_task())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape of Box.*of shape \(4,\)"):
        env.step(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="must be finite"):
        env.step(np.full(3, np.nan, np.float32))
    with pytest.raises(ValueError, match="siblings must be at least 2, but got 1"):
        ScheduleVecEnv([SMALL], siblings=1)
    with pytest.raises(ValueError, match="must be a list, but got 'teacher-mlp'"):
        ScheduleVecEnv("teacher-mlp")
    with pytest.raises(ValueError, match="one weight for each of 1 families, but got 2"):
        ScheduleVecEnv([SMALL], family_weights=(1, 2))
    with pytest.raises(ValueError, match="did you mean 'progress'"):
        EnvConfig(hidden_features=("progres",))
    short = ScheduleVecEnv([TeacherMLP(TeacherRanges(horizon=(3, 3)))])
    with pytest.raises(ValueError, match="'teacher-mlp' drew a horizon of 3 steps, too short"):
        short.reset()
