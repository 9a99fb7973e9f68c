"""The meter's density, fitted to features of meta-training; jobs that only use a meter need it not.

The mixture is scikit-learn's. The threshold comes from runs that were kept out of the fit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pacesetter.agent.policy.familiarity import LEFT_OUT, PATIENCE, Familiarity
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.inner_models.lookup import require

FloatArray = NDArray[np.float64]

NUM_COMPONENTS = 8
ROWS_PER_COMPONENT = 200
LEAST_VARIANCE = 0.1
"""Added to every feature's variance: what never changed in meta-training may change a little."""
TAIL = 4.0
"""The threshold in standard deviations above the mean, of the log peaks of runs kept out of the
fit: about one run in a thousand is beyond it, for the peaks have a somewhat heavier tail."""
FOLDS = 4

_SEEN = [i for i, name in enumerate(FEATURE_NAMES) if name not in LEFT_OUT]


def fit_familiarity(features: ArrayLike, *, runs: ArrayLike | None = None) -> Familiarity:
    """Describes features of meta-training.

    The threshold is taken from runs that the density was not fitted to, each in turn: those of
    meta-training hardly ever cross it. Needs scikit-learn.

    Args:
        features: (n, F), those of a run in order.
        runs: (n,), number of the run of each row; None: every row is a run of its own.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: shapes that do not fit, numbers that are not finite, or fewer than 8 runs.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != NUM_FEATURES or not np.isfinite(x).all():
        raise ValueError(
            f"features must be finite and of shape (n, {NUM_FEATURES}), but got {x.shape}"
        )
    names = np.arange(len(x)) if runs is None else np.asarray(runs)
    if names.shape != (len(x),):
        raise ValueError(f"runs must have shape ({len(x)},), but got {names.shape}")
    distinct, numbers = np.unique(names, return_inverse=True)
    if len(distinct) < 2 * FOLDS:
        raise ValueError(f"need at least {2 * FOLDS} runs, but got {len(distinct)}")
    # Neighbouring runs share a task's shape: whole blocks are kept out of a fit together.
    fold = numbers * FOLDS // len(distinct)
    peaks: list[float] = []
    for i in range(FOLDS):
        part = _fit(x[fold != i])
        kept_out = fold == i
        distance, owner = part.distance(x[kept_out]), numbers[kept_out]
        peaks += [_peak(distance[owner == run]) for run in np.unique(owner)]
    logs = np.log(peaks)
    threshold = math.exp(logs.mean() + TAIL * logs.std())
    whole = _fit(x)
    return Familiarity(**{**vars(whole), "threshold": float(threshold)})


def _peak(distance: FloatArray) -> float:
    smoothed = peak = 1.0
    for value in distance.tolist():
        smoothed = PATIENCE * smoothed + (1 - PATIENCE) * value
        peak = max(peak, smoothed)
    return peak


def _fit(x: FloatArray) -> Familiarity:
    """The density of some rows, without a threshold of its own."""
    mixture = require("sklearn.mixture", extra="train").GaussianMixture(
        int(np.clip(len(x) // ROWS_PER_COMPONENT, 1, NUM_COMPONENTS)),
        reg_covar=LEAST_VARIANCE,
        max_iter=40,
        tol=1e-2,
        init_params="k-means++",
        random_state=0,
    )
    with np.errstate(all="ignore"):
        share = mixture.fit(x[:, _SEEN]).predict_proba(x[:, _SEEN])
    factors = np.asarray(mixture.precisions_cholesky_)
    count = len(factors)
    whitening = np.zeros((count, NUM_FEATURES, NUM_FEATURES))
    whitening[np.ix_(range(count), _SEEN, _SEEN)] = factors
    determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    draft = Familiarity(
        mean=x.mean(axis=0).astype(np.float32),
        means=((share.T @ x) / share.sum(axis=0)[:, None]).astype(np.float32),
        whitening=whitening.astype(np.float32),
        log_weights=(np.log(mixture.weights_) + determinants).astype(np.float32),
        typical=0.0,
        scale=1.0,
        threshold=1.0,
    )
    typical, high = np.quantile(draft.surprise(x), (0.5, 0.9))
    scale = max(float(high - typical), 1e-3)
    return Familiarity(**{**vars(draft), "typical": float(typical), "scale": scale})
