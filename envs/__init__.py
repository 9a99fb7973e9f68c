"""Inner runs as decision processes: what the agent sees, may do, and is rewarded for.

`ScheduleEnv` is one run behind the Gymnasium interface, `ScheduleVecEnv` many behind that of
Stable-Baselines3. Names load at first use: encoder, codec and rewards, which the plug-in shares,
need neither of these libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_EXPORTS = {
    "ScheduleEnv": "schedule_env",
    "ScheduleVecEnv": "schedule_vec_env",
}
__all__ = [
    "ScheduleEnv",
    "ScheduleVecEnv",
]

if TYPE_CHECKING:
    from pacesetter.envs.schedule_env import ScheduleEnv
    from pacesetter.envs.schedule_vec_env import ScheduleVecEnv
else:

    def __getattr__(name: str) -> object:
        """Imports a public name from its module at first use."""
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
