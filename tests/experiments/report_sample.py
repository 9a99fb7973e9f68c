"""A small comparison that was never run: records with everything that a report can show."""

import math

import numpy as np

from pacesetter.experiments.analysis.summary import summarise
from pacesetter.experiments.report.html import Report
from pacesetter.experiments.rivals.arms import AgentArm
from pacesetter.experiments.runs.records import RunRecord

TASKS = ("own/a", 'b <i>"x"</i> & co')
NASTY = 'mine <script>alert(1)</script> & "co"'
SEEDS = 3
STEPS = [5, 10, 15, 20]
LABELS = {"policy": "policy", "adamw-default": "AdamW 1e-3", "adamw-cosine": "cosine"}


def record(task, arm, seed, *, loss, start=None, budget=1, failed=None, untrained=4.0):
    """A run whose loss falls from 4 to `loss`; one that crashed has nothing but a reason."""
    alive = failed is None
    fall = [float(x) for x in np.geomspace(4.0, max(loss, 1e-3), len(STEPS))]
    agent = arm == "policy"
    return RunRecord(
        task=task,
        arm=arm,
        seed=seed,
        start_lr=start,
        lr=start or 1e-3,
        trials=budget,
        inner_steps=20 * budget,
        untrained=untrained if alive else math.nan,
        losses=dict.fromkeys(("train", "outer_valid", "test"), loss if alive else math.nan),
        steps=STEPS if alive else [],
        curve=fall if alive else [],
        lrs=[1e-3, 2e-3, 2e-3, 1e-3] if alive else [],
        momenta=[0.9] * 4 if alive else [],
        clip_thresholds=[1.0 if agent else math.nan] * 4 if alive else [],
        budget=budget,
        setting={} if agent else {"lr": 1e-3},
        best={"outer_valid": loss},
        metric_name="accuracy" if task == TASKS[0] else None,
        metric=dict.fromkeys(("train", "outer_valid", "test"), 0.9) if task == TASKS[0] else None,
        valid_steps=STEPS[1::2] if alive else [],
        valid_curve=fall[1::2] if alive else [],
        wall_seconds=1.0,
        failed=failed,
    )


def records():
    """Three starts of an agent, a tuned arm with three budgets, and two arms that crash."""
    rng = np.random.default_rng(0)
    found = []
    for task in TASKS:
        for seed in range(SEEDS):
            noise = float(rng.uniform(0.97, 1.03))
            rows = [("adamw-default", None, 1, 1.0), (NASTY, None, 1, 1.4)]
            rows += [("policy", start, 1, 0.7 + 30 * start) for start in (1e-4, 1e-3, 1e-2)]
            rows += [("adamw-cosine", None, b, 0.8 - 0.01 * b) for b in (1, 5, 20)]
            found += [
                record(task, arm, seed, loss=loss * noise, start=start, budget=budget)
                for arm, start, budget, loss in rows
            ]
            broken = "ImportError: no <lion> & no 'package'"
            found.append(record(task, "lion", seed, loss=1.0, failed=broken))
            sometimes = "RuntimeError: out of memory" if (task, seed) == (TASKS[0], 0) else None
            found.append(record(task, "shaky", seed, loss=0.9 * noise, failed=sometimes))
    return found


def report(found=None, *, ours=("policy",)):
    """The report on some records."""
    found = records() if found is None else found
    summary = summarise(found, generator=np.random.default_rng(0), labels=LABELS, ours=ours)
    return Report(
        title="Schedules & <others>",
        summary=summary,
        records=tuple(found),
        arms=[AgentArm(name=n, label=n, source="<b>somewhere</b>") for n in ("policy", NASTY)],
        notes=("Tuned & <chosen>.",),
        environment={"libraries": "Python <3>"},
        command="pacesetter compare --tasks 'a&b' --out <here>",
        ours=ours,
    )
