"""The Gymnasium environment: one inner training run, scheduled by an agent."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, NUM_FEATURES
from pacesetter.envs.rewards import CLIP, improvement
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.registry import make_family
from pacesetter.inner_models.task import Task, TaskFamily

Observation = NDArray[np.float32]


def observation_space() -> Any:
    return spaces.Box(-FEATURE_BOUND, FEATURE_BOUND, (NUM_FEATURES,), np.float32)


def action_space() -> Any:
    return spaces.Box(-1.0, 1.0, (NUM_ACTIONS,), np.float32)


class ScheduleEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Sets learning rate, momentum and gradient clipping of one training run.

    ## Description
    An inner run trains a PyTorch model on a task for a fixed number of steps, its horizon. The run
    is divided into K intervals (40, or half the horizon where that is less); at each of the K - 1
    boundaries between them the agent sees statistics of the interval and adjusts three
    hyperparameters. The base schedule, on which the actions are a residual, is a cosine decay to
    1 % after a ramp over the first interval.

    ## Action Space
    `Box(-1, 1, (3,), float32)`; zero means "carry on".

    | Num | Action | at -1 | at +1 |
    |---|---|---|---|
    | 0 | change of log learning rate | -0.35 | 0.35 |
    | 1 | change of log(1 - momentum) | -0.15 | 0.15 |
    | 2 | change of log clip ratio (threshold over running gradient norm) | -0.15 | 0.15 |

    ## Observation Space
    `Box(-5, 5, (NUM_FEATURES,), float32)`: the entries of `pacesetter.envs.features.FEATURES`, in
    their order, each `(raw - centre) / scale`. No entry changes under an affine change of the loss.

    | Group | Entries |
    |---|---|
    | progress and control | progress, horizon, offsets of the three hyperparameters, last actions |
    | training loss | falls over one, several and all intervals, distance from the best, spread |
    | gradient | norm against the first and the last interval, spread, clipped and broken shares |
    | directions | cosine of gradient with momentum and with the previous update, update size |
    | validation | whether there is any, its age, against its best, its first, the training loss |

    ## Rewards
    Zero until the end; then the improvement of the final outer-valid loss over a reference run of
    the same task with zero actions: the log ratio of the losses where they are positive, else their
    difference over what the reference gained, clipped at 2.5. A diverged run gets -2.5.

    ## Starting State
    The observation after the first interval, which no action has touched. A family's task is drawn
    anew at each reset; a task that pins its seed repeats the same run, another draws initial
    weights and batch order anew.

    ## Episode End
    Terminated at the horizon, or when every step of an interval broke (a loss or a gradient norm
    that is not finite), with the reward of a diverged run. Never truncated.

    ## Arguments
    ```python
    gymnasium.make("pacesetter.envs.registration:pacesetter/Schedule-v0", task="teacher-mlp")
    ```
    Args:
        task: a task, a task family, or the name of one: of a bundled family, or
            ``module:attribute`` for one of your own.
        device: where the inner run lives.
        control: bounds and step sizes of the control.
        dtype: of the inner run's parameters and data.
        render_mode: None, the only one.

    Raises:
        ValueError: the family is unknown, the horizon too short for a decision (under 4 steps), or
            a render mode is given.
        TypeError: `task` is none of the three.

    ## Version History
    * v0: initial version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own attribute)

    def __init__(
        self,
        task: Task | TaskFamily | str = "teacher-mlp",
        *,
        device: torch.device | str = "cpu",
        control: ControlConfig | None = None,
        dtype: torch.dtype = torch.float32,
        render_mode: None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(
                f"ScheduleEnv draws nothing: render_mode must be None, but got {render_mode!r}"
            )
        if isinstance(task, str):
            task = make_family(task)
        if not isinstance(task, Task | TaskFamily):
            raise TypeError(
                "task must be a ModuleTask, a TaskFamily or the name of a family, "
                f"but got {type(task).__name__}"
            )
        self._source = task
        self._device = torch.device(device)
        self._dtype = dtype
        self.control = control or ControlConfig()
        self.observation_space = observation_space()
        self.action_space = action_space()
        self._runs: ScheduledRuns | None = None
        self._start_loss = np.nan
        self._over = False
        if isinstance(task, Task):
            _check_horizon(task)

    @property
    def task(self) -> Task:
        """The task of the current episode."""
        return self._episode.tasks[0]

    @property
    def _episode(self) -> ScheduledRuns:
        if self._runs is None:
            raise gymnasium.error.ResetNeeded("call reset() before anything else")
        return self._runs

    def _next_task(self) -> Task:
        # The seed is drawn for every kind of task, so that np_random moves alike.
        seed = int(self.np_random.integers(2**62))
        if isinstance(self._source, TaskFamily):
            return self._source.sample(torch.Generator().manual_seed(seed))
        return self._source if self._source.seed is not None else self._source.with_seed(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a run and trains its first interval; `seed` is that of tasks and their seeds.

        Returns:
            The first observation, and an info with the hyperparameters.
        """
        super().reset(seed=seed, options=options)
        task = self._next_task()
        _check_horizon(task)
        self._runs = None  # what fails below leaves no episode behind
        # Row 0 is the agent's run; row 1 is its sibling with zero actions, the reference.
        runs = ScheduledRuns(
            [task], siblings=2, control=self.control, device=self._device, dtype=self._dtype
        )
        self._start_loss = float(runs.final_losses()[0, 0])
        features = runs.begin()
        self._runs, self._over = runs, False
        return features[0].astype(np.float32), self._info()

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes one decision, (3,) in [-1, 1], and trains the next interval.

        Returns:
            Observation, reward, terminated, truncated (always False) and info.

        Raises:
            gymnasium.error.ResetNeeded: there is no episode, or it is over.
            ValueError: the action has another shape, or is not finite.
        """
        runs = self._episode
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over (terminated): call reset()")
        own = np.asarray(action)
        if own.shape != (NUM_ACTIONS,) or own.dtype.kind not in "fiu" or not np.isfinite(own).all():
            raise ValueError(
                f"an action must be finite and of the shape of {self.action_space}, but got "
                f"{' '.join(repr(action).split()):.80}, of shape {own.shape}"
            )
        features = runs.decide(np.stack((own.astype(np.float64), np.zeros(NUM_ACTIONS))))
        info, reward = self._info(), 0.0
        assert runs.stats is not None
        diverged = bool(runs.stats.nonfinite_share[0] >= 1.0)
        self._over = diverged or runs.done
        if diverged:
            reward = -CLIP
            info |= {"outer_valid_loss": np.nan, "reference_loss": np.nan}
        elif runs.done:
            loss, reference = runs.final_losses()[0]
            reward = improvement(float(loss), reference=float(reference), start=self._start_loss)
            info |= {"outer_valid_loss": float(loss), "reference_loss": float(reference)}
        return features[0].astype(np.float32), reward, self._over, False, info

    def render(self) -> None:
        """Draws nothing, and says so."""
        gymnasium.logger.warn(
            "ScheduleEnv has no render mode: the info of step() tells what can be plotted"
        )

    def __getstate__(self) -> dict[str, Any]:
        if self._runs is not None and not self._over:
            raise TypeError(
                "ScheduleEnv cannot be pickled or copied in mid-episode, as its training run stays "
                "behind: do so before reset() or after the end, and call reset() on the copy"
            )
        return {**self.__dict__, "_runs": None}

    def _info(self) -> dict[str, Any]:
        runs = self._episode
        return {
            "step": runs.trainer.step_count,
            "lr": float(runs.lr[0]),
            "momentum": float(runs.codec.momentum[0]),
            "clip_ratio": float(runs.codec.clip_ratio[0]),
        }


def _check_horizon(task: Task) -> None:
    if task.horizon < 4:
        raise ValueError(
            f"task {task.name!r} needs a horizon of at least 4 steps for one decision, "
            f"but has {task.horizon}"
        )
