"""One decision of one job: policy, familiarity meter and decision core, and what is told of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pacesetter.agent.plugin.history import Intervention
from pacesetter.agent.policy.familiarity import FamiliarityMeter
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.decision import Broadcast, DecisionCore
from pacesetter.envs.features import FloatArray
from pacesetter.inner_models.watch.signals import IntervalStatistics


class Pilot:
    """Decides for one run.

    Args:
        policy: what decides.
        core: of the run, at its beginning.
        sets_lr: whether the learning rate is the policy's to set.
        can_roll_back: whether there are snapshots; without, the learning rate is cut instead.
    """

    def __init__(
        self, policy: Policy, core: DecisionCore, *, sets_lr: bool, can_roll_back: bool
    ) -> None:
        self.core = core
        self.can_roll_back = can_roll_back
        self._policy = policy
        self._sets_lr = sets_lr
        self._meter = FamiliarityMeter(policy.familiarity, num_runs=1)
        self._strange = self._overfits = False

    def decide(
        self, stats: IntervalStatistics, *, step: int, broadcast: Broadcast
    ) -> tuple[FloatArray, FloatArray, tuple[Intervention, ...]]:
        """Takes one decision.

        Args:
            stats: of the interval that has just ended.
            step: updates done, for the records.
            broadcast: makes all ranks of a distributed job do as the first one does.

        Returns:
            (NUM_FEATURES,), what the policy saw; (3,), the action taken; and what guard and meter
            did.
        """
        core = self.core
        features = core.encode(stats)
        core.judge(stats)
        strange = self._meter.update(features)
        action = core.decide(self._policy.act(features), set_aside=strange, broadcast=broadcast)
        notes = self._tell(stats, step=step, strange=bool(strange[0]))
        self._strange, self._overfits = bool(strange[0]), bool(core.overfitting[0])
        return features[0], action[0], tuple(notes)

    def judge_end(
        self, stats: IntervalStatistics, *, step: int, broadcast: Broadcast
    ) -> list[Intervention]:
        """Judges the last interval, after which nothing is decided.

        Returns:
            What is to be done: nothing, or going back to the last good snapshot.
        """
        roll_back = self.core.judge(stats).roll_back
        if not (broadcast(roll_back.astype(np.float64))[0] and self.can_roll_back):
            return []
        detail = "the loss diverged in the last interval: back to the last good weights"
        return [Intervention(step=step, kind="rollback", detail=detail)]

    def _tell(self, stats: IntervalStatistics, *, step: int, strange: bool) -> list[Intervention]:
        """What guard and meter did; of states that last, only the beginning is told."""
        verdict = self.core.verdict
        assert verdict is not None
        notes: list[tuple[str, str]] = []
        cause = "the loss or the gradient norm rose far above what it was"
        if stats.nonfinite_share[0] > 0:
            broken = round(float(stats.nonfinite_share[0]) * len(stats.losses))
            cause = f"{broken} of {len(stats.losses)} steps were not finite"
        smaller = f"the learning rate is divided by {math.exp(-verdict.lr_cut[0]):.3g}"
        if verdict.roll_back[0] and self.can_roll_back:
            notes.append(("rollback", f"{cause}: back to the last good weights, and {smaller}"))
        elif verdict.lr_cut[0] < 0:
            notes.append(("lr_cut", f"{cause}: {smaller}"))
        if verdict.handed_over[0]:
            notes.append(("handover", f"{cause} again: from here on the plain decay decides alone"))
        if strange and not self._strange:
            notes.append(
                (
                    "unfamiliar",
                    "the statistics of this job are unlike all that the policy was trained on: "
                    "the plain decay decides while that is so",
                )
            )
        if self._sets_lr and self.core.overfitting[0] and not (strange or self._overfits):
            notes.append(
                (
                    "overfitting",
                    "the validation loss has risen above its best: the learning rate falls as "
                    "fast as it may while that is so",
                )
            )
        return [Intervention(step=step, kind=kind, detail=detail) for kind, detail in notes]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy, as plain types."""
        return {
            **self.core.state_dict(),
            "meter": self._meter.state_dict(),
            "strange": self._strange,
            "overfits": self._overfits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.core.load_state_dict(state)
        self._meter.load_state_dict(state["meter"])
        self._strange, self._overfits = state["strange"], state["overfits"]
