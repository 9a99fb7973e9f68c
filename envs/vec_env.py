"""The vectorised environment for meta-training: several groups of runs, each one tensor program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.groups import FamilyGroups
from pacesetter.envs.gym_env import action_space, observation_space
from pacesetter.envs.rewards import SPREAD_FLOOR, RewardForm
from pacesetter.envs.turns import FloatArray, Group, GroupSource, Turn
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
        num_groups: groups per episode.
        tasks_per_group: tasks of one shape per group.
        siblings: runs per task, at least 2.
        device: where the inner runs live.
        seed: decides all tasks.
        control: bounds and step sizes of the control.
        spread_floor: floor under the siblings' spread in the reward, or its unit.
        reward: form of the reward.
        family_weights: how often each family is drawn, relative to the others; empty: equally.
        hidden_features: names of features that read zero, to learn what they are worth.
        dtype: of the inner runs' parameters and data.

    Raises:
        ValueError: a number is out of range, a family unknown, or (when it is drawn) a family's
            horizon too short for a decision.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        families: Sequence[str | TaskFamily],
        *,
        num_groups: int = 4,
        tasks_per_group: int = 4,
        siblings: int = 8,
        device: torch.device | str = "cpu",
        seed: int = 0,
        control: ControlConfig | None = None,
        spread_floor: float = SPREAD_FLOOR,
        reward: RewardForm = "z-score",
        family_weights: Sequence[float] = (),
        hidden_features: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(families, str) or not families:
            raise ValueError(f"families must be a non-empty list, but got {families!r}")
        for name, value, least in (
            ("num_groups", num_groups, 1),
            ("tasks_per_group", tasks_per_group, 1),
            ("siblings", siblings, 2),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but got {value}")
        self.families = [make_family(f) if isinstance(f, str) else f for f in families]
        self.control = control or ControlConfig()
        self.render_mode = None
        self.next_episode = 0
        self._seed = seed
        self._source: GroupSource = FamilyGroups(
            families=tuple(self.families),
            tasks_per_group=tasks_per_group,
            siblings=siblings,
            control=self.control,
            device=device,
            dtype=dtype,
            spread_floor=spread_floor,
            reward=reward,
            weights=tuple(family_weights),
            hidden_features=tuple(hidden_features),
        )
        self._num_groups = num_groups
        self._groups: list[Group] = []
        self._over: list[bool] = []
        self._decision = 0
        self._actions = np.zeros((0, NUM_ACTIONS))
        num_envs = num_groups * tasks_per_group * siblings
        super().__init__(num_envs, observation_space(), action_space())

    @property
    def num_decisions(self) -> int:
        """Decisions of an episode, K - 1: the ``n_steps`` of one rollout."""
        return self.control.num_intervals - 1

    @property
    def tasks(self) -> list[Task]:
        """The task of each row."""
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
        self._over = [False] * self._num_groups
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]

    def _draw(self, episode: int) -> None:
        """Draws the groups of an episode; they have not begun."""
        source, seed = self._source, self._seed
        self._groups = [source.draw(seed, episode, g) for g in range(self._num_groups)]

    def _begin(self) -> list[FloatArray]:
        """Features of each group after its first interval."""
        return [group.begin() for group in self._groups]

    def _take(self, parts: Sequence[NDArray[Any]]) -> list[Turn]:
        """One decision of each group."""
        return [g.turn(part) for g, part in zip(self._groups, parts, strict=True)]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Holds the actions, (num_envs, 3), for `step_wait`."""
        self._actions = np.asarray(actions, dtype=np.float64)

    @property
    def idle(self) -> NDArray[np.bool_]:
        """(num_envs,), rows whose run is over while others go on."""
        return np.repeat(np.array(self._over, dtype=bool), self.num_envs // self._num_groups)

    def step_wait(self) -> VecEnvStepReturn:
        """Takes one decision in every run and trains its next interval."""
        if not self._over:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self._decision += 1
        turns = self._take(np.split(self._actions, self._num_groups))
        self._over = [turn.over for turn in turns]
        observations = np.concatenate([turn.features for turn in turns]).astype(np.float32)
        rewards = np.concatenate([turn.rewards for turn in turns]).astype(np.float32)
        infos = [info for turn in turns for info in turn.infos]
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
        """Lets the runs go."""
        self._groups, self._over = [], []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Starts the sequence of episodes anew, from `seed`, at the next `reset`."""
        if seed is not None:
            self._seed = seed
            self.next_episode = 0
        return [self._seed] * self.num_envs

    # -- the rest of SB3's interface: one object serves all rows ------------------------------

    def _rows(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, once per row asked for."""
        return [getattr(self, attr_name) for _ in self._rows(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute of this object; rows cannot differ."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Calls the method of this object, once per row asked for."""
        method = getattr(self, method_name)
        return [method(*args, **kwargs) for _ in self._rows(indices)]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._rows(indices)]
