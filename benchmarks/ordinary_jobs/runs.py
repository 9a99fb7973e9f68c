"""Runs of ordinary jobs: by AdamW alone, and by the plug-in."""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ordinary_jobs.base import Job, version
from pacesetter.agent import LearnedScheduler, Policy, load_policy
from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.rivals.baselines import ADAMW_LRS, POOLED
from pacesetter.experiments.rivals.schedules import constant, cosine
from pacesetter.experiments.rivals.space import Setting, Space

SPACE = Space({name: d for name, d in POOLED.space.dimensions.items() if name != "clip"})
TRIALS, CHECKS, TENTHS = 20, 20, 10


def train(
    job: Job,
    seed: int,
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.AdamW],
    *,
    control: Callable[[torch.optim.Optimizer], LearnedScheduler] | None = None,
    sees: bool = False,
    factors: FloatArray | None = None,
) -> dict[str, Any]:
    """Runs a job as a user would; losses are NaN where one of AdamW's own was not finite."""
    start = time.process_time()
    made = job.setup(seed)
    assert made.order is not None
    made_of = [p for p in made.model.parameters() if p.requires_grad]
    opt = optimizer(made_of)
    (group,) = opt.param_groups
    lr, rates = float(group["lr"]), []

    def held(rows: tuple[torch.Tensor, ...]) -> float:
        made.model.eval()
        with torch.no_grad():
            value = float((made.held or made.loss)(rows).detach())
        made.model.train()
        return value

    untrained = held(made.test)
    plug = control(opt) if control else None
    lost = False
    for i, rows in enumerate(made.order[: job.steps]):
        if factors is not None:
            group["lr"] = lr * factors[i]
        if made.before:
            made.before(i)
        loss = made.loss(tuple(column[rows] for column in made.train))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if plug:
            plug.step(loss)
            if sees and (i + 1) % max(job.steps // CHECKS, 1) == 0:
                plug.observe_validation(held(made.valid))
        elif not math.isfinite(loss.detach()):
            lost = True
            break
        if (i + 1) % max(job.steps // TENTHS, 1) == 0:
            rates.append(group["lr"])
    return {
        "passes": job.steps * job.batch / len(made.train[0]),
        "untrained": untrained,
        "valid": math.nan if lost else held(made.valid),
        "test": math.nan if lost else held(made.test),
        "interventions": sum(len(d.interventions) for d in plug.history) if plug else 0,
        "rates": " ".join(f"{rate:.1e}" for rate in rates[:TENTHS]),
        "seconds": round(time.process_time() - start, 2),
    }


def rival_arms(job: str) -> Iterator[tuple[str, Setting, Callable[..., FloatArray]]]:
    """Names, settings and schedules of a job's rivals; each job draws trials of its own."""
    yield "adamw", {"lr": 1e-3}, constant
    for lr in ADAMW_LRS:
        yield f"cosine-{lr:g}", {"lr": lr}, cosine
    assert POOLED.schedule is not None
    generator = np.random.default_rng(zlib.crc32(job.encode()))
    for number in range(TRIALS):
        yield f"trial-{number}", SPACE.sample(generator), POOLED.schedule


def run_rival(job: Job, arm: str, seed: int) -> dict[str, Any]:
    """A run of AdamW without the plug-in."""
    setting, schedule = next((s, f) for name, s, f in rival_arms(job.name) if name == arm)
    _prepare()
    # The fused form does the same arithmetic in half of the time.
    optimizer = partial(
        torch.optim.AdamW,
        lr=float(setting["lr"]),
        betas=(float(setting.get("momentum", 0.9)), 0.999),
        weight_decay=float(setting.get("weight_decay", 0.01)),
        fused=True,
    )
    factors = schedule(np.arange(job.steps) / job.steps, setting)
    row = train(job, seed, optimizer, factors=factors)
    shown = " ".join(f"{k}={v if isinstance(v, str) else f'{v:.4g}'}" for k, v in setting.items())
    return {
        "job": job.name,
        "version": version(job),
        "arm": arm,
        "seed": seed,
        "setting": shown,
        **row,
    }


@cache
def policy(name: str) -> Policy:
    return load_policy(name)


def run_policy(job: Job, of: str, start: float, sees: bool, seed: int) -> dict[str, Any]:
    """A run that the plug-in drives from AdamW's defaults but for the start."""
    _prepare()
    control = partial(LearnedScheduler, total_steps=job.steps, policy=policy(of), patience=None)
    row = train(job, seed, partial(torch.optim.AdamW, lr=start), control=control, sees=sees)
    shown = {"start": f"{start:g}", "validation": "with" if sees else "without", "seed": seed}
    names = {"job": job.name, "version": version(job), "policy": policy(of).digest[:12]}
    return {**names, **shown, **row}


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the plug-in, which tells of every intervention
