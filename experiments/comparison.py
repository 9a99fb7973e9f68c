"""The comparison of a policy with hand-written schedules: same tasks, same seeds, tuned rivals.

Baselines choose their settings by the outer-valid loss on seeds of their own; then every arm runs
on the report's seeds, paired in initial weights and batch order; only then, once per run, is the
test split read. Every piece of work is written when it is over, so that a stop loses little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pacesetter.agent.policy.policy import Policy, load_policy
from pacesetter.agent.runs.folder import claim_folder, write_json, write_text
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.agent.training.engines import RayEngine
from pacesetter.experiments.analysis.summary import Summary, summarise
from pacesetter.experiments.compare_config import TUNING_SEEDS, CompareConfig, named_task
from pacesetter.experiments.own_job import check_task, own_task
from pacesetter.experiments.report.html import Report, write_report
from pacesetter.experiments.report.text import format_latex, format_markdown, format_summary
from pacesetter.experiments.rivals.arms import Arm, Baseline
from pacesetter.experiments.rivals.baselines import (
    BASELINES,
    POLICY,
    REFERENCE,
    all_arms,
    check_arms,
)
from pacesetter.experiments.runs.execution import check_device, describe_environment, opened
from pacesetter.experiments.runs.matrix import Plan, slug
from pacesetter.experiments.runs.records import RunRecord, mark_exploded, write_csv
from pacesetter.experiments.runs.stages import Clock, Stages
from pacesetter.experiments.tuning import Searches
from pacesetter.inner_models.engine.host import prepare_process
from pacesetter.inner_models.lookup import require
from pacesetter.inner_models.registry import META_TRAIN, family_names, make_family
from pacesetter.inner_models.task import Task, TaskFamily

__all__ = ["CompareConfig", "Comparison", "compare"]

TITLE = "pacesetter against hand-written schedules"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: every run, what they say, and the table as text."""

    records: tuple[RunRecord, ...]
    summary: Summary
    table: str


def compare(
    config: CompareConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    latex: bool = False,
    command: str | None = None,
    policy: Policy | None = None,
    tasks: Sequence[Task] | None = None,
    families: Sequence[TaskFamily] | None = None,
    baselines: Sequence[Baseline] = BASELINES,
    engine: RayEngine | None = None,
) -> Comparison:
    """Runs the comparison; writes ``results.csv``, ``table.txt``, ``table.md``, ``report.html``.

    The figures of the report are in ``figures``, searches in ``studies.db``, all runs in ``tasks``.
    ``data.json`` has a digest of each task's data: texts that ship with Python vary by version.
    Two settings of this process are made first, which stay: see
    `pacesetter.inner_models.engine.host.prepare_process`.

    Args:
        config: what to compare.
        out: the folder, new or empty; or that of a comparison to go on with.
        resume: go on with the comparison in `out`; finished work is not done again.
        progress: show how far it is.
        latex: write ``table.tex`` as well.
        command: the command line that asked for it, for the report.
        policy: used instead of the file that `config` names.
        tasks: used instead of those that `config` names; one's own, say. Names must differ.
        families: meta-train families of the open-loop replay; default: those that the policy
            learned on, as far as they are bundled.
        baselines: the rows to choose arms from.
        engine: spreads the work over a Ray cluster; None: over `CompareConfig.jobs` processes.

    Raises:
        FileExistsError: `out` holds something and `resume` is off.
        FileNotFoundError: there is no such policy, nothing to go on with, or image files that
            tasks need are missing.
        ImportError: a package that comes with the extra `compare` is missing.
        ValueError: unknown arms, tasks or device, a damaged image file, a task that cannot be
            compared on, `out` holds another comparison, or all runs of the reference crashed.
    """
    prepare_process()
    check_arms(config.arms, baselines)
    if engine is None:
        check_device(config.device)
    else:
        engine.check_device(config.device)
    for module in ("matplotlib.figure", "optuna", "scipy.stats", "tqdm"):
        require(module, extra="compare")
    if tasks is None:
        own = [own_task(s, seed=config.seed, steps=config.steps) for s in config.own_tasks]
        tasks = [*own, *(named_task(name, config.data) for name in config.tasks)]
    if not tasks or len({slug(task.name) for task in tasks}) < len(tasks):
        raise ValueError(f"need tasks with names that differ, but got {[t.name for t in tasks]}")
    for task in tasks:
        check_task(task)
    chosen = tuple(b for b in baselines if b.name in config.arms or b.name == REFERENCE)
    plan = Plan(config=config, policy=policy or load_policy(config.policy), baselines=chosen)
    digests = {task.name: task.splits.digest() for task in tasks}
    settings = {
        **config.deciding(),
        "arms": sorted(plan.arms),
        "tasks": [task.name for task in tasks],
        "policy": plan.policy.digest,
        "spaces": {b.name: repr(dict(b.space.dimensions)) for b in plan.baselines},
        "data": {name: digest[:12] for name, digest in digests.items()},
    }
    claim_folder(out, kind="compare", settings=settings, resume=resume)
    write_json(out / "data.json", digests)

    known = [name for name in plan.policy.info.families if name in family_names()]
    learned_on = families or [make_family(name) for name in known or META_TRAIN]
    clock = Clock(out / "seconds.json")
    total = Stages.count(plan, len(tasks))
    with (
        opened(jobs=config.jobs, engine=engine) as execution,
        progress_bar("comparison", total=total, unit="stages", shown=progress) as bar,
    ):
        records, searches = Stages(
            plan=plan,
            tasks=tasks,
            families=learned_on,
            execution=execution,
            out=out,
            clock=clock,
            bar=bar,
        ).done()
    notes = [*_notes(plan), *_edge_notes(searches)]
    if config.quick:
        notes.append("A quick look: few tasks, arms, seeds and trials. Hints, and no findings.")
    notes.append(f"It took {clock.seconds / 3600:.2f} hours.")
    records = mark_exploded(records)
    write_csv(out / "results.csv", records)
    base = [r.failed for r in records if r.arm == REFERENCE]
    if None not in base:
        raise ValueError(
            f"all runs of {REFERENCE!r}, against which all arms are held, crashed: {base[0]}. "
            "results.csv has the others"
        )
    found = reported(
        records,
        out,
        title=TITLE,
        arms=[arm for arm in all_arms(baselines) if arm.name in plan.arms],
        notes=notes,
        seed=config.seed,
        device=config.device,
        command=command or f"pacesetter.experiments.comparison.compare({config!r}, {str(out)!r})",
    )
    write_text(out / "table.md", format_markdown(found.summary) + "\n")
    if latex:
        write_text(out / "table.tex", format_latex(found.summary) + "\n")
    return found


