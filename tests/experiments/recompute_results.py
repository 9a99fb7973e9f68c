"""Recomputes the table of a comparison from its results.csv, with csv and numpy alone.

Shares no code with the package: python recompute_results.py RESULTS.CSV [SEED [SPLIT]]
"""

import csv
import sys
from itertools import product
from math import isfinite, log

import numpy as np

RESAMPLES = 10_000


def iqm(samples):
    """Mean of what is left of (..., n) when a quarter of the numbers is cut off at either end."""
    ordered = np.sort(samples, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def intervals(table, seed):
    """Mean and IQM of a table (tasks, seeds), each with its two-level 95 % interval."""
    num_tasks, num_seeds = table.shape
    rng = np.random.default_rng(np.random.default_rng(int(seed)).integers(2**63))
    tasks = rng.integers(num_tasks, size=(RESAMPLES, num_tasks))
    seeds = rng.integers(num_seeds, size=(RESAMPLES, num_tasks, num_seeds))
    flat = table[tasks[:, :, None], seeds].reshape(RESAMPLES, -1)
    found = {}
    for name, statistic in (("mean", lambda x: x.mean(axis=-1)), ("iqm", iqm)):
        ends = np.quantile(statistic(flat), (0.025, 0.975))
        found[name] = (float(statistic(table.ravel())), *(float(end) for end in ends))
    return found


def recompute(path, seed=0, split="test"):
    """By (arm, start, budget): log ratios to the reference and normalised scores, summed up."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["failed"]]
    loss, valid, untrained = {}, {}, {}
    for row in rows:
        key = (row["arm"], row["start_lr"], int(row["budget"]))
        run = (row["task"], int(row["seed"]))
        loss.setdefault(key, {})[run] = float(row[split])
        valid.setdefault(key, {})[run] = float(row["outer_valid"])
        untrained.setdefault(row["task"], []).append(float(row["untrained"]))
    tasks = list(untrained)
    seeds = sorted({int(row["seed"]) for row in rows})
    for runs, task in product([loss, valid], tasks):
        known = [losses[task, s] for losses in runs.values() for s in seeds]
        worst = max(np.mean(untrained[task]), *filter(isfinite, known))
        for losses, s in product(runs.values(), seeds):
            losses[task, s] = losses[task, s] if isfinite(losses[task, s]) else worst
    base = loss["adamw-default", "", 1]
    budget = max(key[2] for key in loss)
    family = [key for key in loss if key[0].startswith("adamw-") and key[1:] == ("", budget)]
    zero, one = {}, {}
    for task in tasks:
        best = min(family, key=lambda k: sum(valid[k][task, s] for s in seeds), default=None)
        zero[task] = np.mean([base[task, s] for s in seeds])
        one[task] = np.mean([loss[best][task, s] for s in seeds]) if best else zero[task]
    counts = [t for t in tasks if zero[t] - one[t] >= 0.02 * zero[t]]
    found = {}
    for key, run in loss.items():
        ratios = np.array([[log(run[t, s] / base[t, s]) for s in seeds] for t in tasks])
        found[key] = {"score": intervals(ratios, seed)}
        if counts and budget > 1:
            scores = [[(zero[t] - run[t, s]) / (zero[t] - one[t]) for s in seeds] for t in counts]
            found[key]["normalised"] = intervals(np.array(scores), seed)
    return found


if __name__ == "__main__":
    for key, values in recompute(*sys.argv[1:]).items():
        sys.stdout.write(f"{key}: {values}\n")
