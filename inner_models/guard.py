"""What happens to a run when its numbers break: which updates are skipped, and the answer to them.

The trainer of the environment and the plug-in use the same rules, so that the agent learns in the
world that it will meet.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LR_CUT = math.log(2.0)
"""Log of the factor by which the learning rate falls after an interval with a broken step."""

FloatArray = NDArray[np.float64]


def lr_cut(nonfinite_share: FloatArray) -> FloatArray:
    """Change of the log learning rate that answers broken steps, on top of the agent's own.

    Args:
        nonfinite_share: (num_runs,), share of the interval's steps with a loss or a gradient norm
            that was not finite.

    Returns:
        (num_runs,), zero where nothing broke, else ``-LR_CUT``.
    """
    return np.where(nonfinite_share > 0, -LR_CUT, 0.0)


def is_lost(losses: FloatArray) -> NDArray[np.bool_]:
    """Which runs have diverged for good: their final or validation loss is not finite.

    Args:
        losses: (num_runs,).
    """
    return ~np.isfinite(losses)
