"""Why the policy answered as it did: how much of each action is owed to which feature.

The network is small, so its gradients are exact and cheap. Integrated gradients (Sundararajan,
Taly & Yan 2017, "Axiomatic Attribution for Deep Networks") share the difference between the answer
and that to a reference out among the features, without a rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ACTION_NAMES, FloatArray
from pacesetter.envs.features import FEATURES, NUM_FEATURES

TOLERANCE = 1e-12
"""A piece of the path is halved until what its attributions miss is below this, relatively."""
MAX_HALVINGS = 48
MAX_PIECES = 4096
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_SHOWN = 5
"""Features named per line of the printed text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What one decision owes to each feature.

    Attributes:
        features: (NUM_FEATURES,), what the policy saw, normalised.
        reference: (NUM_FEATURES,), what it is compared with.
        action: (3,), the answer, within [-1, 1].
        raw: (3,), the network's output, which the answer was clipped from.
        reference_raw: (3,), its output at the reference.
        gradients: (3, NUM_FEATURES), change of `raw` per unit of each feature.
        attributions: (3, NUM_FEATURES), integrated gradients; each row adds up to the difference of
            `raw` and `reference_raw`.
    """

    features: FloatArray
    reference: FloatArray
    action: FloatArray
    raw: FloatArray
    reference_raw: FloatArray
    gradients: FloatArray
    attributions: FloatArray

    def table(self, top: int = 8) -> list[dict[str, Any]]:
        """The features that count most for each action, the strongest first.

        Args:
            top: how many per action.

        Returns:
            Rows with ``action``, ``feature``, ``value``, ``reference``, ``attribution``,
            ``gradient`` and ``meaning``, in plain types.
        """
        return [
            {
                "action": action,
                "feature": FEATURES[j].name,
                "value": float(self.features[j]),
                "reference": float(self.reference[j]),
                "attribution": float(self.attributions[i, j]),
                "gradient": float(self.gradients[i, j]),
                "meaning": FEATURES[j].meaning,
            }
            for i, action in enumerate(ACTION_NAMES)
            for j in np.argsort(-np.abs(self.attributions[i]), kind="stable")[:top]
        ]

    def __str__(self) -> str:
        rows, lines = self.table(_SHOWN), []
        for i, name in enumerate(ACTION_NAMES):
            parts = [
                f"{row['feature']} {row['attribution']:+.2f} (feature {row['value']:.2g})"
                for row in rows
                if row["action"] == name and row["attribution"]
            ]
            rest = float(self.raw[i] - self.reference_raw[i]) - sum(
                row["attribution"] for row in rows if row["action"] == name
            )
            if abs(rest) >= 0.005:
                parts.append(f"others {rest:+.2f}")
            clipped = ", clipped" if abs(self.raw[i]) > 1 else ""
            lines.append(
                f"{name} {self.action[i]:+.2f} (from {self.reference_raw[i]:+.2f}{clipped}): "
                + (", ".join(parts) or "no feature matters")
            )
        return "\n".join(lines)


def explain(
    policy: Policy, features: ArrayLike, *, reference: ArrayLike | None = None
) -> Explanation:
    """Takes one decision of a policy apart.

    Args:
        policy: whose decision.
        features: (NUM_FEATURES,), such as `Decision.features`.
        reference: (NUM_FEATURES,), what to compare with; None: zeros, which are typical values in
            meta-training, as features are normalised.

    Raises:
        ValueError: features or reference have another shape or are not finite.

    >>> print(explain(Policy.do_nothing(), np.ones(NUM_FEATURES)))
    log_lr +0.00 (from +0.00): no feature matters
    log_one_minus_momentum +0.00 (from +0.00): no feature matters
    log_clip_ratio +0.00 (from +0.00): no feature matters
    """
    end = _one_row(features, "features")
    start = np.zeros(NUM_FEATURES) if reference is None else _one_row(reference, "reference")
    # Weights near the end of float32's range overflow; what has no value counts for nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        raw, gradients = _outputs_and_gradients(policy, np.stack((end, start)))
        attributions = _mean_gradient(policy, start, end) * (end - start)
    return Explanation(
        features=end,
        reference=start,
        action=policy.act(end[None])[0],
        raw=np.nan_to_num(raw[0]),
        reference_raw=np.nan_to_num(raw[1]),
        gradients=np.nan_to_num(gradients[0]),
        attributions=np.nan_to_num(attributions),
    )


def _one_row(values: ArrayLike, name: str) -> FloatArray:
    row = np.array(values, dtype=np.float64)
    if row.shape != (NUM_FEATURES,):
        raise ValueError(f"{name} must have shape ({NUM_FEATURES},), but got {row.shape}")
    if not np.isfinite(row).all():
        raise ValueError(f"{name} must be finite numbers, but some are NaN or infinite")
    return row


def _outputs_and_gradients(policy: Policy, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Output before clipping, (n, 3), and its Jacobian, (n, 3, NUM_FEATURES), at (n, features)."""
    layers = [(w.astype(np.float64), b.astype(np.float64)) for w, b in policy.layers]
    slopes: list[FloatArray] = []
    for weight, bias in layers[:-1]:
        x = x @ weight.T + bias
        if policy.activation == "tanh":
            x = np.tanh(x)
            slopes.append(1 - x * x)
        else:
            slopes.append((x > 0).astype(np.float64))
            x = np.maximum(x, 0.0)
    weight, bias = layers[-1]
    gradients = np.broadcast_to(weight, (len(x), *weight.shape))
    for (inner, _), slope in zip(reversed(layers[:-1]), reversed(slopes), strict=True):
        gradients = (gradients * slope[:, None, :]) @ inner
    return x @ weight.T + bias, gradients


def _mean_gradient(policy: Policy, start: FloatArray, end: FloatArray) -> FloatArray:
    """Mean Jacobian along the straight line from start to end: (3, NUM_FEATURES).

    Gauss-Legendre quadrature on pieces of the line. The attributions of a piece have to add up to
    the difference of the outputs at its ends; a piece where they do not, such as one with a kink of
    a ReLU, is halved.
    """
    total = np.zeros((len(ACTION_NAMES), NUM_FEATURES))
    pieces = np.array([[0.0, 1.0]])
    direction = end - start
    for halving in range(MAX_HALVINGS + 1):
        low, width = pieces[:, :1], pieces[:, 1:] - pieces[:, :1]
        places = low + width * (_NODES + 1) / 2
        at = start + places.reshape(-1, 1) * direction
        gradients = _outputs_and_gradients(policy, at)[1].reshape(*places.shape, *total.shape)
        means = np.einsum("pnif,n->pif", gradients, _WEIGHTS / 2) * width[:, :, None]
        outputs = _outputs_and_gradients(policy, start + pieces.reshape(-1, 1) * direction)[0]
        outputs = outputs.reshape(len(pieces), 2, -1)
        missed = np.abs(means @ direction - (outputs[:, 1] - outputs[:, 0])).max(1)
        # Not finite counts as settled: halving would not help.
        halve = missed > TOLERANCE * (1 + np.abs(outputs).max((1, 2)))
        if halving == MAX_HALVINGS or halve.sum() > MAX_PIECES:
            halve[:] = False
        total += means[~halve].sum(0)
        pieces = pieces[halve]
        if not len(pieces):
            break
        middle = pieces.mean(1)
        pieces = np.concatenate(
            (np.stack((pieces[:, 0], middle), 1), np.stack((middle, pieces[:, 1]), 1))
        )
    return total
