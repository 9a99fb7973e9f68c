"""What meta-training does between rollouts: validate, keep the best policy, save, tell.

All of it happens at the start of a rollout, when the learner has just finished with the last one.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from pacesetter.agent.policy.policy import Policy, parse_policy, save_policy
from pacesetter.agent.runs.folder import write_text
from pacesetter.agent.runs.interruption import safe_point, stop_requested
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.agent.training.checkpoint import save_checkpoint
from pacesetter.agent.training.config import TrainConfig
from pacesetter.agent.training.validation import ValidationSuite
from pacesetter.envs.vec_env import ScheduleVecEnv

CHECKPOINT = "checkpoint.pt"
POLICY = "policy.safetensors"
VALIDATION = "validation.csv"


class MetaTraining(BaseCallback):
    """Validates, checkpoints and reports.

    Args:
        config: of the run.
        out: its folder.
        env: its environment.
        suite: what the policy is validated on.
        snapshot: makes a policy of the learner as it stands.
        extra: what a checkpoint kept, empty for a new run.
        progress: whether to show a progress bar.
        validate_start: whether the learner starts as something worth validating.
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
        self._snapshot, self._progress = snapshot, progress
        self._validate_start = validate_start
        self.history: list[tuple[int, int, float]] = [tuple(r) for r in extra.get("history", [])]
        best = extra.get("best")
        self.best = None
        if best is not None:
            self.best = parse_policy(best.numpy().tobytes(), source="the checkpoint's policy")
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
        self._bar.update(self._config.num_envs)
        self._idle.append(self._env.idle)
        return True

    def _on_rollout_end(self) -> None:
        # What rows do after the end of a short run says nothing: no gradient comes from it.
        buffer = self._learner.rollout_buffer
        idle = np.stack(self._idle)
        buffer.advantages[1:][idle[:-1]] = 0.0
        buffer.returns[1:][idle[:-1]] = buffer.values[1:][idle[:-1]]

    def _on_rollout_start(self) -> None:
        self._idle.clear()
        self._between(self.num_timesteps // self._config.rollout)
        self._env.await_reset()

    def _on_training_end(self) -> None:
        self._between(self._config.rollouts)
        self.close()

    def close(self) -> None:
        """Ends the progress bar, where a line may follow."""
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
        score = self._suite.score(policy.act).mean
        self.history.append((rollout, self.num_timesteps, score))
        if score < self._best_score:
            self.best, self._best_score = policy, score
            save_policy(policy, self._out / POLICY)
        self.logger.record("validation/score", score)
        self.logger.record("validation/best", self._best_score)
        self.logger.record("validation/seconds", time.perf_counter() - started)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("rollout", "decisions", "mean_log_ratio"))
        writer.writerows(self.history)
        write_text(self._out / VALIDATION, table.getvalue())
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
            last = self.history[-1][2]
            self._bar.set_postfix_str(
                f"validation {last:+.3f}, best {self._best_score:+.3f}", refresh=False
            )


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _validation_points(config: TrainConfig) -> frozenset[int]:
    """Numbers of finished rollouts at which the policy is validated; the last is among them."""
    count = min(config.validations, config.rollouts)
    return frozenset(round((i + 1) * config.rollouts / count) for i in range(count))
