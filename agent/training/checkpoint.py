"""Checkpoints of meta-training: all that a resumed run needs to end in the same policy.

Taken between rollouts only, when no inner run is under way: the next groups are rebuilt from their
seeds. Tensors and plain numbers, no pickle of objects.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from pacesetter.agent.runs.folder import write_bytes
from pacesetter.envs.vec_env import ScheduleVecEnv


def save_checkpoint(path: Path, model: PPO, env: ScheduleVecEnv, extra: dict[str, Any]) -> None:
    """Writes network, optimizer, counters and random states, whole or not at all.

    Args:
        path: the file.
        model: the learner, between two rollouts.
        env: its environment, whose current episode has not begun to be learned from.
        extra: anything else to keep: tensors and plain Python values.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (SB3 draws here)
    state = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        # The current episode was drawn already; a resumed run draws it again.
        "episode": env.next_episode - 1,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "extra": extra,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, model: PPO, env: ScheduleVecEnv) -> dict[str, Any]:
    """Restores what `save_checkpoint` wrote; returns its `extra`.

    Raises:
        ValueError: the file is not a checkpoint of this learner.
    """
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # whatever torch makes of a file that is not one of its own
        raise ValueError(f"{path} is not a checkpoint, or is broken: {error}") from error
    try:
        model.policy.load_state_dict(state["policy"])
        model.policy.optimizer.load_state_dict(state["optimizer"])
        model.num_timesteps = state["num_timesteps"]
        model._n_updates = state["n_updates"]
        env.next_episode = state["episode"]
        torch.set_rng_state(state["torch_rng"])
        name, keys, position, has_gauss, cached = state["numpy_rng"]
        np.random.set_state(  # noqa: NPY002
            (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
        )
        extra: dict[str, Any] = state["extra"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run: {error}") from error
    return extra
