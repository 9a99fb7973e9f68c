"""The demonstration: the agent goes on learning, and is put into an ordinary PyTorch job.

The job is a plain loop on handwritten digits, with nothing of the batched trainer in it. The rivals
are AdamW as it comes, and AdamW with a cosine whose learning rate was tuned.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy, load_policy
from pacesetter.agent.runs.folder import RUN_FILE, claim_folder
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.envs.actions import ControlConfig, FloatArray, interval_ends
from pacesetter.experiments.compare_config import TUNING_SEEDS
from pacesetter.experiments.comparison import Comparison, reported
from pacesetter.experiments.presets import get_preset
from pacesetter.experiments.rivals.arms import AgentArm
from pacesetter.experiments.rivals.baselines import ADAMW_LRS
from pacesetter.experiments.runs.records import REPORTED_SPLITS, RunRecord, write_csv
from pacesetter.inner_models.families.real.digits import digits_splits
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.task import SplitName

TASK = "digits, plain PyTorch loop"
SHIPPED = AgentArm(name="shipped-policy", label="shipped policy", source="comes with pacesetter")
TRAINED = AgentArm(name="demo-policy", label="policy trained on", source="made by this demo")
DEFAULT = AgentArm(name="adamw-default", label="AdamW 1e-3", source="the default, untuned")
COSINE = AgentArm(
    name="adamw-cosine",
    label="tuned AdamW cosine",
    source="torch.optim.AdamW with CosineAnnealingLR, learning rate chosen on outer-valid",
)
NOTES = (
    "A policy runs once per job, from AdamW's default learning rate. The tuned rival chose its "
    "learning rate from a grid of seven with two runs each, on seeds that are not reported.",
    "Digits are a validation family: no policy has learned on them, but the best snapshot of a "
    "training run is chosen by tasks like this one. One small job shows how things work and not "
    "how good they are in general: for that, run `pacesetter compare`.",
)

Control = Callable[[torch.optim.Optimizer], "LearnedScheduler | CosineAnnealingLR | None"]
"""Attaches to an optimizer what sets its learning rate; None leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demonstration does.

    Attributes:
        init: policy that it goes on from.
        lrs: from which the tuned rival chooses.
        seed: of the meta-training and of the bootstrap.
        device: where meta-training runs; the digits stay on the CPU.
    """

    preset: str = "demo"
    init: str = "default"
    steps: int = 800
    num_seeds: int = 5
    start_lr: float = 1e-3
    lrs: tuple[float, ...] = ADAMW_LRS
    seed: int = 0
    device: str = "cpu"


def run_demo(
    config: DemoConfig,
    out: Path,
    *,
    say: Callable[[str], None],
    force: bool = False,
    progress: bool = True,
    command: str = "pacesetter demo",
) -> Comparison:
    """Meta-trains, runs all arms on the digits, and writes the report.

    Raises:
        FileExistsError: `out` holds files, and they are not an earlier demonstration's or `force`
            is off.
        ImportError: a package that comes with an extra is missing.
    """
    for module, extra in (("stable_baselines3", "train"), ("matplotlib.figure", "compare")):
        require(module, extra=extra)
    from pacesetter.agent.training.config import fine_tuning_config  # need the extra `train`
    from pacesetter.agent.training.train import train

    init = load_policy(config.init)
    preset = fine_tuning_config(get_preset(config.preset), init)
    if force and (record := out / RUN_FILE).is_file():
        kind = json.loads(record.read_text(encoding="utf-8")).get("kind")
        if kind == "demo":
            shutil.rmtree(out)
    claim_folder(out, kind="demo", settings=asdict(config), resume=False)
    say(f"1. Meta-training: the shipped agent goes on learning (preset {config.preset}) ...")
    path = train(
        preset,
        out / "train",
        seed=config.seed,
        device=config.device,
        progress=progress,
        preset=config.preset,
        init=init,
    )
    policies = {TRAINED: load_policy(path), SHIPPED: init}
    say(f"2. Running an ordinary PyTorch job on the digits, {config.num_seeds} seeds per arm ...")
    records = digits_records(config, policies, progress=progress)

    say("3. Writing the report ...")
    write_csv(out / "results.csv", records)
    return reported(
        records,
        out,
        title="pacesetter: a demonstration on handwritten digits",
        arms=[*policies, DEFAULT, COSINE],
        notes=NOTES,
        seed=config.seed,
        device=config.device,
        command=command,
        ours=tuple(arm.name for arm in policies),
    )


def digits_records(
    config: DemoConfig, policies: Mapping[AgentArm, Policy], *, progress: bool = False
) -> list[RunRecord]:
    """Runs every arm on the digits, the rival's tuning first; `policies` by the arm they are."""
    tuning_runs = len(config.lrs) * len(TUNING_SEEDS)
    total = tuning_runs + (len(policies) + 2) * config.num_seeds
    ends = interval_ends(config.steps, ControlConfig().num_intervals)
    records: list[RunRecord] = []
    with progress_bar("digits", total=total, unit="runs", shown=progress) as bar:

        def run(control: Control, lr: float, seed: int) -> Job:
            job = train_digits(control, lr=lr, seed=seed, steps=config.steps)
            bar.update()
            return job

        def tuning_loss(lr: float) -> float:
            models = [run(cosine, lr, seed).model for seed in TUNING_SEEDS]
            loss = float(np.mean([split_loss(model, "outer_valid") for model in models]))
            return float(np.nan_to_num(loss, nan=np.inf))

        def cosine(optimizer: torch.optim.Optimizer) -> CosineAnnealingLR:
            return CosineAnnealingLR(optimizer, T_max=config.steps)

        def learned(policy: Policy) -> Control:
            return lambda optimizer: LearnedScheduler(optimizer, config.steps, policy=policy)

        best = min(config.lrs, key=tuning_loss)
        arms: list[tuple[AgentArm, Control, float]] = [
            *((arm, learned(policy), config.start_lr) for arm, policy in policies.items()),
            (DEFAULT, lambda optimizer: None, 1e-3),
            (COSINE, cosine, best),
        ]
        for arm, control, lr in arms:
            for seed in range(config.num_seeds):
                job = run(control, lr, seed)
                parts = np.split(job.history, ends[:-1], axis=1)
                curve, lrs, momenta, _ = np.stack([part.mean(axis=1) for part in parts], axis=1)
                record = RunRecord(
                    task=TASK,
                    arm=arm.name,
                    seed=seed,
                    start_lr=config.start_lr if arm in policies else None,
                    lr=lr,
                    trials=len(config.lrs) if arm is COSINE else 1,
                    inner_steps=config.steps * (1 + (tuning_runs if arm is COSINE else 0)),
                    untrained=job.untrained,
                    losses={split: split_loss(job.model, split) for split in REPORTED_SPLITS},
                    steps=list(ends),
                    curve=curve.tolist(),
                    lrs=lrs.tolist(),
                    momenta=momenta.tolist(),
                    clip_thresholds=[float(part[3, -1]) for part in parts],
                )
                records.append(record)
    return records


