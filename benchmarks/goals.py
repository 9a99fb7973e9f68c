r"""The four goals of the project, computed from what a comparison wrote: see docs/goals.md.

    pacesetter compare --out runs/goals --start-lrs 1e-3,1e-5,1e-4,3e-4,1e-2,1e-1 --arms policy,\
policy-seeing,policy-two-thirds,policy-seeing-two-thirds,policy-open-loop,policy-open-loop-strict,\
multiple-3,multiple-10,multiple-30,multiple-100,adamw-default,adamw-pooled,adamw-cosine-calibrated
    python benchmarks/goals.py runs/goals --out benchmarks/results/goals.md

Prints each goal with its 95 % bootstrap interval over tasks and seeds, then each task. Rows whose
arms or starts are missing are left out.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.statistics import (
    Interval,
    Resamples,
    fill_diverged,
    interquartile_mean,
)

FloatArray = NDArray[np.float64]
Key = tuple[str, float | None]
"""An arm, and the learning rate that it started from, if that is not its own."""

START = 1e-3
DEFAULT, TUNED, CALIBRATED = (
    ("adamw-default", None),
    ("adamw-pooled", None),
    "adamw-cosine-calibrated",
)
WRONG_STARTS = {1e-5: 0.15, 1e-4: 0.05, 1e-2: 0.05, 1e-1: 0.15}
"""Goal 3: starts, and by how much the loss may grow from there."""
ADAPTIVE_STARTS = (3e-4, 1e-3, 1e-2)
LEAST_SCORE, LEAST_GAIN, WORST = 1.15, 0.02, 0.10
"""Goal 1; share that tuning has to gain for a task to have a score; goal 3 on any task."""


class Losses:
    """Final losses on one split by arm and start, (num_tasks, num_seeds) each.

    Args:
        rows: of ``results.csv``; of several budgets of an arm the largest counts.
        split: which.

    Attributes:
        tasks: names.
        lost: which runs diverged, by arm and start.
        scale: (num_tasks, 1), zero where logs of losses are compared. Where a loss is not positive,
            differences are divided by this: what the default has learned.
        gain: (num_tasks,), share of its loss (or of what it learned) that tuning takes off.
    """

    def __init__(self, rows: Sequence[dict[str, str]], split: str) -> None:
        ordered = sorted(rows, key=lambda row: int(row["budget"]))
        runs = {
            (
                row["arm"],
                float(row["start_lr"]) if row["start_lr"] else None,
                row["task"],
                row["seed"],
            ): (
                float(row[split] or "nan"),
                float(row["untrained"] or "nan"),
            )
            for row in ordered
        }
        self.tasks = list(dict.fromkeys(row["task"] for row in rows))
        seeds = list(dict.fromkeys(row["seed"] for row in rows))
        keys: list[Key] = list(dict.fromkeys((arm, start) for arm, start, *_ in runs))
        both = np.array([[[runs[(*k, t, s)] for s in seeds] for t in self.tasks] for k in keys])
        raw, untrained = both[..., 0], both[keys.index(DEFAULT), ..., 1]
        filled = fill_diverged(raw, untrained=untrained.mean(axis=-1))
        self.by = dict(zip(keys, filled, strict=True))
        self.lost = dict(zip(keys, ~np.isfinite(raw), strict=True))
        learned = np.maximum(untrained - self.by[DEFAULT], 1e-300).mean(axis=-1, keepdims=True)
        positive = ((filled > 0).all(axis=(0, 2)) & (untrained > 0).all(axis=-1))[:, None]
        self.scale = np.where(positive, 0.0, learned)
        self._share = np.where(positive, self.by[DEFAULT].mean(axis=-1, keepdims=True), learned)
        self.gain = np.full(len(self.tasks), np.nan)
        if TUNED in self.by:
            gains = (self.by[DEFAULT] - self.by[TUNED]).mean(axis=-1)
            self.gain = gains / self._share[:, 0]
        self._draws = Resamples.draw(*raw.shape[1:], generator=np.random.default_rng(0))

    def interval(
        self,
        statistic: Callable[..., FloatArray],
        *arrays: FloatArray,
        rows: FloatArray | None = None,
    ) -> Interval:
        """A statistic of arrays (T, S), resampled together; `rows`: the tasks that count."""
        kept = [a if rows is None else a[rows] for a in arrays]
        draws = self._draws
        if rows is not None:
            draws = Resamples.draw(*kept[0].shape, generator=np.random.default_rng(0))
        samples = statistic(*(draws.of(a) for a in kept))
        return draws.around(float(statistic(*kept)), samples)

    def ratio(
        self, ours: Key, theirs: Key, statistic: Callable[[FloatArray], FloatArray]
    ) -> Interval:
        """A statistic over tasks of the log ratio of losses, means over seeds."""
        scale = np.broadcast_to(self.scale, self.by[ours].shape)
        return self.interval(
            lambda a, b, c: statistic(log_ratio(a, b, c)), self.by[ours], self.by[theirs], scale
        )

    def paired(self, pairs: Sequence[tuple[Key, Key]]) -> Interval:
        """Mean over pairs of arms, tasks and seeds of the log ratio, run by run."""
        each = [
            log_ratio(self.by[a][..., None], self.by[b][..., None], self.scale[..., None])
            for a, b in pairs
        ]
        return self.interval(lambda v: v.mean(axis=(-2, -1)), np.mean(each, axis=0))

    def score(self, key: Key) -> tuple[FloatArray, Interval]:
        """By task, and as interquartile mean: 0 is the default, 1 the tuned AdamW."""

        def scores(
            ours: FloatArray, zero: FloatArray, one: FloatArray, of: FloatArray
        ) -> FloatArray:
            # A resample in which tuning gains next to nothing would divide by noise.
            gain = np.maximum((zero - one).mean(axis=-1), LEAST_GAIN * of.mean(axis=-1))
            return np.asarray((zero - ours).mean(axis=-1) / gain)

        counts = self.gain >= LEAST_GAIN
        of = np.broadcast_to(self._share, self.by[key].shape)
        arrays = (self.by[key], self.by[DEFAULT], self.by[TUNED], of)
        iqm = self.interval(lambda *a: interquartile_mean(scores(*a)), *arrays, rows=counts)
        return np.where(counts, scores(*arrays), np.nan), iqm


def log_ratio(ours: FloatArray, theirs: FloatArray, scale: FloatArray) -> FloatArray:
    """Compares mean losses over seeds, (..., T, S) each to (..., T); see `Losses.scale`."""
    a, b, by = ours.mean(axis=-1), theirs.mean(axis=-1), scale.mean(axis=-1)
    logs = np.log(np.where(by > 0, 1.0, a)) - np.log(np.where(by > 0, 1.0, b))
    return np.asarray(np.where(by > 0, (a - b) / np.where(by > 0, by, 1.0), logs))


def criteria(of: Losses) -> Iterator[tuple[str, str, str, str]]:
    """Goal, what is measured, its value, and what is to be reached."""
    sees = [("policy", START), ("policy-seeing", START)]
    for key in (key for key in sees if key in of.by):
        if TUNED in of.by and (of.gain >= LEAST_GAIN).any():
            yield "1 final loss", f"{key[0]}: score", cell(of.score(key)[1]), f">= {LEAST_SCORE}"
        for rival in (rival for rival in (DEFAULT, TUNED) if rival in of.by):
            value = cell(of.paired([(key, rival)]))
            yield "1 final loss", f"{key[0]}: log ratio to {rival[0]}", value, ""
    for arm in ("policy-two-thirds", "policy-seeing-two-thirds"):
        if (arm, START) in of.by and TUNED in of.by:
            value = cell(of.ratio((arm, START), TUNED, interquartile_mean))
            yield "2 speed", f"{arm}: log ratio to adamw-pooled with all steps", value, "<= 0"
    right = ("policy", START)
    for start, most in WRONG_STARTS.items():
        if {("policy", start), right} <= set(of.by):
            for what, statistic in (("mean", np.mean), ("worst task", np.max)):
                value = of.ratio(("policy", start), right, lambda v, s=statistic: s(v, axis=-1))
                name = f"policy from {start:g}: loss over that from 1e-3, {what}"
                yield "3 robustness", name, cell(value, percent=True), f"<= {most:.0%}"
    policies = [key for key in of.by if key[0] == "policy"]
    lost = sum(int((of.lost[key] & ~of.lost[DEFAULT]).sum()) for key in policies)
    count = f"{lost} of {len(policies) * of.by[DEFAULT].size}"
    yield "3 robustness", "policy: runs that diverge where the default does not", count, "0"
    for key in (key for key in sees if key in of.by):
        worse = log_ratio(of.by[key], of.by[DEFAULT], of.scale) > np.log1p(WORST)
        count = f"{int(worse.sum())} of {len(of.tasks)}"
        yield "3 robustness", f"{key[0]}: tasks over {WORST:.0%} worse than the default", count, "0"
    multiples = sorted(
        {arm for arm, _ in of.by if arm.startswith("multiple-")}, key=lambda a: int(a.split("-")[1])
    )
    rivals = [*("policy-open-loop", "policy-open-loop-strict"), CALIBRATED, *multiples]
    for arm in rivals:
        starts = ADAPTIVE_STARTS if arm in multiples else (START,)
        pairs = [(("policy", s), (arm, None if arm == CALIBRATED else s)) for s in starts]
        pairs = [pair for pair in pairs if set(pair) <= set(of.by)]
        if pairs:
            yield "4 adaptivity", f"policy against {arm}: log ratio", cell(of.paired(pairs)), "< 0"


def cell(value: Interval, *, percent: bool = False) -> str:
    """An estimate with its interval; a percent is given as the log of its ratio."""
    numbers = (value.estimate, value.low, value.high)
    shown = [f"{100 * np.expm1(v):+.1f} %" if percent else f"{v:+.3f}" for v in numbers]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if np.isfinite(value.low) else shown[0]


def task_rows(of: Losses) -> Iterator[tuple[str, ...]]:
    """Mean losses and scores by task."""
    named = [key for key in of.by if key[1] in (None, START)]
    yield ("task", *(arm for arm, _ in named), "score")
    scored = TUNED in of.by and ("policy", START) in of.by and (of.gain >= LEAST_GAIN).any()
    scores = of.score(("policy", START))[0] if scored else np.full(len(of.tasks), np.nan)
    for t, task in enumerate(of.tasks):
        yield (task, *(f"{of.by[key][t].mean():.4g}" for key in named), f"{scores[t]:.2f}")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, [":--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Prints both tables, and writes them with --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of `pacesetter compare`")
    parser.add_argument("--split", default="test", choices=("test", "outer_valid"))
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    with (args.run / "results.csv").open(encoding="utf-8") as file:
        losses = Losses(list(csv.DictReader(file)), args.split)
    goals = markdown(("goal", "measured", args.split, "to reach"), list(criteria(losses)))
    tasks = list(task_rows(losses))
    text = f"{goals}\n\n{markdown(tasks[0], tasks[1:])}\n"
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
