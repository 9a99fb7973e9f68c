"""From records of runs to what they say: every arm against the reference, the agent against each.

Pure computation; `findings` says what comes out, tables and figures only lay it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pacesetter.experiments.analysis.field_summary import (
    field_of,
    profiles_of,
    ranks_of,
    sensitivity_of,
    task_summaries,
)
from pacesetter.experiments.analysis.findings import (
    SCORED_SPLITS,
    Difference,
    EntrySummary,
    Summary,
)
from pacesetter.experiments.analysis.metrics import area_under_curve, time_to_target
from pacesetter.experiments.analysis.ranking import holm, improvement_probabilities
from pacesetter.experiments.analysis.scores import Scores, share_interval
from pacesetter.experiments.analysis.statistics import Interval, iqm_over_runs
from pacesetter.experiments.analysis.task_findings import Failure
from pacesetter.experiments.analysis.wording import entry_label
from pacesetter.experiments.rivals.baselines import POLICY, REFERENCE
from pacesetter.experiments.runs.records import Entry, RunRecord

FloatArray = NDArray[np.float64]

__all__ = ["Summary", "summarise"]


def summarise(
    records: Sequence[RunRecord],
    *,
    generator: np.random.Generator,
    labels: Mapping[str, str] | None = None,
    ours: Sequence[str] = (POLICY.name,),
    reference: str = REFERENCE,
) -> Summary:
    """Scores every arm.

    Args:
        records: one per task, seed, arm, start and budget; none missing. A run that crashed counts
            as diverged; an arm of which all runs crashed is reported as failed and left out.
        generator: of the bootstrap. One number is drawn from it, the seed of all resamples: of
            `Resamples.draw` for as many tasks and seeds as a figure is about.
        labels: by name of the arm; an arm without one goes by its name.
        ours: names of the agent's arms, held against all others.
        reference: name of the arm that scores are relative to; it has no start and budget 1.

    Raises:
        ValueError: a run is missing or there twice, or the reference was not run.
    """
    alive = {r.entry for r in records if r.failed is None}
    entries = list(dict.fromkeys(r.entry for r in records))
    budgets: dict[str, int] = {}
    for entry in entries:
        budgets[entry.arm] = max(entry.budget, budgets.get(entry.arm, 1))
    names = {e: entry_label(e, labels or {}, tuned=budgets[e.arm] > 1) for e in entries}
    base = Entry(reference)
    if base not in alive:
        failed = " (all its runs failed)" if base in entries else ""
        raise ValueError(f"the reference {reference!r} is not among the arms that were run{failed}")
    scores = Scores(
        [r for r in records if r.entry in alive],
        reference=base,
        seed=int(generator.integers(2**63)),
    )
    grid = scores.grid
    field = field_of(scores)
    profiles, profile_of = profiles_of(scores, field)
    tuned = scores.ends["test"]
    return Summary(
        tasks=grid.tasks,
        seeds=grid.seeds,
        entries=_entries(scores, names),
        differences=_differences(scores, ours),
        reference=base,
        relative=scores.relative,
        task_summaries=task_summaries(scores),
        field=field,
        profiles=profiles,
        profile_of=profile_of,
        ranks=ranks_of(scores, field),
        sensitivity=sensitivity_of(scores, labels or {}),
        failures=_failures(records, names, alive),
        tuned_budget=None if tuned is None else tuned.entries[0].budget,
    )


def _entries(scores: Scores, names: Mapping[Entry, str]) -> tuple[EntrySummary, ...]:
    grid, base = scores.grid, scores.base
    both, seeds = scores.resamples(), scores.resamples(over_tasks=False)
    best, wall = scores.best, scores.wall
    area = area_under_curve(grid)
    area = None if area is None else scores.against_base(area)
    target = time_to_target(grid, reference=scores.reference)
    corrected = {split: _corrected(scores, split) for split in SCORED_SPLITS}
    regret = _regrets(scores)
    found = []
    for i, entry in enumerate(grid.entries):
        runs = [r for task in grid.tasks for r in grid.of(entry, task)]
        relative = {s: scores.values[s][i] - scores.values[s][base] for s in SCORED_SPLITS}
        normal = {s: x[i] for s, x in scores.normalised.items() if x.shape[1]}
        normal_resamples = {s: scores.resamples(x.shape[0]) for s, x in normal.items()}
        broken = np.array(
            [[r.diverged or r.failed is not None for r in grid.of(entry, t)] for t in grid.tasks]
        )
        seconds_known = target is not None and np.isfinite(target.seconds[i]).all()
        found.append(
            EntrySummary(
                entry=entry,
                label=names[entry],
                scores={s: both.interval(x) for s, x in relative.items()},
                seed_scores={s: seeds.interval(x) for s, x in relative.items()},
                iqm={s: both.interval(x, iqm_over_runs) for s, x in relative.items()},
                p_values={s: corrected[s][i] for s in SCORED_SPLITS},
                normalised={
                    s: normal_resamples[s].interval(x, iqm_over_runs) for s, x in normal.items()
                },
                normalised_mean={s: normal_resamples[s].interval(x) for s, x in normal.items()},
                best=None if best is None else both.interval(best[i]),
                area=None if area is None else both.interval(area[i]),
                steps_to_target=None if target is None else both.interval(target.steps[i]),
                seconds_to_target=(
                    both.interval(target.seconds[i]) if target and seconds_known else None
                ),
                reached=None if target is None else share_interval(target.reached[i], both),
                metrics=_metrics(scores, i),
                regret=regret[i][0],
                worst_task=regret[i][1],
                seconds=float(wall[i].mean()),
                overhead=scores.overhead(i, base),
                trials=float(np.mean([r.trials for r in runs])),
                inner_steps=_inner_steps(scores, entry),
                diverged=int(broken.sum()),
                diverged_share=share_interval(broken, both),
                num_runs=len(runs),
                failed=sum(r.failed is not None for r in runs),
            )
        )
    return tuple(found)


def _corrected(scores: Scores, split: str) -> list[float]:
    """Of every entry against the reference, Holm's p-values; the reference's own is 1."""
    values, base = scores.values[split], scores.base
    others = [i for i in range(len(values)) if i != base]
    samples = scores.resamples().means(values - values[base])
    found = [1.0] * len(values)
    p_values = holm([scores.p_value(samples[i]) for i in others])
    for i, p_value in zip(others, p_values, strict=True):
        found[i] = p_value
    return found


def _regrets(scores: Scores) -> list[tuple[Interval, str]]:
    """Of every entry, the largest mean distance on a task from the arm that is best there.

    The interval is of that distance on that task; resampled maxima would lie above it throughout.
    """
    values, resamples = scores.values["test"], scores.resamples(1)
    means = values.mean(axis=-1)
    best = means.argmin(axis=0)
    found = []
    for row, regret in enumerate(means - means.min(axis=0)):
        worst = int(regret.argmax())
        gap = values[row, worst] - values[best[worst], worst]
        found.append((resamples.interval(gap[None]), scores.grid.tasks[worst]))
    return found


def _metrics(scores: Scores, row: int) -> dict[str, Interval]:
    """Differences of task metrics from the reference's; none where a run has lost its metric."""
    found = {}
    for name, (values, tasks) in scores.metrics.items():
        difference = values[row][tasks] - values[scores.base][tasks]
        if np.isfinite(difference).all():
            found[name] = scores.resamples(len(tasks)).interval(difference)
    return found


