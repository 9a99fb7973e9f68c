"""Summary of a comparison: every arm against the reference, and the agent against each rival.

`findings` holds what comes out; tables and figures only lay it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pacesetter.envs.actions import FloatArray
from pacesetter.experiments.analysis.findings import (
    SCORED_SPLITS,
    Difference,
    EntrySummary,
    Failure,
    Profile,
    ProfileOf,
    Ranks,
    Sensitivity,
    Summary,
    TaskEntry,
    TaskSummary,
)
from pacesetter.experiments.analysis.scores import Scores, area_under_curve, steps_to_target
from pacesetter.experiments.analysis.statistics import (
    Interval,
    critical_difference,
    friedman_p_value,
    holm,
    improvement_probabilities,
    iqm_over_runs,
    mean_ranks,
    performance_profile,
    share_interval,
)
from pacesetter.experiments.rivals.baselines import POLICY, REFERENCE
from pacesetter.experiments.runs.records import EXPLODED, Entry, RunRecord

NUM_THRESHOLDS = 101
"""Points of a performance profile."""
LEAST_LEARNED = 0.01
"""Share of the untrained loss by which some run has to end lower for a task to say anything."""
ROUNDING = 1e-10
"""Losses below this share of the untrained one are zero but for rounding."""
NORMALISED_RANGE = (-1.0, 2.0)
"""Thresholds of profiles of normalised scores."""

__all__ = ["Summary", "summarise"]


def summarise(
    records: Sequence[RunRecord],
    *,
    generator: np.random.Generator,
    labels: Mapping[str, str] | None = None,
    ours: Sequence[str] = (POLICY.name,),
    reference: str = REFERENCE,
) -> Summary:
    """Scores every arm, from one record per task, seed, arm, start and budget.

    A run that crashed counts as diverged; an arm of which all runs crashed is reported as failed
    and left out. One number is drawn from the generator, the seed of all resamples. An arm without
    a label goes by its name. `ours` are the agent's arms, compared with all others; `reference` is
    the zero of scores, without a start and of budget 1.

    Raises:
        ValueError: a run is missing or there twice, or the reference was not run.
    """
    alive = {r.entry for r in records if r.failed is None}
    entries = list(dict.fromkeys(r.entry for r in records))
    tuned_arms = {e.arm for e in entries if e.budget > 1}
    names = {e: entry_label(e, labels or {}, tuned=e.arm in tuned_arms) for e in entries}
    base = Entry(reference)
    if base not in alive:
        failed = " (all its runs failed)" if base in entries else ""
        raise ValueError(f"the reference {reference!r} is not among the arms that were run{failed}")
    scores = Scores(
        [r for r in records if r.entry in alive],
        reference=base,
        seed=int(generator.integers(2**63)),
    )
    field = _field(scores)
    profiles, profile_of = _profiles(scores, field)
    tuned = scores.ends["test"]
    return Summary(
        tasks=scores.grid.tasks,
        seeds=scores.grid.seeds,
        entries=_entries(scores, names),
        differences=_differences(scores, ours),
        reference=base,
        relative=scores.relative,
        task_summaries=_task_summaries(scores),
        field=field,
        profiles=profiles,
        profile_of=profile_of,
        ranks=_ranks(scores, field),
        sensitivity=_sensitivity(scores, labels or {}),
        failures=_failures(records, names, alive),
        doubts=_doubts(scores),
        tuned_budget=None if tuned is None else tuned.entries[0].budget,
    )


def entry_label(entry: Entry, labels: Mapping[str, str], *, tuned: bool = False) -> str:
    """The name of an entry in tables; `tuned` tells the budget even where it is 1.

    >>> entry_label(Entry("policy", 1e-3), {"policy": "the policy"})
    'the policy from 0.001'
    >>> entry_label(Entry("adamw-cosine", budget=20), {}, tuned=True)
    'adamw-cosine (20 trials)'
    """
    label = labels.get(entry.arm, entry.arm)
    if entry.start_lr is not None:
        return f"{label} from {entry.start_lr:g}"
    if tuned or entry.budget > 1:
        return f"{label} ({entry.budget} trial{'s' * (entry.budget > 1)})"
    return label


def _entries(scores: Scores, names: Mapping[Entry, str]) -> tuple[EntrySummary, ...]:
    grid, base, both = scores.grid, scores.base, scores.resamples()
    best = None
    if all("outer_valid" in r.best or r.failed is not None for r in grid.records):
        best = scores.against_base(grid.array(lambda r: r.best.get("outer_valid", np.nan)))
    area = area_under_curve(grid)
    area = None if area is None else scores.against_base(area)
    steps = steps_to_target(grid, reference=scores.reference)
    corrected = {split: _corrected(scores, split) for split in SCORED_SPLITS}
    found = []
    for i, entry in enumerate(grid.entries):
        runs = [r for task in grid.tasks for r in grid.of(entry, task)]
        relative = {s: scores.values[s][i] - scores.values[s][base] for s in SCORED_SPLITS}
        normal = {s: x[i] for s, x in scores.normalised.items() if x.shape[1]}
        found.append(
            EntrySummary(
                entry=entry,
                label=names[entry],
                scores={s: both.interval(x) for s, x in relative.items()},
                iqm={s: both.interval(x, iqm_over_runs) for s, x in relative.items()},
                p_values={s: corrected[s][i] for s in SCORED_SPLITS},
                normalised={
                    s: scores.resamples(len(x)).interval(x, iqm_over_runs)
                    for s, x in normal.items()
                },
                best=None if best is None else both.interval(best[i]),
                area=None if area is None else both.interval(area[i]),
                steps_to_target=(
                    None if steps is None else both.interval(np.nan_to_num(steps[i], nan=1.0))
                ),
                reached=None if steps is None else share_interval(np.isfinite(steps[i]), both),
                metrics=_metrics(scores, i),
                overhead=scores.overhead(i, base),
                trials=float(np.mean([r.trials for r in runs])),
                inner_steps=_inner_steps(scores, entry),
                diverged=sum(r.diverged or r.failed is not None for r in runs),
                num_runs=len(runs),
                failed=sum(r.failed is not None for r in runs),
            )
        )
    return tuple(found)


def _corrected(scores: Scores, split: str) -> list[float]:
    values, base = scores.values[split], scores.base
    others = [i for i in range(len(values)) if i != base]
    samples = scores.resamples().means(values - values[base])
    p_values = holm([scores.p_value(samples[i]) for i in others])
    corrected = dict(zip(others, p_values, strict=True))
    return [corrected.get(i, 1.0) for i in range(len(values))]


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
        starts = (None, mine.start_lr)
        rivals = [j for j, r in enumerate(grid.entries) if j != i and r.start_lr in starts]
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
        reason = r.failed or r.exploded
        if reason is None:
            continue
        first = Failure(
            entry=r.entry,
            label=names[r.entry],
            task=r.task,
            runs=0,
            reason=reason,
            left_out=r.entry not in alive,
        )
        old = found.get((r.entry, r.task), first)
        found[r.entry, r.task] = replace(old, runs=old.runs + 1)
    return tuple(found.values())


def _doubts(scores: Scores) -> tuple[str, ...]:
    """Tasks whose losses say little or nothing about schedules, a sentence each."""
    found = []
    for t, task in enumerate(scores.grid.tasks):
        test, valid = (scores.losses[split][:, t] for split in ("test", "outer_valid"))
        start, least = scores.grid.untrained[t], min(test[np.isfinite(test)], default=np.nan)
        doubts = {
            "all runs of all arms diverged": np.isnan(least),
            f"no run ended with an outer-valid loss clearly below the untrained one, {start:.4g}, "
            "so that nothing is learned there, or not in so few steps": not (
                valid < start - LEAST_LEARNED * abs(start)
            ).any(),
            "all runs of the reference diverged": np.isnan(test[scores.base]).all(),
            f"test losses as low as {least:.2g} are zero but for rounding": (
                0 <= least < ROUNDING * start
            ),
            f"its loss has no bound below, and fell to {least:.2g}": (
                least < -EXPLODED * max(abs(start), 1.0)
            ),
        }
        found += [f"{task} cannot be judged: {why}." for why, holds in doubts.items() if holds][:1]
    return tuple(found)


def _reference_lr(scores: Scores) -> float:
    return scores.grid.of(scores.reference, scores.grid.tasks[0])[0].lr


def _field(scores: Scores) -> tuple[Entry, ...]:
    """One entry per arm: at its largest budget, from the start nearest to the reference's rate."""
    lr = _reference_lr(scores)

    def preference(entry: Entry) -> tuple[int, float]:
        far = 0.0 if entry.start_lr is None else 1.0 + abs(np.log(entry.start_lr / lr))
        return -entry.budget, far

    arms: dict[str, list[Entry]] = {}
    for entry in scores.grid.entries:
        arms.setdefault(entry.arm, []).append(entry)
    return tuple(min(several, key=preference) for several in arms.values())


