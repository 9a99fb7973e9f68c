"""The guard against divergence: how it is detected, and the answer to it.

Environments and plug-in use the same guard, so that the agent meets in a job what it met in
meta-training. The loss and gradient norm of every step count. Answers are given at the end of an
interval, and escalate: cut the learning rate; go back to the last good snapshot with a much lower
one; in the end ignore the agent and follow the plain decay for good.

A user's job may be what no environment is: a game, in which a loss rises because an opponent
learns, or a loop over rows some of which are broken. There the guard also looks at the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacesetter.inner_models.watch.signals import FloatArray, IntervalStatistics

LR_CUT = math.log(2.0)
"""Log of the factor by which lr falls after an interval with a broken step, and as the first
answer to divergence."""
ROLLBACK_CUT = math.log(10.0)
"""The same with every rollback, or in its place where there is no snapshot."""
HEADROOM = math.log(5.0)
"""How far lr may rise again above where a rollback left it."""

BLOCKS = 4
"""An interval's steps are judged in at most so many blocks, by their means."""
SHORTEST_BLOCK = 8
LOST_SHARE = 0.6
"""A run that has lost this share of all that it had learned counts as diverged,"""
NOISE_FACTOR = 4.0
"""if that is more than so many standard deviations of the loss; the shorter a block, the more."""
UNTRAINED_FACTOR = 3.0
"""So does one whose loss, positive throughout, is so many times that of the untrained model, if
that is more than NOISE_FACTOR standard errors of its logarithm,"""
NORM_FACTOR = 30.0
"""or whose gradient norm is so many times its history while the loss is above its best."""
FIRST_STEPS = 8
"""Steps at the beginning, on the ramp, that tell how the untrained model does."""
BROKEN_SHARE = 0.5
"""So does one of whose steps at least this share broke."""
STRIKES = 3
"""Answers before the agent is ignored."""
CALM = 5
"""Intervals without alarm after which earlier ones are forgotten."""

