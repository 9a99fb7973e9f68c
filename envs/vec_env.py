"""The vectorised environment for meta-training: several groups of runs, each one tensor program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig, FloatArray
from pacesetter.envs.config import EnvConfig
from pacesetter.envs.gym_env import action_space, observation_space
from pacesetter.envs.runs import GroupStep, SiblingGroup, draw_group
from pacesetter.inner_models.registry import make_family
from pacesetter.inner_models.task import Task, TaskFamily


class ScheduleVecEnv(VecEnv):
    """Sets the pace of many inner runs at once.

    ## Description
    Rows are runs: ``num_groups`` groups of ``tasks_per_group`` tasks of ``siblings`` runs. Tasks of
    a group share a shape, drawn from one of the families, and are trained as one tensor program;
    siblings share data, initial weights and batch order and differ only in their actions. When all
    rows are at their end the next groups are drawn. Group g of episode e depends on ``(seed, e,
    g)`` alone: a run is resumed by setting `next_episode`.

    ## Action Space, Observation Space
    As in `ScheduleEnv`, one row per run.

    ## Rewards
    Zero until the horizon; then minus the z-score of the log outer-valid loss among siblings,
    clipped at 2.5; or another form of reward (see `pacesetter.envs.rewards.sibling_scores`). A
    diverged run gets -2.5.

    ## Starting State
    The observations after each run's first interval.

    ## Episode End
    At the horizon. A run that diverges stays in its group: its learning rate is cut, it is rolled
    back, and in the end the plain decay replaces its actions (see
    `pacesetter.inner_models.watch.guard`). At the horizon the info of a row has
    ``terminal_observation``, ``outer_valid_loss`` (NaN if diverged) and ``task`` (the family's
    name). A horizon of fewer than 2 K steps has fewer decisions than K - 1; rows that are over
    while others are not are idle: observations and rewards are zero, actions without effect, each
    step is an episode of its own, and the info has ``idle``. `idle` tells a learner which rows to
    leave out.

    Args:
        families: task families or names of them, ``module:attribute`` for one of your own; each
            group draws one of them.
        config: which runs there are, how they are controlled and what is rewarded; None: the
            defaults.
        seed: decides all tasks.
        **settings: fields of `pacesetter.envs.config.EnvConfig` by name, instead of those of
            `config`: ``num_groups=4, tasks_per_group=4, siblings=8, device="cuda"``.

    Raises:
        ValueError: a number is out of range, a family unknown, or (when it is drawn) a family's
            horizon too short for a decision.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        families: Sequence[str | TaskFamily],
        config: EnvConfig | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if isinstance(families, str):
            raise ValueError(f"families must be a list, but got {families!r}")
        self.config = replace(config or EnvConfig(), **settings)
        self.config.check_families(families)
        self.families = [make_family(f) if isinstance(f, str) else f for f in families]
        self.render_mode = None
        self.next_episode = 0
        self._seed = seed
        self._draw_group: Callable[[int, int, int], SiblingGroup] = partial(
            draw_group, self.families, self.config
        )
        self._groups: list[SiblingGroup] = []
        self._over: list[bool] = []
        self._decision = 0
        self._actions = np.zeros((0, NUM_ACTIONS))
        super().__init__(self.config.num_envs, observation_space(), action_space())

    @property
    def control(self) -> ControlConfig:
        return self.config.control

    @property
    def num_decisions(self) -> int:
        """Decisions of an episode, K - 1: the ``n_steps`` of one rollout."""
        return self.config.num_decisions

    @property
    def tasks(self) -> list[Task]:
        return [task for group in self._groups for task in group.tasks]

    def reset(self) -> NDArray[np.float32]:
        """Draws the next episode's groups and trains their first intervals."""
        self._start_episode()
        return np.concatenate(self._begin()).astype(np.float32)

    def _start_episode(self) -> None:
        """Draws the groups of `next_episode` and counts on."""
        self._draw(self.next_episode)
        self.next_episode += 1
        self._decision = 0
        self._over = [False] * self.config.num_groups
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]

    def _draw(self, episode: int) -> None:
        """Draws the groups of an episode; they have not begun."""
        numbers = range(self.config.num_groups)
        self._groups = [self._draw_group(self._seed, episode, g) for g in numbers]

    def _begin(self) -> list[FloatArray]:
        """Features of each group after its first interval."""
        return [group.begin() for group in self._groups]

    def _step_groups(self, parts: Sequence[NDArray[Any]]) -> list[GroupStep]:
        return [g.step(part) for g, part in zip(self._groups, parts, strict=True)]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Holds the actions, (num_envs, 3), for `step_wait`."""
        self._actions = np.asarray(actions, dtype=np.float64)

    @property
    def idle(self) -> NDArray[np.bool_]:
        """(num_envs,), rows whose run is over while others go on."""
        return np.repeat(np.array(self._over, dtype=bool), self.config.rows)

    def step_wait(self) -> VecEnvStepReturn:
        """Takes one decision in every run and trains its next interval."""
        if not self._over:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self._decision += 1
        steps = self._step_groups(np.split(self._actions, self.config.num_groups))
        features, scores, self._over, group_infos = map(list, zip(*steps, strict=True))
        observations = np.concatenate(features).astype(np.float32)
        rewards = np.concatenate(scores).astype(np.float32)
        infos = [info for part in group_infos for info in part]
        dones = self.idle
        for row in np.flatnonzero(dones):
            infos[row] |= {
                "terminal_observation": observations[row].copy(),
                "TimeLimit.truncated": False,
            }
        if self._decision == self.num_decisions:
            observations = self._next_reset()
        else:
            observations[dones] = 0.0
        return observations, rewards, dones, infos

    def _next_reset(self) -> NDArray[np.float32]:
        """The observations that follow an episode."""
        return self.reset()

    def await_reset(self) -> None:
        """Waits until the observations that followed the last episode are there: here they are.

        Learners call it before they act on them; see `RayScheduleVecEnv`.
        """

    def close(self) -> None:
        self._groups, self._over = [], []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Starts the sequence of episodes anew, from `seed`, at the next `reset`."""
        if seed is not None:
            self._seed = seed
            self.next_episode = 0
        return [self._seed] * self.num_envs

    # -- the rest of SB3's interface: one object serves all rows ------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        method = getattr(self, method_name)
        return [method(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
