"""One job under a policy: its decisions, why the policy was overruled, and when to stop."""

from __future__ import annotations

import math
from typing import Any

from pacesetter.agent.plugin.history import Intervention
from pacesetter.agent.plugin.snapshot import JobSnapshot
from pacesetter.agent.policy.familiarity import FamiliarityMeter
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import FloatArray
from pacesetter.envs.decision import Broadcast, DecisionCore
from pacesetter.inner_models.watch.signals import IntervalStatistics


class Decider:
    """Policy and familiarity meter on top of the decision core of one run.

    Where there is no snapshot to roll back to, the learning rate is cut instead.
    """

    def __init__(
        self, policy: Policy, core: DecisionCore, *, sets_lr: bool, snapshot: JobSnapshot | None
    ) -> None:
        self.core, self.snapshot, self._policy = core, snapshot, policy
        self._sets_lr, self._told_of_changes = sets_lr, False
        self._meter = FamiliarityMeter(policy.familiarity, num_runs=1)
        self._strange = self._overfits = False

    def decide(
        self, stats: IntervalStatistics, *, step: int, broadcast: Broadcast
    ) -> tuple[FloatArray, FloatArray, tuple[Intervention, ...]]:
        """What the policy sees, (NUM_FEATURES,), the action taken, (3,), and interventions."""
        features = self.core.encode(stats)
        self.core.judge(stats)
        strange = self._meter.update(features)
        action = self.core.decide(
            self._policy.act(features), set_aside=strange, broadcast=broadcast
        )
        notes = self._notes(stats, strange=bool(strange[0]))
        self._strange, self._overfits = bool(strange[0]), bool(self.core.overfitting[0])
        interventions = (Intervention(step=step, kind=kind, detail=text) for kind, text in notes)
        return features[0], action[0], tuple(interventions)

    def judge_end(
        self, stats: IntervalStatistics, *, step: int, broadcast: Broadcast
    ) -> list[Intervention]:
        """Judges the last interval, after which nothing is decided: nothing, or one rollback."""
        roll_back = broadcast(self.core.judge(stats).roll_back.astype(float))
        if not (roll_back[0] and self.can_roll_back):
            return []
        detail = "the loss diverged in the last interval: back to the last good weights"
        return [Intervention(step=step, kind="rollback", detail=detail + self._changes())]

    @property
    def can_roll_back(self) -> bool:
        """Whether there are weights to go back to: in a model that grows, all may be new."""
        return self.snapshot is not None and self.snapshot.coverage()[0] > 0

    def _changes(self) -> str:
        """What a rollback leaves alone; said once."""
        left = 0 if self.snapshot is None else self.snapshot.coverage()[1]
        if not left or self._told_of_changes:
            return ""
        self._told_of_changes = True
        return f"; what is new or has changed its shape since stays as it is (tensors: {left})"

    def _notes(self, stats: IntervalStatistics, *, strange: bool) -> list[tuple[str, str]]:
        """Kinds and details of interventions; of what lasts, only the beginning."""
        verdict, notes = self.core.verdict, []
        cause = "the loss or the gradient norm rose far above what it was"
        if stats.nonfinite_share[0] > 0:
            broken = round(float(stats.nonfinite_share[0]) * len(stats.losses))
            cause = f"{broken} of {len(stats.losses)} steps were not finite"
        smaller = "the learning rate stays, as it is not under control"
        if self._sets_lr:
            smaller = f"the learning rate is divided by {math.exp(-verdict.lr_cut[0]):.3g}"
        if verdict.roll_back[0]:
            smaller += self._changes()
        if verdict.roll_back[0] and self.can_roll_back:
            notes.append(("rollback", f"{cause}: back to the last good weights, and {smaller}"))
        elif verdict.lr_cut[0] < 0:
            notes.append(("lr_cut", f"{cause}: {smaller}"))
        if verdict.handed_over[0]:
            notes.append(("handover", f"{cause} again: from here on the plain decay decides alone"))
        if strange and not self._strange:
            what = (
                "the statistics of this job are unlike all that the policy was trained on: the "
                "plain decay decides while that is so"
            )
            notes.append(("unfamiliar", what))
        if self._sets_lr and self.core.overfitting[0] and not (strange or self._overfits):
            what = (
                "the validation loss has risen above its best: the learning rate falls as fast as "
                "it may while that is so (of a measure of which more is better, give mode='max')"
            )
            notes.append(("overfitting", what))
        return notes

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.core.state_dict(),
            "meter": self._meter.state_dict(),
            "strange": self._strange,
            "overfits": self._overfits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.core.load_state_dict(state)
        self._meter.load_state_dict(state["meter"])
        self._strange, self._overfits = state["strange"], state["overfits"]


class EarlyStopping:
    """Says when the best validation loss lies `patience` intervals back; None: never.

    Only intervals with a validation count, so that their cadence does not matter; of several in one
    interval the best counts. A loss that is not finite is no better than any other. It takes "stop"
    back as soon as there is a better one.

    >>> stopping = EarlyStopping(2)
    >>> for loss in (0.5, 0.6, 0.5):
    ...     stopping.observe(loss)
    ...     stopping.interval_over()
    >>> stopping.best, stopping.waited, stopping.should_stop
    (0.5, 2, True)
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best: float | None = None
        self.waited = 0
        self._observed = self._improved = False

    @property
    def should_stop(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def observe(self, valid_loss: float) -> None:
        """Takes in a validation loss, less being better, of the interval under way."""
        self._observed = True
        if math.isfinite(valid_loss) and (self.best is None or valid_loss < self.best):
            self.best, self.waited, self._improved = valid_loss, 0, True

    def interval_over(self) -> None:
        if self._observed and self.best is not None and not self._improved:
            self.waited += 1
        self._observed = self._improved = False

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "patience"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
