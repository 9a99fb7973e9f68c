"""Rewards, given at the horizon only: how much better a run ended than its siblings.

Comparing siblings takes out the difference between tasks, which is far larger than anything that
an action does. A dense or discounted reward would teach the agent to cut the learning rate early,
because that always pays at once (short-horizon bias, Wu et al. 2018).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pacesetter.envs.actions import FloatArray

SPREAD_FLOOR = 0.02
"""Floor under the spread of log losses among siblings: smaller differences are noise."""
CLIP = 2.5
"""Rewards lie within this many spreads."""
RewardForm = Literal["z-score", "difference", "rank"]
"""How siblings are held against each other, see `sibling_scores`."""
REWARD_FORMS: tuple[RewardForm, ...] = ("z-score", "difference", "rank")


def comparable(losses: FloatArray) -> FloatArray:
    """Maps losses to a scale on which differences mean the same on every task.

    Positive losses go to their logs. Where any sibling's loss is zero or negative, losses are
    divided by the spread of the task's survivors instead, so nothing takes the log of a negative.

    Args:
        losses: (num_tasks, siblings), NaN or infinite where a run diverged.

    Returns:
        The same shape, NaN where a run diverged.
    """
    finite = np.isfinite(losses)
    safe = np.where(finite, losses, np.nan)
    positive = np.where(finite, losses > 0, True).all(axis=1, keepdims=True)
    logs = np.log(np.where(finite & positive, np.maximum(safe, 1e-300), 1.0))
    spread = np.zeros((len(losses), 1))
    for row in range(len(losses)):
        if finite[row].sum() > 1:
            spread[row] = safe[row][finite[row]].std()
    scaled = np.where(finite, safe, 0.0) / np.where(spread > 0, spread, 1.0)
    return np.where(finite, np.where(positive, logs, scaled), np.nan)


def sibling_scores(
    losses: FloatArray, *, spread_floor: float = SPREAD_FLOOR, form: RewardForm = "z-score"
) -> FloatArray:
    """How much better each run ended than its surviving siblings, clipped.

    - ``"z-score"``: minus the z-score of its loss, on the scale of `comparable`.
    - ``"difference"``: minus its distance from their mean, in units of `spread_floor` whatever the
      siblings' own spread: tasks count as much as a schedule matters there.
    - ``"rank"``: minus its rank, scaled to mean 0 and spread 1; ties share theirs.

    A run that diverged gets the worst score, ``-CLIP``; with a single survivor that one gets 0.

    Args:
        losses: (num_tasks, siblings), outer-valid losses, not finite where a run diverged.
        spread_floor: least spread of log losses to divide by.
        form: one of `REWARD_FORMS`.

    Returns:
        (num_tasks, siblings), within [-CLIP, CLIP]; higher is better.

    Raises:
        ValueError: there is no such form.

    >>> sibling_scores(np.array([[1.0, 1.0, np.nan]])).round(3).tolist()
    [[-0.0, -0.0, -2.5]]
    >>> sibling_scores(np.array([[1.0, 1.2, 9.0]]), form="rank").round(2).tolist()
    [[1.22, -0.0, -1.22]]
    """
    if form not in REWARD_FORMS:
        raise ValueError(f"form must be one of {', '.join(REWARD_FORMS)}, but got {form!r}")
    values = comparable(losses)
    alive = np.isfinite(values)
    if form == "rank":
        below = (values[:, :, None] > values[:, None, :]).sum(axis=2)
        above = (values[:, :, None] < values[:, None, :]).sum(axis=2)
        values = np.where(alive, (below - above).astype(np.float64), np.nan)
    count = np.maximum(alive.sum(axis=1, keepdims=True), 1)
    filled = np.where(alive, values, 0.0)
    mean = filled.sum(axis=1, keepdims=True) / count
    deviation = np.where(alive, values - mean, 0.0)
    spread = np.sqrt((deviation**2).sum(axis=1, keepdims=True) / count)
    unit = np.maximum(spread, spread_floor)
    if form == "difference":
        # Where losses have no logarithm, `comparable` has made their spread the unit already.
        logs = np.where(alive, losses > 0, True).all(axis=1, keepdims=True)
        unit = np.where(logs, spread_floor, 1.0)
    scores = np.clip(-deviation / unit, -CLIP, CLIP)
    return np.where(alive, scores, -CLIP)


def improvement(loss: float, *, reference: float, start: float) -> float:
    """Reward of a run without siblings: improvement over a reference run with zero actions.

    The log ratio of the losses where all are positive; else their difference over what the
    reference run gained. Clipped at `CLIP`; a run that diverged gets ``-CLIP``.

    Args:
        loss: final outer-valid loss of the run.
        reference: the same of the reference run.
        start: outer-valid loss before the first step.

    >>> improvement(0.5, reference=1.0, start=2.0)
    0.6931471805599453
    >>> improvement(-2.0, reference=-1.0, start=1.0)
    0.5
    """
    if not np.isfinite(loss):
        return -CLIP
    if not np.isfinite(reference):
        return CLIP
    if loss > 0 and reference > 0:
        value = float(np.log(reference / loss))
    else:
        gained = abs(start - reference)
        value = (reference - loss) / gained if gained > 0 and np.isfinite(gained) else 0.0
    return float(np.clip(value, -CLIP, CLIP))
