"""The meter for unfamiliar jobs: the features of meta-training, and their density.

The features are those of runs of its families under the policy. They are to hold whatever a sane
job may show, so the runs vary what users vary: besides their random tasks and starts, half of them
act with exploration noise, and in some the learning rate, the momentum or the clipping is left
alone. The mixture is scikit-learn's. The threshold comes from runs that were kept out of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pacesetter.agent.policy.familiarity import LEFT_OUT, PATIENCE, Familiarity
from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.runs.interruption import safe_point
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig, FloatArray
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.registry import make_family
from pacesetter.inner_models.task import Task, TaskFamily

RUNS_PER_GROUP = 4
"""Runs of one shape, each of a task of its own; many shapes tell more than many runs of each."""
NOISE = 0.5
"""Standard deviation of exploration in half of the runs, about that of meta-training."""
LEFT_ALONE = 0.2
"""Share of the runs that leave one of the three hyperparameters alone, for each of them."""
NUM_COMPONENTS = 8
ROWS_PER_COMPONENT = 200
LEAST_VARIANCE = 0.1
"""Added to every feature's variance: what never changed in meta-training may change a little."""
TAIL = 4.0
"""The threshold in standard deviations above the mean, of the log peaks of runs kept out of the
fit: about one run in a thousand is beyond it, for the peaks have a somewhat heavier tail."""
FOLDS = 4

_SEEN = [i for i, name in enumerate(FEATURE_NAMES) if name not in LEFT_OUT]


class FeatureRuns(NamedTuple):
    """Features of all decisions, (n, NUM_FEATURES), those of a run in order, and their runs."""

    features: FloatArray
    runs: NDArray[np.int64]


def collect_features(
    policy: Policy,
    families: Sequence[str | TaskFamily],
    *,
    num_runs: int,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> FeatureRuns:
    """Trains runs of every family in turn under a policy and keeps what it saw.

    There are `num_runs`, rounded up to whole groups of `RUNS_PER_GROUP`; the seed is that of tasks,
    noise and what is left alone.
    """
    if not families or num_runs < 1:
        raise ValueError(
            f"need a family and at least one run, but got {len(families)} and {num_runs}"
        )
    known = [make_family(f) if isinstance(f, str) else f for f in families]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    found: list[FloatArray] = []
    groups = -(-num_runs // RUNS_PER_GROUP)
    with progress_bar("meter", total=groups, unit="groups", shown=progress) as bar:
        for group in range(groups):
            safe_point()  # a resumed training fits its meter anew
            tasks = known[group % len(known)].sample_group(RUNS_PER_GROUP, generator)
            found += list(observe_runs(policy, tasks, rng=rng, device=device).swapaxes(0, 1))
            bar.update()
    runs = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    return FeatureRuns(np.concatenate(found), runs)


def observe_runs(
    policy: Policy,
    tasks: Sequence[Task],
    *,
    rng: np.random.Generator | None = None,
    control: ControlConfig | None = None,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """What a policy sees in runs of tasks of one shape: (num_decisions, num_tasks, NUM_FEATURES).

    With `rng`, actions vary as the module says. Without `control`, it is that of the policy.
    """
    runs = ScheduledRuns(tasks, control=control or policy.control, device=device)
    shape = (len(tasks), NUM_ACTIONS)
    free, noise = np.ones(shape), np.zeros(shape)
    if rng is not None:
        free = (rng.random(shape) >= LEFT_ALONE).astype(np.float64)
        noise[rng.random(len(tasks)) < 0.5] = NOISE
    features = runs.begin()
    seen = []
    while not runs.done:
        seen.append(features)
        actions = policy.act(features)
        if rng is not None:
            actions = free * np.clip(actions + noise * rng.standard_normal(shape), -1.0, 1.0)
        features = runs.decide(actions)
    return np.stack(seen) if seen else np.zeros((0, len(tasks), features.shape[1]))


def fit_familiarity(features: ArrayLike, *, runs: ArrayLike | None = None) -> Familiarity:
    """Describes features of meta-training, (n, F), by runs, (n,); None: a run of each row.

    The threshold is taken from runs that the density was not fitted to, each in turn: those of
    meta-training hardly ever cross it. Needs scikit-learn, and at least 8 runs.
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
    return replace(_fit(x), threshold=math.exp(logs.mean() + TAIL * logs.std()))


def _peak(distance: FloatArray) -> float:
    smoothed = peak = 1.0
    for value in distance.tolist():
        smoothed = PATIENCE * smoothed + (1 - PATIENCE) * value
        peak = max(peak, smoothed)
    return peak


def _fit(x: FloatArray) -> Familiarity:
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
    return replace(draft, typical=float(typical), scale=max(float(high - typical), 1e-3))
