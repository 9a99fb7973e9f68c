"""What learns to set hyperparameters, and the plug-in that applies what was learned.

In a job of one's own only `LearnedScheduler` is needed; `train` makes new policies, and
`load_policy`, `save_policy` and `export_policy` move them in and out of files. Names load at
first use, so that the plug-in needs neither gymnasium nor stable_baselines3.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_EXPORTS = {
    "LearnedScheduler": "scheduler",
    "Policy": "policy",
    "export_policy": "export",
    "load_policy": "policy",
    "save_policy": "policy",
    "train": "ppo",
}
__all__ = [
    "LearnedScheduler",
    "Policy",
    "export_policy",
    "load_policy",
    "save_policy",
    "train",
]

if TYPE_CHECKING:
    from pacesetter.agent.export import export_policy
    from pacesetter.agent.policy import Policy, load_policy, save_policy
    from pacesetter.agent.ppo import train
    from pacesetter.agent.scheduler import LearnedScheduler
else:

    def __getattr__(name: str) -> object:
        """Imports a public name from its module at first use."""
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