def _differences(scores: Scores, ours: Sequence[str]) -> tuple[Difference, ...]:
    grid, resamples = scores.grid, scores.resamples()
    found: list[Difference] = []
    for i, mine in enumerate(grid.entries):
        if mine.arm not in ours:
            continue
        rivals = [
            j
            for j, rival in enumerate(grid.entries)
            if j != i and rival.start_lr in (None, mine.start_lr)
        ]
        if not rivals:
            continue
        gaps = {s: x[i] - x[rivals] for s, x in scores.values.items()}
        p_values = {
            s: holm([scores.p_value(sample) for sample in resamples.means(gap)])
            for s, gap in gaps.items()
        }
        test = scores.values["test"]
        chances = improvement_probabilities(test[i], test[rivals], resamples=resamples)
        found += [
            Difference(
                ours=mine,
                rival=grid.entries[j],
                scores={s: resamples.interval(gap[n]) for s, gap in gaps.items()},
                p_values={s: p[n] for s, p in p_values.items()},
                improvement=chances[n],
                overhead=scores.overhead(i, j),
            )
            for n, j in enumerate(rivals)
        ]
    return tuple(found)


def _inner_steps(scores: Scores, entry: Entry) -> int:
    """Inner steps of all runs, with each task's tuning, which its seeds share, counted once."""
    total = 0
    for task in scores.grid.tasks:
        horizon, runs = scores.grid.horizon(task), scores.grid.of(entry, task)
        tuning = max(r.inner_steps - horizon for r in runs)
        total += max(tuning, 0) + horizon * len(runs)
    return total


def _failures(
    records: Sequence[RunRecord], names: Mapping[Entry, str], alive: set[Entry]
) -> tuple[Failure, ...]:
    found: dict[tuple[Entry, str], Failure] = {}
    for r in records:
        if r.failed is None:
            continue
        key = (r.entry, r.task)
        old = found.get(key)
        found[key] = (
            Failure(
                entry=r.entry,
                label=names[r.entry],
                task=r.task,
                runs=1,
                reason=r.failed,
                left_out=r.entry not in alive,
            )
            if old is None
            else replace(old, runs=old.runs + 1)
        )
    return tuple(found.values())
