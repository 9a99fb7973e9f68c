"""The scheduler agent: meta-training, policy files, and the plug-in for training jobs.

A training job only needs `LearnedScheduler`. `train` makes new policies; `load_policy`,
`save_policy` and `export_policy` read and write policy files. Names load at first use, so that
the plug-in needs neither gymnasium nor stable_baselines3.
"""

from typing import TYPE_CHECKING

from pacesetter.inner_models.lookup import lazy_exports

__all__ = [
    "CSVCallback",
    "LearnedScheduler",
    "Policy",
    "TensorBoardCallback",
    "TrainConfig",
    "WandbCallback",
    "export_policy",
    "load_policy",
    "save_policy",
    "train",
]

if TYPE_CHECKING:
    from pacesetter.agent.plugin.callbacks import CSVCallback, TensorBoardCallback, WandbCallback
    from pacesetter.agent.plugin.scheduler import LearnedScheduler
    from pacesetter.agent.policy.export import export_policy
    from pacesetter.agent.policy.policy import Policy, load_policy, save_policy
    from pacesetter.agent.training.config import TrainConfig
    from pacesetter.agent.training.train import train
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "CSVCallback": "plugin.callbacks",
            "LearnedScheduler": "plugin.scheduler",
            "Policy": "policy.policy",
            "TensorBoardCallback": "plugin.callbacks",
            "TrainConfig": "training.config",
            "WandbCallback": "plugin.callbacks",
            "export_policy": "policy.export",
            "load_policy": "policy.policy",
            "save_policy": "policy.policy",
            "train": "training.train",
        },
    )
