"""A policy on thirty ordinary jobs that are unlike what it learned on, against AdamW.

    python benchmarks/transfer_jobs.py --policy default --starts 1e-3 --out runs/transfer-jobs

The jobs are those of `ordinary_jobs`. Their rivals are measured once and stored with a digest of
the job's code: AdamW at a constant 1e-3, seven rates with a cosine, and 20 random trials from the
space of the arm ``adamw-pooled`` (rate, beta1, weight decay, schedule; not clipping). The best of
the seven and of the 20 are those of the least test loss: they know what a user cannot. Then the
plug-in drives each job from each start, blind and with a validation loss 20 times a run.

Ratios of losses are ratios of what lies above the job's floor, which is zero unless losses come
near zero or fall below it. The *score* of a job is (log default - log ours) / (log default - log
tuned), 0 for AdamW at 1e-3 and 1 for the best of 20, and a group's is the mean with its 95 %
bootstrap interval over jobs. The *goal score* is that of docs/goals.md: losses instead of their
logs, and the interquartile mean. Jobs on which tuning gains less than 2 % have no score. A run that
diverges counts as the worst of the job, or as the untrained model, if that is worse.

Every result is on disk as soon as it is there; the command goes on where it was killed.
``--starts`` without a number measures the rivals only.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ordinary_jobs import JOBS, Job, version
from ordinary_jobs.runs import TRIALS, policy, rival_arms, run_policy, run_rival

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.analysis.statistics import Interval, Resamples, iqm_over_runs
from pacesetter.experiments.rivals.baselines import ADAMW_LRS

STORED = Path(__file__).parent / "results" / "transfer-jobs-baselines.csv"
LEAST_GAIN, WORSE, NEAR = 0.02, 1.15, 1.5
RIVAL_KEY = ("job", "version", "arm", "seed")
RIVAL_FIELDS = (*RIVAL_KEY, "setting", "passes", "untrained", "valid", "test")
KEY = ("job", "version", "policy", "start", "validation", "seed")
FIELDS = (*KEY, "untrained", "valid", "test", "interventions", "seconds", "rates")
Row = dict[str, str]


class Table:
    """Rows of a CSV file that grows by whole lines; one that a kill cut short is dropped."""

    def __init__(self, path: Path, key: Sequence[str], fields: Sequence[str]) -> None:
        self.path, self.key, self.fields = path, key, fields
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1] or ",".join(fields) + "\n"
        if whole != text:
            part = path.with_suffix(".part")
            part.write_text(whole, encoding="utf-8")
            os.replace(part, path)
        rows = list(csv.DictReader(whole.splitlines()))
        if rows and tuple(rows[0]) != tuple(fields):
            raise SystemExit(f"{path} has other columns than {', '.join(fields)}: move it away")
        self.rows = {tuple(row[name] for name in key): row for row in rows}

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row at once."""
        cells = {
            k: f"{v:.6g}" if isinstance(v, float) else str(v)
            for k, v in ((name, row[name]) for name in self.fields)
        }
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.fields, lineterminator="\n").writerow(cells)
            file.flush()
            os.fsync(file.fileno())
        self.rows[tuple(cells[name] for name in self.key)] = cells


def measure(
    table: Table, tasks: Mapping[tuple[str, ...], Callable[[], dict[str, Any]]], *, workers: int
) -> None:
    """Does what is missing in a table, in so many processes; keys are those of its rows."""
    missing = {key: task for key, task in tasks.items() if key not in table.rows}
    if not missing:
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky" if workers > 1 else "sequential", n_jobs=workers):
        done = Parallel(return_as="generator_unordered", batch_size=1)(
            delayed(task)() for task in missing.values()
        )
        for count, row in enumerate(done, 1):
            table.add(row)
            name = row.get("arm") or f"from {row['start']} {row['validation']} validation"
            print(
                f"{count}/{len(missing)} {row['job']} {name}: {row['test']:.5g} "
                f"({row['seconds']} s)",
                flush=True,
            )