def reported(
    records: Sequence[RunRecord],
    out: Path,
    *,
    title: str,
    arms: Sequence[Arm],
    notes: Sequence[str],
    seed: int,
    device: str,
    command: str,
    ours: tuple[str, ...] = (POLICY.name,),
) -> Comparison:
    """Sums up runs, and writes ``table.txt`` and ``report.html``; arguments as in `Report`."""
    summary = summarise(
        records,
        generator=np.random.default_rng(seed),
        labels={arm.name: arm.label for arm in arms},
        ours=ours,
    )
    table = format_summary(summary)
    write_text(out / "table.txt", table + "\n")
    report = Report(
        title=title,
        summary=summary,
        records=tuple(records),
        arms=arms,
        notes=[*summary.doubts, *notes],
        environment=describe_environment(device),
        command=command,
        ours=ours,
    )
    write_report(out / "report.html", report)
    return Comparison(tuple(records), summary, table)


def _notes(plan: Plan) -> list[str]:
    config, info = plan.config, plan.policy.info
    several = ", ".join(map(str, config.budgets[:-1]))
    trials = f"{several} and {config.trials} trials" if several else "one trial, its default"
    return [
        "Baselines do not clip gradients, except adamw-pooled; the agent sets a clip threshold. "
        "beta2 and eps of AdamW are the task's own in every AdamW arm.",
        f"Tuned arms chose among {trials} per task, the default first, then quasi-random ones, "
        f"then Optuna's TPE, by the mean outer-valid loss over {len(TUNING_SEEDS)} seeds that this "
        "report does not use. The test split was read once per run, at its end.",
        f"Policy {plan.policy.digest[:12]}: preset {info.preset}, seed {info.seed}, "
        f"{info.decisions:,} decisions, learned on {', '.join(info.families) or 'nothing named'}.",
    ]


def _edge_notes(searches: Searches) -> list[str]:
    texts = {
        "widened": "The best setting lay on an edge of what was searched, which was widened for "
        "the trials that were left",
        "on_edge": "The best setting still lay on an edge at the end",
    }
    notes = []
    for attribute, text in texts.items():
        named = [
            f"{arm} on {task} ({', '.join(getattr(search, attribute))})"
            for task, found in searches.items()
            for arm, search in found.items()
            if getattr(search, attribute)
        ]
        notes += [f"{text}: {'; '.join(named)}."] if named else []
    return notes