def _profiles(scores: Scores, field: Sequence[Entry]) -> tuple[dict[Entry, Profile], ProfileOf]:
    """Performance profiles on test: of normalised scores where there are any."""
    rows = [scores.grid.entries.index(entry) for entry in field]
    normalised = scores.normalised.get("test")
    name: ProfileOf
    if normalised is not None and normalised.shape[1]:
        values, name = normalised[rows], "normalised score"
        thresholds = np.linspace(*NORMALISED_RANGE, NUM_THRESHOLDS)
    else:
        values = scores.values["test"][scores.base] - scores.values["test"][rows]
        name = "log(reference's test loss / loss)"
        low, high = np.quantile(values, (0.01, 0.99))
        thresholds = np.linspace(low - 0.1, high + 0.1, NUM_THRESHOLDS)
    resamples = scores.resamples(values.shape[1])
    found = {}
    for entry, runs in zip(field, values, strict=True):
        share, low, high = performance_profile(runs, thresholds, resamples=resamples)
        found[entry] = Profile(thresholds=thresholds, share=share, low=low, high=high)
    return found, name


def _ranks(scores: Scores, field: Sequence[Entry]) -> Ranks | None:
    num_tasks = len(scores.grid.tasks)
    if num_tasks < 2 or len(field) < 3:
        return None
    values = scores.values["test"][[scores.grid.entries.index(entry) for entry in field]]
    losses = values.mean(axis=-1)
    ranks = mean_ranks(losses)
    resamples = scores.resamples()
    samples = mean_ranks(np.array([resamples.of(runs).mean(axis=-1) for runs in values]))
    return Ranks(
        ranks={
            field[i]: resamples.around(float(ranks[i]), samples[i])
            for i in np.argsort(ranks, kind="stable")
        },
        friedman_p=friedman_p_value(losses),
        critical_difference=critical_difference(len(field), num_tasks),
    )


