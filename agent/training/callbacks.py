"""What meta-training does between rollouts: validate, keep the best policy, save, tell.

All of it happens at the start of a rollout, when the learner has just finished with the last one
and no inner run is under way: the next groups are rebuilt from their seeds. A checkpoint holds
tensors and plain numbers, no pickle of objects.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from pacesetter.agent.policy.policy import Policy, parse_policy, save_policy
from pacesetter.agent.runs.folder import write_bytes, write_text
from pacesetter.agent.runs.interruption import safe_point, stop_requested
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.validation import ValidationSuite
from pacesetter.envs.vec_env import ScheduleVecEnv

CHECKPOINT = "checkpoint.pt"
POLICY = "policy.safetensors"
VALIDATION = "validation.csv"


class BusyRolloutBuffer(RolloutBuffer):
    """A rollout without the rows that are idle after the end of a short run.

    What they do says nothing: they are left out of every minibatch. Targets that equal the critic's
    values would not do, for the critic moves with the first minibatch.

    Attributes:
        busy: (num_envs * num_steps,), one row's steps after another's; empty: all are.
    """

    busy: NDArray[np.bool_] = np.zeros(0, dtype=bool)

    def get(self, batch_size: int | None = None) -> Iterator[RolloutBufferSamples]:  # type: ignore[override]
        for samples in super().get(batch_size):
            if len(samples.observations):
                yield samples

    def _get_samples(
        self, batch_inds: NDArray[Any], env: VecNormalize | None = None
    ) -> RolloutBufferSamples:
        busy = batch_inds[self.busy[batch_inds]] if len(self.busy) else batch_inds
        return super()._get_samples(busy, env)


class MetaTraining(BaseCallback):
    """Validates, checkpoints and reports.

    What a checkpoint kept is `extra`, empty for a new run; `validate_start` tells whether the
    learner starts as something worth validating.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        out: Path,
        env: ScheduleVecEnv,
        suite: ValidationSuite,
        snapshot: Callable[[PPO], Policy],
        extra: dict[str, Any],
        progress: bool,
        validate_start: bool = False,
    ) -> None:
        super().__init__()
        self._config, self._out, self._env, self._suite = config, out, env, suite
        self._snapshot, self._progress, self._validate_start = snapshot, progress, validate_start
        self.history: list[tuple[int, int, float]] = [tuple(r) for r in extra.get("history", [])]
        best = extra.get("best")
        source = "the checkpoint's policy"
        self.best = None if best is None else parse_policy(best.numpy().tobytes(), source=source)
        self._best_score = float(extra.get("best_score", float("inf")))
        self._due = _validation_points(config)
        self._finished = int(extra.get("rollout", 0))
        self._average: dict[str, Tensor] = extra.get("average", {})
        self._bar: Any = None
        self._idle: list[NDArray[np.bool_]] = []

    @property
    def _learner(self) -> PPO:
        assert isinstance(self.model, PPO)
        return self.model

    def _on_training_start(self) -> None:
        self._bar = progress_bar(
            "meta-training",
            total=self._config.rollouts * self._config.rollout,
            unit="decisions",
            shown=self._progress,
            done=self.num_timesteps,
        )
        self._show()
        if self._validate_start and not self.history:
            weights = self._learner.policy.state_dict()
            self._average = {name: value.clone() for name, value in weights.items()}
            self._validate(0)

    def _on_step(self) -> bool:
        self._bar.update(self._config.env.num_envs)
        self._idle.append(self._env.idle)
        return True

    def _on_rollout_end(self) -> None:
        # A row is idle in a step if its run was over after the step before.
        busy = np.ones((len(self._idle), self._config.env.num_envs), dtype=bool)
        busy[1:] = ~np.stack(self._idle)[:-1]
        buffer = self._learner.rollout_buffer
        assert isinstance(buffer, BusyRolloutBuffer)
        buffer.busy = busy.T.ravel()  # in the order in which the buffer lays its entries out

    def _on_rollout_start(self) -> None:
        self._idle.clear()
        self._between(self.num_timesteps // self._config.rollout)
        self._env.await_reset()

    def _on_training_end(self) -> None:
        self._between(self._config.rollouts)
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _between(self, rollout: int) -> None:
        if rollout <= self._finished:  # a resumed run begins where this was done
            return
        self._finished = rollout
        self._take_average(rollout)
        if rollout in self._due:
            self._validate(rollout)
        regular = rollout % self._config.checkpoint_every == 0
        if regular or rollout == self._config.rollouts or stop_requested():
            extra = {
                "rollout": rollout,
                "history": [list(row) for row in self.history],
                "best": None if self.best is None else _as_tensor(self.best.to_bytes()),
                "best_score": self._best_score,
                "average": self._average,
            }
            save_checkpoint(self._out / CHECKPOINT, self._learner, self._env, extra)
        safe_point()

    def _validate(self, rollout: int) -> None:
        started = time.perf_counter()
        policy = self._averaged_policy()
        score = float(self._suite.score(policy.act).mean())
        self.history.append((rollout, self.num_timesteps, score))
        if score < self._best_score:
            self.best, self._best_score = policy, score
            save_policy(policy, self._out / POLICY)
        self.logger.record("validation/score", score)
        self.logger.record("validation/best", self._best_score)
        self.logger.record("validation/seconds", time.perf_counter() - started)
        rows = [("rollout", "decisions", "mean_log_ratio"), *self.history]
        write_text(self._out / VALIDATION, "".join(f"{a},{b},{c}\n" for a, b, c in rows))
        self._show()

    def _take_average(self, rollout: int) -> None:
        # The past counts less at first, when the weights still move far.
        past = min(self._config.averaging, rollout / (rollout + 9))
        for name, now in self._learner.policy.state_dict().items():
            old = self._average.get(name, now)
            self._average[name] = past * old + (1 - past) * now

    def _averaged_policy(self) -> Policy:
        """A policy of the averaged weights; the learner keeps its own."""
        network = self._learner.policy
        own = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self._average)
        try:
            return self._snapshot(self._learner)
        finally:
            network.load_state_dict(own)

    def _show(self) -> None:
        if self.history and self._bar is not None:
            text = f"validation {self.history[-1][2]:+.3f}, best {self._best_score:+.3f}"
            self._bar.set_postfix_str(text, refresh=False)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _validation_points(config: TrainConfig) -> frozenset[int]:
    """After which rollouts the policy is validated; the last is among them."""
    count = min(config.validations, config.rollouts)
    return frozenset(round((i + 1) * config.rollouts / count) for i in range(count))


def save_checkpoint(path: Path, model: PPO, env: ScheduleVecEnv, extra: dict[str, Any]) -> None:
    """Writes network, optimizer, counters and random states, whole or not at all.

    The learner is between two rollouts; `extra` holds tensors and plain Python values.
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (SB3 draws here)
    state = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        # The current episode was drawn already; a resumed run draws it again.
        "episode": env.next_episode - 1,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
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
        name, keys, *rest = state["numpy_rng"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        extra: dict[str, Any] = state["extra"]
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint of this run: {error}") from error
    return extra
