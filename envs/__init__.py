"""Inner runs as decision processes: observations, actions and rewards.

`ScheduleEnv` is one run behind the Gymnasium interface, `ScheduleVecEnv` many behind that of
Stable-Baselines3. Names load at first use: features, actions and rewards, which the plug-in
shares, need neither of these libraries.
"""

from typing import TYPE_CHECKING

from pacesetter.inner_models.lookup import lazy_exports

__all__ = [
    "FEATURES",
    "ControlConfig",
    "EnvConfig",
    "ScheduleEnv",
    "ScheduleVecEnv",
]

if TYPE_CHECKING:
    from pacesetter.envs.actions import ControlConfig
    from pacesetter.envs.config import EnvConfig
    from pacesetter.envs.features import FEATURES
    from pacesetter.envs.gym_env import ScheduleEnv
    from pacesetter.envs.vec_env import ScheduleVecEnv
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ControlConfig": "actions",
            "EnvConfig": "config",
            "FEATURES": "features",
            "ScheduleEnv": "gym_env",
            "ScheduleVecEnv": "vec_env",
        },
    )
