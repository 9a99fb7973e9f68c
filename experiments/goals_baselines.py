"""The rivals of the goals that are set by hand: AdamW's default, AdamW tuned, AdamW calibrated.

They depend on task, seeds and trials alone, so they are kept in a cache that measurements of many
policies share. "Tuned" is the best of the default and of random settings, by mean outer-valid loss
over seeds that no report uses; it is run again on the report's seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pacesetter.agent.runs.folder import write_json
from pacesetter.envs.actions import ControlConfig
from pacesetter.experiments.calibration import calibrated_lrs
from pacesetter.experiments.goals_records import SPLITS, GoalRun, from_json, to_json
from pacesetter.experiments.rivals.arms import LR, MOMENTUM, WEIGHT_DECAY, Baseline, Configured
from pacesetter.experiments.rivals.baselines import BASELINES, REFERENCE
from pacesetter.experiments.rivals.schedules import (
    FloatArray,
    Schedule,
    constant,
    cosine,
    linear,
    number,
    warm_up_cosine,
)
from pacesetter.experiments.rivals.space import Choice, Dimension, Setting, Space
from pacesetter.experiments.runs.batched import start_trainer
from pacesetter.experiments.runs.outcomes import Stopwatch
from pacesetter.experiments.runs.task_work import slug
from pacesetter.experiments.tuning import TUNING_SEEDS
from pacesetter.inner_models.task import SplitName, Task

DEFAULT, TUNED, CALIBRATED = "default", "tuned", "cosine-calibrated"
"""Arms."""
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "warm-up cosine": warm_up_cosine,
    "linear": linear,
}
"""Among which a trial draws one."""


def _scheduled(progress: FloatArray, setting: Setting) -> FloatArray:
    return SCHEDULES[str(setting["schedule"])](progress, setting)


_CLIP = ControlConfig()
SEARCHED = Baseline(
    name="adamw-pooled",
    label="tuned AdamW",
    optimizer="adamw",
    schedule=_scheduled,
    space=Space(
        {
            "lr": LR,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            # As the policy clips: relative to the running mean, so that no trial is lost on a
            # threshold of the wrong order of magnitude.
            "clip": Dimension(*_CLIP.clip_ratio_bounds, default=_CLIP.clip_ratio_start),
            "schedule": Choice(tuple(SCHEDULES), default="constant"),
        }
    ),
    source="the goals of the project: random trials over four schedules together",
)
"""What the trials after the first draw their settings from."""


@dataclass(frozen=True, kw_only=True)
class HandRuns:
    """The rivals of one task.

    Attributes:
        runs: of the default, the tuned and the calibrated arm, on the report's seeds.
        setting: what tuning chose; empty for the default.
        trials: mean outer-valid loss of each trial; the first is the default's. Infinite where a
            seed diverged.
    """

    runs: tuple[GoalRun, ...]
    setting: dict[str, float | str]
    trials: tuple[float, ...]

    @property
    def tuned(self) -> Configured:
        """The tuned arm, to run it once more."""
        return configured(self.setting)


def configured(setting: Setting) -> Configured:
    """A setting of a trial as something to run; an empty one is the default."""
    return Configured(SEARCHED if setting else _baseline(REFERENCE), setting)


def _baseline(name: str) -> Baseline:
    return next(b for b in BASELINES if b.name == name)


def trial_settings(task: str, *, trials: int, seed: int) -> list[dict[str, float | str]]:
    """The settings that tuning tries: the default, which is empty, then random ones.

    Args:
        task: its name; every task has draws of its own.
        trials: random settings.
        seed: of the draws.
    """
    digest = hashlib.sha256(f"goals {task} {seed}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return [{}, *(SEARCHED.space.sample(generator) for _ in range(trials))]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Runs of one program at their horizon.

    Attributes:
        untrained: (num_settings, num_seeds), outer-valid losses before the first step.
        losses: by split, (num_settings, num_seeds).
        seconds: of training, all runs together.
    """

    untrained: FloatArray
    losses: dict[SplitName, FloatArray]
    seconds: float