class Job(NamedTuple):
    """One finished run of the plain loop.

    Attributes:
        untrained: outer-valid loss before the first update.
        history: (4, steps), training loss, learning rate, ``betas[0]`` and clip threshold of each
            update; NaN where nothing was clipped.
    """

    model: nn.Module
    untrained: float
    history: FloatArray


def train_digits(control: Control, *, lr: float, seed: int, steps: int) -> Job:
    """An ordinary training run on scikit-learn's digits, written as its user would write it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
        model = nn.Sequential(*layers)
    untrained = split_loss(model, "outer_valid")
    data = TensorDataset(*digits_splits().train)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=32, shuffle=True, generator=order)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = control(optimizer)
    group = optimizer.param_groups[0]
    history: list[tuple[float, ...]] = []
    while len(history) < steps:
        for inputs, labels in loader:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            lr, momentum, clip = group["lr"], group["betas"][0], math.nan
            optimizer.step()
            if isinstance(scheduler, LearnedScheduler):
                clip = scheduler.last_clip_norm
                scheduler.step(loss)
            elif scheduler is not None:
                scheduler.step()
            history.append((loss.item(), lr, momentum, clip))
            if len(history) == steps:
                break
    return Job(model, untrained, np.array(history).T)


@torch.no_grad()
def split_loss(model: nn.Module, split: SplitName) -> float:
    """Mean cross-entropy on a whole split of the digits."""
    inputs, labels = getattr(digits_splits(), split)
    return float(nn.functional.cross_entropy(model(inputs), labels))