def _sensitivity(scores: Scores, labels: Mapping[str, str]) -> tuple[Sensitivity, ...]:
    """Scores by start, of arms that were run from several.

    An arm's run at its default, which has no start, counts as a start at its learning rate.
    """
    grid, lr = scores.grid, _reference_lr(scores)
    starts: dict[str, dict[float, int]] = {}
    for row, entry in enumerate(grid.entries):
        if entry.start_lr is not None:
            starts.setdefault(entry.arm, {})[entry.start_lr] = row
    for row, entry in enumerate(grid.entries):
        if entry.start_lr is None and entry.budget == 1 and entry.arm in starts:
            starts[entry.arm].setdefault(grid.of(entry, grid.tasks[0])[0].lr, row)
    found = []
    values, resamples = scores.values["test"], scores.resamples()
    for arm, rows in starts.items():
        if len(rows) < 2:
            continue
        start_lrs = sorted(rows)
        relative = values[[rows[start] for start in start_lrs]] - values[scores.base]
        means, samples = relative.mean(axis=(1, 2)), resamples.means(relative)
        found.append(
            Sensitivity(
                arm=arm,
                label=labels.get(arm, arm),
                start_lrs=tuple(start_lrs),
                factors=tuple(start / lr for start in start_lrs),
                scores=tuple(resamples.interval(runs) for runs in relative),
                penalty=resamples.around(
                    float(means.mean() - means.min()), samples.mean(axis=0) - samples.min(axis=0)
                ),
            )
        )
    return tuple(found)


def _task_summaries(scores: Scores) -> tuple[TaskSummary, ...]:
    grid, ends = scores.grid, scores.ends["test"]
    found = []
    for t, task in enumerate(grid.tasks):
        entries = {entry: _task_entry(scores, e, t) for e, entry in enumerate(grid.entries)}
        order = sorted(entries, key=lambda entry: entries[entry].score.estimate)
        default = scores.losses["test"][scores.base, t]
        found.append(
            TaskSummary(
                name=task,
                horizon=grid.horizon(task),
                metric_name=scores.metric_name(task),
                default=float(default.mean() if ends is None else ends.default[t]),
                tuned=None if ends is None else float(ends.tuned[t]),
                tuned_entry=None if ends is None else ends.entries[t],
                gain=None if ends is None else float(ends.gain[t]),
                counts=ends is not None and bool(ends.counts[t]),
                entries={entry: entries[entry] for entry in order},
            )
        )
    return tuple(found)


def _task_entry(scores: Scores, row: int, t: int) -> TaskEntry:
    def over_seeds(values: FloatArray) -> Interval:
        return scores.resamples(1, len(values)).interval(values[None])

    losses = scores.losses["test"][row, t]
    runs = scores.grid.of(scores.grid.entries[row], scores.grid.tasks[t])
    broken = np.array([r.diverged or r.failed is not None for r in runs])
    sound = np.isfinite(losses) & ~broken
    metric = None
    for values, tasks in scores.metrics.values():
        if t in tasks and sound.any() and np.isfinite(values[row, t][sound]).all():
            metric = over_seeds(values[row, t][sound])
    ends = scores.ends["test"]
    normalised = None
    if ends is not None and ends.counts[t]:
        place = int(ends.counts[:t].sum())
        normalised = over_seeds(scores.normalised["test"][row, place])
    values = scores.values["test"]
    return TaskEntry(
        loss=over_seeds(losses[sound]) if sound.any() else None,
        metric=metric,
        score=over_seeds(values[row, t] - values[scores.base, t]),
        normalised=normalised,
        diverged=int(broken.sum()),
        num_runs=len(runs),
    )