class Losses:
    """Final losses of the rivals and of the policy, on each job above its floor.

    Attributes:
        default, cosine, tuned: (num_jobs,), NaN where they, or some trials, were not measured; the
            policy's are in `ours`, by start and validation.
        grid: rates with a cosine that were measured, of each job.
        passes: through the data, (num_jobs,).
    """

    def __init__(self, jobs: Mapping[str, Job], rivals: Sequence[Row], runs: Sequence[Row]) -> None:
        self.jobs = list(jobs.values())
        self.ways = list(dict.fromkeys((row["start"], row["validation"]) for row in runs))
        self.rates: dict[tuple[str, str, str], str] = {}
        found: dict[str, list[float]] = {"adamw": [], "cosine": [], "trial": []}
        ours: list[list[float]] = []
        self.grid: list[int] = []
        self.passes = np.zeros(len(self.jobs))
        for at, job in enumerate(self.jobs):
            theirs = [row for row in rivals if row["job"] == job.name]
            mine = [row for row in runs if row["job"] == job.name]
            self.passes[at] = float(theirs[0]["passes"])
            every = [float(row[k]) for row in (*theirs, *mine) for k in ("test", "untrained")]
            worst = max(value for value in every if math.isfinite(value))

            def above(rows: Sequence[Row], w: float = worst, of: Job = job) -> FloatArray:
                values = np.array([float(row["test"]) for row in rows])
                return np.where(np.isfinite(values), values, w) - of.floor

            for arm, losses in found.items():
                values = above([row for row in theirs if row["arm"].startswith(arm)])
                whole = len(values) >= (TRIALS if arm == "trial" else 1)
                best = values.mean() if arm == "adamw" else values.min(initial=math.inf)
                losses.append(float(best) if whole else math.nan)
            self.grid.append(sum(row["arm"].startswith("cosine") for row in theirs))
            by_way = [[r for r in mine if (r["start"], r["validation"]) == w] for w in self.ways]
            ours.append([float(above(rows).mean()) for rows in by_way])
            for way, rows in zip(self.ways, by_way, strict=True):
                self.rates[(job.name, *way)] = rows[0]["rates"]
        self.default, self.cosine, self.tuned = (np.array(v) for v in found.values())
        self.ours = dict(zip(self.ways, np.array(ours).T, strict=True))
        self.scored = self.default >= (1 + LEAST_GAIN) * self.tuned

    def score(self, way: tuple[str, str], *, logs: bool) -> FloatArray:
        """Of each job, whether it counts or not; NaN where tuning gains nothing at all."""
        zero, ours, one = (
            np.log(x) if logs else x for x in (self.default, self.ours[way], self.tuned)
        )
        return np.where(zero > one, (zero - ours) / np.where(zero > one, zero - one, 1.0), np.nan)

    def groups(self) -> dict[str, FloatArray]:
        """Names of groups of jobs, and which jobs they hold."""
        split = np.array([job.split for job in self.jobs])
        kinds = np.array([job.kind for job in self.jobs])
        once = self.passes <= 1
        named = {
            "all": np.ones(len(split), bool),
            "choose": split == "choose",
            "report": split == "report",
            "one pass or less": once,
            "more than one pass": ~once,
            **{kind: kinds == kind for kind in dict.fromkeys(kinds)},
        }
        return {name: chosen for name, chosen in named.items() if chosen.any()}


def _interval(values: FloatArray, *, middle: bool = False) -> str:
    """A mean, or an interquartile mean, with its interval over jobs where there are a few."""
    if not len(values):
        return "-"
    draws = Resamples.draw(len(values), 1, generator=np.random.default_rng(0))
    each = values[:, None]
    found: Interval = draws.interval(each, iqm_over_runs) if middle else draws.interval(each)
    ends = f" [{found.low:.2f}, {found.high:.2f}]" if len(values) > 2 else ""
    return f"{found.estimate:.2f}{ends}"


def summary(of: Losses) -> Iterator[tuple[str, ...]]:
    """A row for each group of jobs, start and use of validation losses."""
    yield (
        *("jobs", "number", "start", "validation", "to best cosine", "to AdamW 1e-3"),
        *("score", "goal score", "> 15 % worse than AdamW", "within 1.5 of best cosine"),
    )
    for name, chosen in of.groups().items():
        for way in of.ways:
            ours = of.ours[way][chosen]
            cosine, default = ours / of.cosine[chosen], ours / of.default[chosen]
            counts = chosen & of.scored
            worse, near = (default > WORSE).sum(), (cosine <= NEAR).sum()
            yield (
                *(name, str(len(ours)), *way),
                *(f"{np.exp(np.log(ratio).mean()):.2f}" for ratio in (cosine, default)),
                _interval(of.score(way, logs=True)[counts]),
                _interval(of.score(way, logs=False)[counts], middle=True),
                f"{worse} ({worse / len(ours):.0%})",
                f"{near} ({near / len(ours):.0%})",
            )