def train_settings(
    task: Task,
    settings: Sequence[Configured],
    *,
    seeds: Sequence[int],
    evaluate: Sequence[SplitName] = SPLITS,
    device: torch.device | str = "cpu",
) -> Trained:
    """Trains a task once per setting and seed, as one tensor program; a setting may clip.

    Args:
        task: its data and model; seed and optimizer are replaced.
        settings: of AdamW; the name ``clip`` is a threshold over the running mean gradient norm.
        seeds: of initial weights and batch order.
        evaluate: splits whose final loss is wanted.
        device: where the runs live.
    """
    hyper = [c.baseline.hyperparameters(c.setting, task) for c in settings]
    rates = np.stack(
        [
            number(h, "lr", 0.0) * c.baseline.factors(task.horizon, h)
            for c, h in zip(settings, hyper, strict=True)
        ],
        axis=1,
    )
    trainer = start_trainer(task, settings, seeds=seeds, device=device)
    shape = (len(seeds), len(settings))
    untrained = trainer.evaluate("outer_valid").reshape(shape).T
    watch = Stopwatch()
    with watch:
        trainer.run(
            np.tile(rates, (1, len(seeds))),
            momentum=np.tile([number(h, "momentum", 0.9) for h in hyper], len(seeds)),
            clip_ratio=np.tile([number(h, "clip", math.inf) for h in hyper], len(seeds)),
        )
    losses = {split: trainer.evaluate(split).reshape(shape).T for split in evaluate}
    return Trained(untrained=untrained, losses=losses, seconds=watch.seconds)


def hand_runs(
    task: Task,
    *,
    trials: int,
    seeds: Sequence[int],
    seed: int,
    cache: Path,
    device: torch.device | str = "cpu",
) -> HandRuns:
    """The rivals of a task: read from the cache where they are there, run and kept where not.

    Args:
        task: the task.
        trials: random settings that tuning tries besides the default.
        seeds: of the report.
        seed: of the trials.
        cache: a folder.
        device: where the runs live.

    Raises:
        ValueError: the cache holds something else.
    """
    lr = calibrated_lrs()["adamw-cosine-calibrated"]
    key: dict[str, Any] = {
        "task": task.name,
        "data": task.splits.digest(),
        "horizon": task.horizon,
        "batch_size": task.batch_size,
        "weight_decay": task.optimizer.weight_decay,
        "trials": trial_settings(task.name, trials=trials, seed=seed),
        "seeds": list(seeds),
        "tuning_seeds": list(TUNING_SEEDS),
        "calibrated_lr": lr,
    }
    path = cache / f"{slug(task.name)}-{key_digest(key)}.json"
    if not path.is_file():
        found = _run_all(task, key["trials"], seeds=seeds, lr=lr, device=device)
        trial_losses = [loss if math.isfinite(loss) else None for loss in found.trials]
        runs = [to_json(run) for run in found.runs]
        write_json(
            path, {"key": key, "setting": found.setting, "trials": trial_losses, "runs": runs}
        )
        return found
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        return HandRuns(
            runs=tuple(from_json(entry) for entry in whole["runs"]),
            setting=whole["setting"],
            trials=tuple(math.inf if loss is None else loss for loss in whole["trials"]),
        )
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold runs of the goals; remove it: {error!r}") from error


def key_digest(key: Mapping[str, Any]) -> str:
    """What decides the content of a file in the cache, as a part of its name.

    >>> key_digest({"a": 1, "b": 2}) == key_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _run_all(
    task: Task,
    settings: Sequence[dict[str, float | str]],
    *,
    seeds: Sequence[int],
    lr: float,
    device: torch.device | str,
) -> HandRuns:
    searched = train_settings(
        task,
        [configured(s) for s in settings],
        seeds=TUNING_SEEDS,
        evaluate=("outer_valid",),
        device=device,
    )
    # One diverged seed is enough: nobody can use a setting that fails every other time.
    means = searched.losses["outer_valid"].mean(axis=1)
    means = np.where(np.isfinite(means), means, np.inf)
    best = settings[int(means.argmin())]
    arms = {
        DEFAULT: configured({}),
        TUNED: configured(best),
        CALIBRATED: Configured(_baseline("adamw-cosine-calibrated"), {"lr": lr}),
    }
    trained = train_settings(task, list(arms.values()), seeds=seeds, device=device)
    runs = tuple(
        GoalRun(
            task=task.name,
            arm=arm,
            start_lr=None,
            seed=seed,
            steps=task.horizon,
            untrained=float(trained.untrained[j, i]),
            losses={split: float(trained.losses[split][j, i]) for split in SPLITS},
            wall_seconds=trained.seconds / (len(arms) * len(seeds)),
            setting=dict(c.baseline.hyperparameters(c.setting, task)),
        )
        for j, (arm, c) in enumerate(arms.items())
        for i, seed in enumerate(seeds)
    )
    return HandRuns(runs=runs, setting=best, trials=tuple(map(float, means)))
