"""One decision of one run: from an interval's statistics to what happens next.

Policy, encoder, codec, guard and familiarity meter meet here, and nothing of torch: the same code
runs whether or not what it says is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacesetter.agent.plugin.history import Intervention
from pacesetter.agent.policy.familiarity import FamiliarityMeter
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ActionCodec
from pacesetter.envs.features import FeatureEncoder
from pacesetter.inner_models.watch.guard import DivergenceGuard, Verdict
from pacesetter.inner_models.watch.signals import IntervalStatistics

FloatArray = NDArray[np.float64]

CONTROLS = ("lr", "momentum", "clip")
"""Hyperparameters under control, in the order of the actions."""


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What a run departs from.

    Attributes:
        total_steps: updates under control.
        momentum: of the user; 0 if there is none.
        momentum_scales_lr: as for `ActionCodec`.
        adaptive: as for `FeatureEncoder`.
        lr_bounds: of lr over its start, narrower than the policy's; None: no narrower.
        ramp: whether lr ramps up at first.
    """

    total_steps: int
    momentum: float
    momentum_scales_lr: bool
    adaptive: bool
    lr_bounds: tuple[float, float] | None = None
    ramp: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was decided.

    Attributes:
        features: what the policy saw.
        action: what was done of its answer: zero for what it does not control, and where the guard
            or the meter left it aside.
        alarm: whether the run has diverged.
        roll_back: whether to go back to the last good snapshot.
        good: whether the run, as it stands, is worth a snapshot.
        interventions: what the guard and the meter did.
    """

    features: tuple[float, ...]
    action: tuple[float, ...]
    alarm: bool
    roll_back: bool
    good: bool
    interventions: tuple[Intervention, ...]


class Pilot:
    """Decides for one run.

    Args:
        policy: what decides.
        start: what the run departs from.
        control: which of CONTROLS are the policy's to set.
        can_roll_back: whether there are snapshots; without, the learning rate is cut instead.

    Attributes:
        codec: where the hyperparameters stand.
        encoder: what the policy sees, and remembers.
    """

    def __init__(
        self, policy: Policy, start: RunStart, *, control: Collection[str], can_roll_back: bool
    ) -> None:
        self.codec = ActionCodec(
            policy.control,
            total_steps=start.total_steps,
            momentum_start=start.momentum,
            momentum_scales_lr=start.momentum_scales_lr,
            lr_bounds=start.lr_bounds,
            ramp=start.ramp,
        )
        self.encoder = FeatureEncoder(1, adaptive=start.adaptive)
        self.can_roll_back = can_roll_back
        self._policy = policy
        self._mask = np.array([float(name in control) for name in CONTROLS])
        self._guard = DivergenceGuard(1)
        self._meter = FamiliarityMeter(policy.familiarity, num_runs=1)
        self._strange = self._overfits = False

    def decide(
        self,
        stats: IntervalStatistics,
        *,
        interval: int,
        step: int,
        agree: Callable[[FloatArray], FloatArray],
    ) -> Outcome:
        """Takes one decision and moves the codec.

        Args:
            stats: of the interval that has just ended.
            interval: how many intervals are over, from 1.
            step: updates done, for the records.
            agree: makes the ranks of a distributed job do as the first one does.
        """
        features = self.encoder.encode(stats, self.codec, interval=interval)
        verdict = self._guard.judge(stats)
        strange = bool(self._meter.update(features)[0])
        overfits = bool(self.encoder.overfitting[0])
        action = self._policy.act(features)[0]
        if overfits:
            action[0] = -1.0
        action = action * self._mask
        if strange or verdict.plain[0]:
            action = np.zeros_like(action)
        answers = (
            *(verdict.lr_cut, verdict.headroom, verdict.alarm),
            *(verdict.roll_back, verdict.good),
        )
        packed = agree(np.concatenate([action, *(a.astype(np.float64) for a in answers)]))
        action, (cut, headroom, alarm, roll_back, good) = packed[:3], packed[3:]
        self.codec.apply(action[None], lr_cut=cut * self._mask[0], headroom=headroom)
        outcome = Outcome(
            features=tuple(features[0].tolist()),
            action=tuple(action.tolist()),
            alarm=bool(alarm),
            roll_back=bool(roll_back) and self.can_roll_back,
            good=bool(good),
            interventions=(
                *self._tell(stats, verdict, cut=cut, step=step, strange=strange),
                *self._tell_overfitting(overfits and not strange, step=step),
            ),
        )
        self._strange, self._overfits = strange, overfits
        return outcome

    def judge_end(
        self,
        stats: IntervalStatistics,
        *,
        step: int,
        agree: Callable[[FloatArray], FloatArray],
    ) -> list[Intervention]:
        """Looks at the last interval, after which nothing is decided.

        Args:
            stats: of the interval.
            step: updates done.
            agree: as for `decide`.

        Returns:
            What is to be done: nothing, or going back to the last good snapshot.
        """
        verdict = self._guard.judge(stats)
        # A cut would come too late.
        if not (agree(verdict.alarm.astype(np.float64))[0] and self.can_roll_back):
            return []
        detail = "the loss diverged in the last interval: back to the last good weights"
        return [Intervention(step=step, kind="rollback", detail=detail)]

    def _tell(
        self,
        stats: IntervalStatistics,
        verdict: Verdict,
        *,
        cut: float,
        step: int,
        strange: bool,
    ) -> list[Intervention]:
        notes: list[tuple[str, str]] = []
        cause = "the loss or the gradient norm rose far above what it was"
        if stats.nonfinite_share[0] > 0:
            broken = round(float(stats.nonfinite_share[0]) * len(stats.losses))
            cause = f"{broken} of {len(stats.losses)} steps were not finite"
        smaller = f"the learning rate is divided by {math.exp(-cut):.3g}"
        if verdict.roll_back[0] and self.can_roll_back:
            notes.append(("rollback", f"{cause}: back to the last good weights, and {smaller}"))
        elif cut < 0:
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
        return [Intervention(step=step, kind=kind, detail=detail) for kind, detail in notes]

    def _tell_overfitting(self, overfits: bool, *, step: int) -> list[Intervention]:
        """Says so when it begins."""
        if not overfits or self._overfits or not self._mask[0]:
            return []
        detail = (
            "the validation loss has risen above its best: the learning rate falls as fast as it "
            "may while that is so"
        )
        return [Intervention(step=step, kind="overfitting", detail=detail)]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy, as plain types."""
        return {
            "codec": self.codec.state_dict(),
            "encoder": self.encoder.state_dict(),
            "guard": self._guard.state_dict(),
            "meter": self._meter.state_dict(),
            "strange": self._strange,
            "overfits": self._overfits,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.codec.load_state_dict(state["codec"])
        self.encoder.load_state_dict(state["encoder"])
        self._guard.load_state_dict(state["guard"])
        self._meter.load_state_dict(state["meter"])
        self._strange = state["strange"]
        self._overfits = state.get("overfits", False)  # states of 0.1 lack it
