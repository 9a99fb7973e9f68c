"""What `ScheduleEnv` and the export of policies say where they are used wrongly."""

import copy

import gymnasium
import numpy as np
import pytest
from stable_baselines3 import A2C, DDPG, PPO, SAC

from pacesetter.agent.policy.export import export_policy
from pacesetter.envs.gym_env import ScheduleEnv
from tiny import SmallFamily, small_task


@pytest.mark.parametrize(
    "action", [0.5, np.zeros((1, 3)), np.zeros(2), ["a", "b", "c"], None, [0, np.inf, 0], {}]
)
def test_actions_outside_of_the_space_are_refused(action):
    env = ScheduleEnv(small_task())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"finite and of the shape of Box\(.*\(3,\).*but got"):
        env.step(action)
    assert env.step([0, 0, 0])[4]["step"] > 0  # the episode goes on


def test_steps_outside_of_an_episode_need_a_reset():
    def broken(model, batch):
        if model.training:
            raise RuntimeError("no loss")
        return model(batch[0]).mean()

    env = ScheduleEnv(small_task(loss=broken))
    with pytest.raises(RuntimeError, match="no loss"):
        env.reset(seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(np.zeros(3))


def test_nothing_is_rendered():
    with pytest.raises(ValueError, match="render_mode must be None, but got 'rgb_array'"):
        ScheduleEnv(small_task(), render_mode="rgb_array")
    with pytest.warns(UserWarning, match="no render mode"):
        ScheduleEnv(small_task(), render_mode=None).render()


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_copies_are_made_between_episodes(copied):
    env = ScheduleEnv(SmallFamily())
    first = copied(env).reset(seed=3)[0]
    assert np.array_equal(first, env.reset(seed=3)[0])
    with pytest.raises(TypeError, match=r"in mid-episode.*reset\(\)"):
        copied(env)
    while not env.step(np.zeros(3))[2]:
        pass
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\)"):
        copied(env).step(np.zeros(3))


@pytest.mark.parametrize("kind", [SAC, DDPG, A2C])
def test_only_actor_critics_with_one_network_are_exported(kind, tmp_path):
    env = ScheduleEnv(small_task())
    model = kind("MlpPolicy", env, **({} if kind is A2C else {"buffer_size": 8}))
    if kind is A2C:
        assert export_policy(model, tmp_path / "a.safetensors").exists()
        return
    with pytest.raises(ValueError, match=f"expected a stable_baselines3.PPO.*got {kind.__name__}"):
        export_policy(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="got ActorCriticPolicy"):
        export_policy(PPO("MlpPolicy", env).policy, tmp_path / "a.safetensors")
