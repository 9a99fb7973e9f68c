"""The decision process of N runs: statistics in, features out; actions in, hyperparameters out.

Environments, plug-in and evaluation all decide here, so that an agent meets in a job what it met in
meta-training. Nothing in here trains, and nothing needs torch: whoever holds the runs takes the
statistics, carries out the verdict and sets the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pacesetter.envs.actions import NUM_ACTIONS, ActionCodec, FloatArray
from pacesetter.envs.features import FeatureEncoder
from pacesetter.inner_models.watch.guard import BoolArray, DivergenceGuard, Verdict
from pacesetter.inner_models.watch.signals import IntervalStatistics

CONTROLS = ("lr", "momentum", "clip")
"""Hyperparameters under control, in the order of the actions."""

Broadcast = Callable[[FloatArray], FloatArray]
"""Takes an array of any shape and returns that of the first process of a job."""


class DecisionCore:
    """Encoder, guard and codec of runs that decide together.

    After every interval call `encode` and `judge`, in any order. Unless it was the last one, call
    `decide` then.

    Args:
        codec: of runs that have just begun.
        adaptive: whether the optimizer divides by its second moment.
        control: those of CONTROLS that are set; the actions of the others have no effect.
        guard: of these runs; None: that of the environments.

    Attributes:
        codec: where the hyperparameters stand.
        encoder: what the agent sees, and remembers.
    """

    def __init__(
        self,
        codec: ActionCodec,
        *,
        adaptive: bool,
        control: Collection[str] = CONTROLS,
        guard: DivergenceGuard | None = None,
    ) -> None:
        self.codec = codec
        self.encoder = FeatureEncoder(codec.num_runs, adaptive=adaptive)
        self._verdict: Verdict | None = None
        self._guard = guard or DivergenceGuard(codec.num_runs)
        self._mask = np.array([float(name in control) for name in CONTROLS])

    @property
    def interval(self) -> int:
        """Number of the interval that is under way or has just ended, from 1."""
        return self.codec.decisions + 1

    @property
    def verdict(self) -> Verdict:
        """That on the latest interval; after a decision, that of the first process."""
        if self._verdict is None:
            raise RuntimeError("there is no verdict before judge()")
        return self._verdict

    @property
    def overfitting(self) -> BoolArray:
        """(num_runs,), whether validation losses say that further training does harm."""
        return self.encoder.overfitting

    def observe_validation(self, losses: FloatArray) -> None:
        """Takes in validation losses, (num_runs,), for the next `encode`; NaN: there is none."""
        self.encoder.observe_validation(losses)

    def encode(self, stats: IntervalStatistics) -> FloatArray:
        """What the agent sees of the interval that has just ended: (num_runs, NUM_FEATURES)."""
        return self.encoder.encode(stats, self.codec, interval=self.interval)

    def judge(self, stats: IntervalStatistics) -> Verdict:
        """Judges the interval that has just ended.

        At the horizon, where a cut of the learning rate would come too late, every run that has
        diverged is to go back to its last good snapshot.
        """
        verdict = self._guard.judge(stats)
        if self.interval >= len(self.codec.ends):
            may = verdict.alarm & self._guard.may_roll_back
            verdict = replace(verdict, roll_back=verdict.roll_back | may)
        self._verdict = verdict
        return verdict

    def decide(
        self,
        actions: ArrayLike,
        *,
        set_aside: BoolArray | None = None,
        broadcast: Broadcast | None = None,
    ) -> FloatArray:
        """Takes one decision for every run.

        Where a run overfits, its learning rate falls as fast as it may, whatever the action. Where
        the guard follows the plain decay, or the caller asks for it, the action is zero. The cuts
        of the guard come on top.

        Args:
            actions: (num_runs, 3) in [-1, 1].
            set_aside: (num_runs,), where the plain decay is to be followed; None: nowhere.
            broadcast: of a job on several processes, so that all of them decide alike; None: there
                is one.

        Returns:
            (num_runs, 3), the actions taken.

        Raises:
            RuntimeError: no interval was judged yet.
            ValueError: the actions have another shape or are not finite.
        """
        verdict = self.verdict
        taken = np.array(actions, dtype=np.float64)
        if taken.shape == (self.codec.num_runs, NUM_ACTIONS):  # else the codec refuses them
            taken[self.overfitting, 0] = -1.0
            taken = taken * self._mask
            plain = verdict.plain if set_aside is None else verdict.plain | set_aside
            taken = np.where(plain[:, None], 0.0, taken)
            if broadcast is not None:
                taken, verdict = _agreed(taken, verdict, broadcast)
                self._verdict = verdict
        self.codec.apply(taken, lr_cut=verdict.lr_cut * self._mask[0], headroom=verdict.headroom)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, as plain types."""
        return {
            "codec": self.codec.state_dict(),
            "encoder": self.encoder.state_dict(),
            "guard": self._guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.codec.load_state_dict(state["codec"])
        self.encoder.load_state_dict(state["encoder"])
        self._guard.load_state_dict(state["guard"])


def _agreed(
    actions: FloatArray, verdict: Verdict, broadcast: Broadcast
) -> tuple[FloatArray, Verdict]:
    """Actions and verdict of the first process."""
    columns = {field.name: getattr(verdict, field.name) for field in fields(verdict)}
    table = broadcast(np.column_stack([actions, *columns.values()]).astype(np.float64))
    rest = zip(columns.items(), table.T[NUM_ACTIONS:], strict=True)
    same = {name: row.astype(column.dtype) for (name, column), row in rest}
    return np.ascontiguousarray(table[:, :NUM_ACTIONS]), Verdict(**same)
