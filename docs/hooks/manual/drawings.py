"""Drawings that are computed, so that they show what the code does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pacesetter.envs.actions import ActionCodec, ControlConfig

STEPS = 1000
LEFT, RIGHT, TOP, BOTTOM = 44.0, 352.0, 12.0, 190.0
"""Edges of the plot, in units of the drawing; it is 360 wide."""
LOW, HIGH = -3.0, 2.0
"""Ends of the vertical axis: powers of ten of the learning rate over its start."""
EXAMPLE = (0.6,) * 12 + (0.0,) * 12 + (-0.4,) * 15
"""Changes of log learning rate, in units of the largest: up at first, later down."""


def schedule() -> str:
    """The base schedule and an example of what a policy makes of it, as an inline SVG."""
    config = ControlConfig()
    base, ends = _factors([0.0] * (config.num_intervals - 1), config)
    example, _ = _factors(EXAMPLE, config)
    ticks = "".join(f"M{_x(end):.1f} {BOTTOM:g}v5" for end in ends)
    marks = "".join(
        f'<path class="faint" d="M{LEFT:g} {_y(10.0**p):.1f}H{RIGHT:g}"/>'
        f'<text class="small end" x="{LEFT - 5:g}" y="{_y(10.0**p) + 4:.1f}">{_power(p)}</text>'
        for p in range(int(LOW), int(HIGH) + 1)
    )
    return "\n".join(
        (
            '<figure class="drawing">',
            f'<svg viewBox="0 0 360 {BOTTOM + 44:g}" role="img" '
            'aria-label="Learning rate over its start: the base schedule and an example">',
            marks,
            f'<path class="line" d="M{LEFT:g} {BOTTOM:g}H{RIGHT:g}{ticks}"/>',
            f'<path class="line" stroke-dasharray="5 3" d="{_path(base)}"/>',
            f'<path class="ours" d="{_path(example)}"/>',
            f'<text class="small end" x="{RIGHT:g}" y="{BOTTOM + 20:g}">'
            f"{len(ends)} decisions, denser early</text>",
            f'<text class="small" x="{LEFT:g}" y="{BOTTOM + 38:g}">learning rate over its start; '
            "dashed: an agent that does nothing</text>",
            "</svg>",
            "</figure>",
        )
    )


def _factors(changes: Sequence[float], config: ControlConfig) -> tuple[list[float], list[int]]:
    """Factors of the learning rate at every step, and the steps at which decisions fall."""
    codec = ActionCodec(config, total_steps=STEPS, momentum_start=0.9, momentum_scales_lr=False)
    factors: list[float] = []
    for change, end in zip([*changes, None], codec.ends, strict=True):
        first = len(factors)
        factors += codec.lr_factors(first, end - first)[:, 0].tolist()
        if change is not None:
            codec.apply(np.array([[change, 0.0, 0.0]]))
    return factors, list(codec.ends[:-1])


def _x(step: float) -> float:
    return LEFT + (RIGHT - LEFT) * step / STEPS


def _y(factor: float) -> float:
    share = (math.log10(max(factor, 10.0**LOW)) - LOW) / (HIGH - LOW)
    return BOTTOM - (BOTTOM - TOP) * share


def _path(factors: Sequence[float]) -> str:
    """Every fourth step, and the last: nobody could see more."""
    steps = [*range(0, STEPS, 4), STEPS - 1]
    return "M" + "L".join(f"{_x(step):.1f} {_y(factors[step]):.1f}" for step in steps)


def _power(p: int) -> str:
    return f"{10.0**p:g}"