def job_rows(of: Losses) -> Iterator[tuple[str, ...]]:
    """A row for each job, start and use of validation losses; losses as they are."""
    yield (
        *("job", "kind", "split", "passes", "AdamW 1e-3", "best cosine", "best of 20", "start"),
        *("validation", "plug-in", "to best cosine", "to AdamW 1e-3", "score", "rate by tenths"),
    )
    for at, job in enumerate(of.jobs):
        for way in of.ways:
            ours, cosine = of.ours[way][at], of.cosine[at]
            score = f"{of.score(way, logs=True)[at]:.2f}".replace("nan", "-")
            few = f" (of {of.grid[at]})" if of.grid[at] < len(ADAMW_LRS) else ""
            default, best, tuned = (
                f"{x[at] + job.floor:.4g}".replace("nan", "-")
                for x in (of.default, of.cosine, of.tuned)
            )
            yield (
                *(job.name, job.kind, job.split, f"{of.passes[at]:.3g}"),
                *(default, best + few, tuned),
                *(*way, f"{ours + job.floor:.4g}", f"{ours / cosine:.2f}"),
                f"{ours / of.default[at]:.2f}",
                score + "*" * (not of.scored[at]),
                of.rates[(job.name, *way)],
            )


def markdown(rows: Iterator[tuple[str, ...]]) -> str:
    """A table; the first row is its head."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, [":--"] * len(head), *rest))


def chosen_jobs(names: Sequence[str]) -> dict[str, Job]:
    """Jobs by name or split; SystemExit where there is no such job."""
    unknown = set(names) - {"all", "choose", "report", *JOBS}
    if unknown:
        raise SystemExit(
            f"--jobs takes choose, report, all or some of {', '.join(JOBS)}, "
            f"but got {', '.join(sorted(unknown))}"
        )
    return {n: j for n, j in JOBS.items() if {"all", j.split, n} & set(names)}


def main() -> None:
    """Measures what is missing, and writes runs.csv and table.md into the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="default", help="'default' or a policy file")
    parser.add_argument("--jobs", nargs="+", default=["all"], help="choose, report, all or names")
    parser.add_argument("--starts", nargs="*", type=float, default=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    parser.add_argument("--validation", default="both", choices=("both", "with", "without"))
    parser.add_argument("--seeds", type=int, default=1, help="of weights and order, from 0 on")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--steps", type=int, help="of a run, at most; to try the command")
    parser.add_argument("--baselines", type=Path, default=STORED, help="CSV file of the rivals")
    parser.add_argument("--stored", action="store_true", help="measure no rival, use those stored")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.csv and table.md")
    args = parser.parse_args()
    jobs = chosen_jobs(args.jobs)
    if args.steps:
        jobs = {n: dataclasses.replace(j, steps=min(j.steps, args.steps)) for n, j in jobs.items()}
    versions = {name: version(job) for name, job in jobs.items()}

    rivals = Table(args.baselines, RIVAL_KEY, RIVAL_FIELDS)
    # The default of all jobs comes first, trials come last: a table cut short says something.
    arms = ["adamw", *(arm for arm, *_ in rival_arms("") if arm != "adamw")]
    tasks: dict[tuple[str, ...], Callable[[], dict[str, Any]]] = {
        (name, versions[name], arm, str(seed)): partial(run_rival, job, arm, seed)
        for arm in arms
        for name, job in jobs.items()
        for seed in range(args.seeds if arm == "adamw" else 1)
    }
    if not args.stored:
        measure(rivals, tasks, workers=args.workers)
    new = [name for name in jobs if (name, versions[name], "adamw", "0") not in rivals.rows]
    if new:
        raise SystemExit(f"AdamW is not stored for {', '.join(new)}: leave out --stored")
    theirs = [rivals.rows[key] for key in tasks if key in rivals.rows]

    runs = Table(args.out / "runs.csv", KEY, FIELDS)
    digest = policy(args.policy).digest[:12]
    modes = {"both": (False, True), "with": (True,), "without": (False,)}[args.validation]
    mine: dict[tuple[str, ...], Callable[[], dict[str, Any]]] = {}
    for name, job in jobs.items():
        for start in args.starts:
            for sees in modes:
                for seed in range(args.seeds):
                    way = f"{start:g}", "with" if sees else "without", str(seed)
                    mine[(name, versions[name], digest, *way)] = partial(
                        run_policy, job, args.policy, start, sees, seed
                    )
    measure(runs, mine, workers=args.workers)
    if not mine:
        return
    losses = Losses(jobs, theirs, [runs.rows[key] for key in mine])
    text = f"{markdown(summary(losses))}\n\n{markdown(job_rows(losses))}\n"
    if not losses.scored.all():
        text += "\n\\* in no score of a group: tuning gains less than 2 %, or trials are missing.\n"
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