SMALL_UPDATE = 0.08
"""In a job, the first loss that is too high is no divergence where updates are smaller than this,
relative to the weights,"""
SMALL_GROWTH = 1.25
"""and the norm of the weights has changed by less than this factor since the last interval,"""
SMALL_GROWTH_ALONE = 1.1
"""or this one, where the size of updates is unknown,"""
SMALL_NORM_FACTOR = 10.0
"""unless the gradient norm is so many times its history,"""
FAR_ABOVE = 100.0
"""or the loss has risen by so many times what it ever was."""
STREAK = 3
"""In a job, so many broken steps in succession are answered; fewer are skipped, and that is all."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """What the guard says after an interval; every field has shape (num_runs,).

    Attributes:
        alarm: whether the run has diverged.
        lr_cut: change of the log learning rate, zero or below, on top of the agent's own.
        headroom: how far the log learning rate may ever rise again; infinite where unlimited.
        roll_back: whether to go back to the last good snapshot.
        plain: whether the agent is ignored, now and for good.
        handed_over: whether that begins with this decision.
        good: whether the run, as it stands, is worth a snapshot.
    """

    alarm: BoolArray
    lr_cut: FloatArray
    headroom: FloatArray
    roll_back: BoolArray
    plain: BoolArray
    handed_over: BoolArray
    good: BoolArray


class DivergenceGuard:
    """Judges runs, interval by interval.

    Args:
        num_runs: how many.
        mode: ``"run"`` for runs of the environments, ``"job"`` for those of users: losses that rise
            while weights and gradients are sane, and single broken steps, are no fault there, and
            once it has handed over it rolls nothing back. ``"off"``: nothing is answered.
    """

    def __init__(self, num_runs: int, *, mode: Literal["run", "job", "off"] = "run") -> None:
        self._mode = mode
        self._level, self._size = np.full(num_runs, np.nan), np.full(num_runs, np.nan)
        self._sane = np.zeros(num_runs, dtype=bool)
        self._streak = np.zeros(num_runs, dtype=np.int64)
        # NaN means "not seen yet" throughout.
        self._memory = {name: np.full(num_runs, np.nan) for name in _MEMORY}
        self._positive = np.ones(num_runs, dtype=bool)
        self._strikes = np.zeros(num_runs, dtype=np.int64)
        self._calm = np.zeros(num_runs, dtype=np.int64)
        self._plain = np.zeros(num_runs, dtype=bool)

    def judge(self, stats: IntervalStatistics) -> Verdict:
        """Looks at all steps of the interval that has just ended, and answers."""
        if self._mode == "off":
            no, zero = np.zeros(len(self._strikes), dtype=bool), np.zeros(len(self._strikes))
            return Verdict(no, zero, zero + np.inf, no, no, no, no)
        broken, many = stats.nonfinite_share > 0, stats.nonfinite_share >= BROKEN_SHARE
        diverged, near_best, beyond_doubt = self._watch(stats)
        spared, may_roll_back = np.zeros(len(self._strikes), dtype=bool), self.may_roll_back
        if self._mode == "job":
            streak = self._in_succession(stats)
            broken, many = broken & streak, many & streak
            diverged &= streak | ~stats.broken.all(axis=0)
            sane = self._are_weights_sane(stats)
            spared = diverged & ~(beyond_doubt | many) & sane & (self._plain | (self._strikes == 0))
            diverged, near_best = diverged & ~spared, near_best | spared
        alarm = diverged | many
        strikes = np.where(alarm, self._strikes + 1, self._strikes)
        repeated = alarm & (strikes > 1)
        roll_back = repeated & may_roll_back
        handed_over = alarm & (strikes > STRIKES) & ~self._plain
        self._plain = self._plain | handed_over
        # From here on the restored state is the measure. Were the old one wrong, it would go on
        # raising alarms whatever is done.
        for values in self._memory.values():
            values[repeated | spared] = np.nan
        self._calm = np.where(alarm, 0, self._calm + 1)
        self._strikes = np.where(self._calm >= CALM, 0, strikes)
        cut = np.where(broken | alarm, LR_CUT, 0.0)
        cut = np.where(roll_back, ROLLBACK_CUT, cut)
        return Verdict(
            alarm=alarm,
            lr_cut=-cut,
            headroom=np.where(roll_back, HEADROOM, np.inf),
            roll_back=roll_back,
            plain=self._plain,
            handed_over=handed_over,
            good=near_best & ~broken,
        )

    @property
    def may_roll_back(self) -> BoolArray:
        """Where a run that has diverged may go back; after a handover, a job may not."""
        return ~self._plain if self._mode == "job" else np.ones_like(self._plain)

    def _in_succession(self, stats: IntervalStatistics) -> BoolArray:
        """Where broken steps are more than single ones; the last interval's end counts."""
        if not stats.broken.any():
            self._streak = np.zeros_like(self._streak)
            return self._streak > 0
        streak = longest = self._streak
        for row in stats.broken:
            streak = np.where(row, streak + 1, 0)
            longest = np.maximum(longest, streak)
        self._streak = streak
        several = stats.broken.sum(axis=0) >= STREAK
        found: BoolArray = (longest >= STREAK) | (several & (stats.nonfinite_share >= BROKEN_SHARE))
        return found

    def _are_weights_sane(self, stats: IntervalStatistics) -> BoolArray:
        """Whether weights have moved little; at the horizon, whether they had before."""
        seen = np.isfinite(stats.param_norm)
        with np.errstate(all="ignore"):
            update, growth = stats.update_norm / stats.param_norm, stats.param_norm / self._size
        known = np.isfinite(update)
        most = np.where(known, SMALL_GROWTH, SMALL_GROWTH_ALONE)
        sane = (growth < most) & (growth > 1 / most) & (~known | (update < SMALL_UPDATE))
        self._size = np.where(seen, stats.param_norm, self._size)
        self._sane = np.where(seen, sane, self._sane)
        return self._sane

    def _watch(self, stats: IntervalStatistics) -> tuple[BoolArray, BoolArray, BoolArray]:
        """Which runs have diverged at the interval's end, and which are near their best.

        The third says where there is no doubt about the former.
        """
        m = self._memory
        beyond_doubt = diverged = good = np.zeros(len(self._strikes), dtype=bool)
        self._positive &= ~(stats.losses <= 0).any(axis=0)
        self._see_untrained(stats.losses, stats.norms)
        for losses, norms in _blocks(stats.losses, stats.norms):
            steps = len(losses)
            mean, spread = _moments(losses)
            norm, _ = _moments(norms)
            noise = np.nan_to_num(m["noise"])
            above = mean - m["best"]
            learned = np.maximum(m["first"] - m["best"], 0.0)
            noise = np.fmax(noise, spread / 4)
            # A difference within rounding is none.
            tolerance = NOISE_FACTOR * (1 + 4 / steps) * noise + 1e-6 * np.abs(mean)
            diverged = above > np.fmax(tolerance, LOST_SHARE * learned)
            diverged |= self._worse_than_untrained(losses)
            beyond_doubt = (norm > NORM_FACTOR * m["norm"]) & (above > 0)
            beyond_doubt |= np.isnan(mean)
            diverged |= beyond_doubt
            level = np.where(np.isnan(self._level), np.fmax(np.abs(mean), m["noise"]), self._level)
            far_above = above > FAR_ABOVE * level
            self._level = np.where(far_above, level, np.fmax(level, np.abs(mean)))
            beyond_doubt |= far_above | (norm > SMALL_NORM_FACTOR * m["norm"])
            good = ~diverged & (above <= np.fmax(tolerance, LOST_SHARE * learned) / 2)
            m["noise"] = _learn(m["noise"], spread, alarm=diverged)
            m["norm"] = _learn(m["norm"], norm, alarm=diverged)
            m["best"] = np.where(diverged, m["best"], np.fmin(m["best"], mean))
        return diverged, good, beyond_doubt

    def _see_untrained(self, losses: FloatArray, norms: FloatArray) -> None:
        """Takes the measure of runs that begin, or begin again, with these steps.

        A start that is much too high blows up within these very steps: their median and the lower
        quartile of their changes are those of the time before.
        """
        m = self._memory
        fresh = np.isnan(m["first"])
        if not fresh.any():
            return
        start, first_norms = (_finite(a)[:FIRST_STEPS] for a in (losses, norms))
        for name, value in (
            ("first", _median(start)),
            ("best", _median(start)),
            ("noise", _usual_change(start)),
            ("log_noise", _usual_change(_logs(start, self._positive))),
            ("norm", _first(first_norms)),
        ):
            m[name] = np.where(fresh, value, m[name])

    def _worse_than_untrained(self, losses: FloatArray) -> BoolArray:
        m = self._memory
        logs = _logs(losses, self._positive)
        mean, spread = _moments(logs)
        noise = np.fmax(m["log_noise"], spread)
        error = noise * math.sqrt(1 / len(losses) + 1 / 4)
        worse = mean - _logs(m["first"], self._positive)
        diverged = worse > np.fmax(math.log(UNTRAINED_FACTOR), NOISE_FACTOR * error)
        m["log_noise"] = _learn(m["log_noise"], spread, alarm=diverged)
        found: BoolArray = self._positive & diverged
        return found

    def state_dict(self) -> dict[str, Any]:
        """The memory as plain lists."""
        kept = {name: getattr(self, f"_{name}").tolist() for name in _KEPT}
        return {"memory": {n: value.tolist() for n, value in self._memory.items()}, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory = {n: np.asarray(v, dtype=np.float64) for n, v in state["memory"].items()}
        for name in (n for n in _KEPT if n in state):  # states of 0.1.0 lack some
            old = getattr(self, f"_{name}")
            setattr(self, f"_{name}", np.asarray(state[name], dtype=old.dtype))


_MEMORY = ("first", "best", "noise", "log_noise", "norm")
_KEPT = ("positive", "strikes", "calm", "plain", "level", "size", "sane", "streak")


def is_lost(losses: FloatArray) -> BoolArray:
    """Which runs have diverged for good: their final or validation loss is not finite."""
    return ~np.isfinite(losses)


def _blocks(losses: FloatArray, norms: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    """Cuts (steps, num_runs) arrays into blocks of steps; what is absurd or broken is NaN."""
    steps = len(losses)
    count = max(1, min(BLOCKS, steps // SHORTEST_BLOCK))
    ends = [k * steps // count for k in range(1, count)]
    return list(zip(*(np.split(_finite(a), ends) for a in (losses, norms)), strict=True))


def _finite(values: FloatArray) -> FloatArray:
    return np.where(np.abs(values) < 1e150, values, np.nan)


def _logs(values: FloatArray, positive: BoolArray) -> FloatArray:
    return np.log(np.where(positive, values, 1.0))


def _median(rows: FloatArray) -> FloatArray:
    """The lower median of each column; of broken numbers as if they were the greatest."""
    middle: FloatArray = np.sort(rows, axis=0)[(len(rows) - 1) // 2]  # NaN last
    return middle


def _usual_change(rows: FloatArray) -> FloatArray:
    """Standard deviation by the lower quartile of changes from step to step."""
    changes = np.sort(np.abs(np.diff(rows, axis=0)), axis=0)  # NaN last
    if not len(changes):
        return np.zeros(rows.shape[1])
    usual: FloatArray = 2.2 * changes[(len(changes) - 1) // 4]  # 2.2: as for normal numbers
    return usual


def _first(rows: FloatArray) -> FloatArray:
    """The first known number of each column; NaN where there is none."""
    first: FloatArray = np.take_along_axis(rows, (~np.isnan(rows)).argmax(axis=0)[None], axis=0)[0]
    return first


def _moments(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the known numbers of each column.

    NaN where there are none, or for the deviation fewer than two.
    """
    known = ~np.isnan(rows)
    count = known.sum(axis=0)
    mean = np.where(known, rows, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(known, rows - mean, 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1))
    return np.where(count > 0, mean, np.nan), np.where(count > 1, spread, np.nan)


def _learn(past: FloatArray, now: FloatArray, *, alarm: BoolArray) -> FloatArray:
    """Smooths what is usual.

    What a diverging run does is no measure of it; but an alarm may be false, so it counts a little.
    """
    now = np.where(alarm, np.fmin(now, 3 * past), now)
    mixed = 0.8 * past + 0.2 * now
    return np.where(np.isnan(past), now, np.where(np.isnan(now), past, mixed))
