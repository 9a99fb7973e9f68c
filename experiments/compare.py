"""Holds a policy against hand-written schedules: same tasks, same seeds, tuned rivals.

The order of things keeps the comparison honest. Baselines choose their learning rate by the
outer-valid loss on seeds of their own; then every arm runs on the report's seeds, paired in
initial weights and batch order; only then, once per run, is the test split read. Each task's
results are written when it is done, so that a comparison that was stopped goes on from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pacesetter.agent.policy import Policy, load_policy
from pacesetter.agent.run_folder import claim_folder, write_json, write_text
from pacesetter.experiments.arm_runs import Plan, strict_records, strict_replays, task_records
from pacesetter.experiments.baselines import (
    BASELINES,
    OPEN_LOOP,
    REFERENCE,
    STRICT,
    Baseline,
    all_arms,
    arm_labels,
    arm_names,
    check_arms,
)
from pacesetter.experiments.calibration import calibrated_lrs
from pacesetter.experiments.environment import check_device, describe_environment
from pacesetter.experiments.records import RunRecord, read_records, write_csv, write_records
from pacesetter.experiments.replay import Replay, meta_train_replay
from pacesetter.experiments.report import Report, write_report
from pacesetter.experiments.summary import Summary, summarise
from pacesetter.experiments.tables import format_summary
from pacesetter.experiments.tasks import named_task, task_names
from pacesetter.experiments.tuning import TUNING_SEEDS, Tuned, read_tuned, tune, write_tuned
from pacesetter.inner_models.extras import require
from pacesetter.inner_models.registry import META_TRAIN, family_names, make_family
from pacesetter.inner_models.task import Task, TaskFamily


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What decides the result of a comparison.

    Attributes:
        policy: file, or ``"default"`` for the shipped one.
        tasks: names of fixed tasks.
        arms: names of arms; the reference is always run.
        num_seeds: seeds of the report, 0 to ``num_seeds - 1``, on every task.
        start_lrs: learning rates from which the agent starts, one run each.
        replay_tasks: meta-train tasks whose mean schedule the open-loop replay plays back.
        seed: of these tasks and of the bootstrap.
        device: where the runs live.
        data: folder of the image files that tasks on MNIST, Fashion-MNIST and CIFAR-10 read; None:
            the one that the environment variable ``PACESETTER_DATA`` names.
    """

    policy: str = "default"
    tasks: tuple[str, ...] = task_names()
    arms: tuple[str, ...] = arm_names()
    num_seeds: int = 5
    start_lrs: tuple[float, ...] = (1e-3,)
    replay_tasks: int = 64
    seed: int = 0
    device: str = "cpu"
    data: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_seeds <= min(TUNING_SEEDS):
            raise ValueError(f"num_seeds must be positive, but got {self.num_seeds}")
        if not self.start_lrs or any(not 0 < lr < float("inf") for lr in self.start_lrs):
            raise ValueError(f"start_lrs must be positive numbers, but got {self.start_lrs}")
        for name in ("tasks", "arms", "start_lrs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each only once, but got {values}")
        if self.replay_tasks < 1:
            raise ValueError(f"replay_tasks must be positive, but got {self.replay_tasks}")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        records: every run.
        summary: what they say.
        table: the same as text.
    """

    records: tuple[RunRecord, ...]
    summary: Summary
    table: str


def compare(
    config: CompareConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    command: str | None = None,
    policy: Policy | None = None,
    tasks: Sequence[Task] | None = None,
    families: Sequence[TaskFamily] | None = None,
    baselines: Sequence[Baseline] = BASELINES,
) -> Comparison:
    """Runs the comparison; writes ``results.csv``, ``table.txt``, ``report.html``, ``scores.svg``.

    ``data.json`` has a digest of each task's data: texts that ship with Python vary by version.

    Args:
        config: what to compare.
        out: the folder, new or empty; or that of a comparison to go on with.
        resume: go on with the comparison in `out`; finished tasks are not run again.
        progress: show a progress bar.
        command: the command line that asked for it, for the report.
        policy: used instead of the file that `config` names.
        tasks: used instead of those that `config` names; one's own, say. Names must differ.
        families: meta-train families of the open-loop replay; default: those that the policy
            learned on, as far as they are bundled.
        baselines: the rows to choose arms from.

    Raises:
        FileExistsError: `out` holds something and `resume` is off.
        FileNotFoundError: there is no such policy, nothing to go on with, or image files that
            tasks need are missing.
        ImportError: a package that comes with the extra `compare` is missing.
        ValueError: unknown arms, tasks or device, a damaged image file, or `out` holds another
            comparison.
    """
    check_arms(config.arms, baselines)
    check_device(config.device)
    bar_type = require("tqdm", extra="compare").tqdm
    require("matplotlib.figure", extra="compare")
    tasks = (
        [named_task(name, config.data) for name in config.tasks] if tasks is None else list(tasks)
    )
    plan = _plan(config, policy or load_policy(config.policy), baselines)
    slugs = _slugs(tasks)
    settings = {
        **asdict(config),
        "arms": sorted(plan.arms),
        "tasks": [task.name for task in tasks],
        "policy": plan.policy.digest,
        "fixed_lrs": dict(plan.fixed_lrs),
        "grids": {b.name: list(b.lrs) for b in plan.baselines if b.tuned},
    }
    claim_folder(out, kind="compare", settings=settings, resume=resume)
    write_json(out / "data.json", {task.name: task.splits.digest() for task in tasks})

    records: list[RunRecord] = []
    widened: list[str] = []
    with bar_type(total=2 * len(tasks) + 2, unit="stage", disable=not progress) as bar:
        bar.set_description("the policy's mean schedule")
        known = [name for name in plan.policy.info.families if name in family_names()]
        learned_on = families or [make_family(name) for name in known or META_TRAIN]
        replay = _replay(config, plan, out / "replay.json", learned_on)
        bar.update()
        for task, slug in zip(tasks, slugs, strict=True):
            bar.set_description(f"{task.name}, tuning")
            tuned = _tuned(task, plan, out / "tuning" / f"{slug}.json")
            widened += [f"{name} on {task.name}" for name, t in tuned.items() if t.widened]
            bar.update()
            bar.set_description(f"{task.name}, all arms")
            path = out / "tasks" / f"{slug}.json"
            if not path.is_file():
                write_records(path, task_records(task, plan, tuned=tuned, replay=replay))
            records += read_records(path)
            bar.update()
        if STRICT.name in plan.arms:
            bar.set_description("strict replay")
            replays = strict_replays(records, plan)
            for task, slug in zip(tasks, slugs, strict=True):
                path = out / "strict" / f"{slug}.json"
                if not path.is_file():
                    write_records(path, strict_records(task, plan, replays))
                records += read_records(path)
        bar.update()

    summary = summarise(
        records,
        generator=np.random.default_rng(config.seed),
        labels=arm_labels(baselines),
    )
    table = format_summary(summary)
    write_csv(out / "results.csv", records)
    write_text(out / "table.txt", table + "\n")
    report = Report(
        title="pacesetter against hand-written schedules",
        summary=summary,
        records=tuple(records),
        arms=[arm for arm in all_arms(baselines) if arm.name in plan.arms],
        notes=_notes(plan, widened),
        environment=describe_environment(plan.device),
        command=command or f"pacesetter.experiments.compare.compare({config!r}, {str(out)!r})",
    )
    write_report(out / "report.html", report)
    return Comparison(tuple(records), summary, table)


def _plan(config: CompareConfig, policy: Policy, baselines: Sequence[Baseline]) -> Plan:
    chosen = tuple(b for b in baselines if b.name in config.arms or b.name == REFERENCE)
    fixed = {b.name: b.lrs[0] for b in chosen if len(b.lrs) == 1}
    if any(b.calibrated for b in chosen):
        stored = calibrated_lrs()
        missing = [b.name for b in chosen if b.calibrated and b.name not in stored]
        if missing:
            raise ValueError(
                f"no calibrated learning rate is stored for {', '.join(missing)}; make it with: "
                "python -m pacesetter.experiments.calibration"
            )
        fixed |= {b.name: stored[b.name] for b in chosen if b.calibrated}
    return Plan(
        arms=tuple(dict.fromkeys((*config.arms, REFERENCE))),
        baselines=chosen,
        fixed_lrs=fixed,
        policy=policy,
        start_lrs=config.start_lrs,
        seeds=tuple(range(config.num_seeds)),
        device=config.device,
    )


def _slugs(tasks: Sequence[Task]) -> list[str]:
    """File names of the tasks."""
    slugs = [re.sub(r"[^\w.-]+", "_", task.name) for task in tasks]
    if not tasks or len(set(slugs)) < len(slugs):
        raise ValueError(f"need tasks with names that differ, but got {[t.name for t in tasks]}")
    return slugs


def _replay(
    config: CompareConfig, plan: Plan, path: Path, families: Sequence[TaskFamily]
) -> Replay | None:
    """The open-loop replay, where it is among the arms: kept in a file, or made anew."""
    if OPEN_LOOP.name not in plan.arms:
        return None
    if not path.is_file():
        found = meta_train_replay(
            plan.policy,
            families,
            num_tasks=config.replay_tasks,
            generator=torch.Generator().manual_seed(config.seed),
            device=plan.device,
        )
        write_json(path, found.mean.tolist())
    mean = np.array(json.loads(path.read_text(encoding="utf-8")))
    return Replay(mean, plan.policy.control)


def _tuned(task: Task, plan: Plan, path: Path) -> dict[str, Tuned]:
    """What tuning found on a task: kept in a file, or found anew."""
    if not path.is_file():
        baselines = [b for b in plan.baselines if b.tuned]
        write_tuned(path, tune(task, baselines, device=plan.device))
    return read_tuned(path)


def _notes(plan: Plan, widened: Sequence[str]) -> tuple[str, ...]:
    info = plan.policy.info
    notes = [
        "Baselines never clip gradients; the agent sets a clip threshold. Weight decay, beta2 and "
        "eps of AdamW are the task's own in every AdamW arm.",
        f"Tuned arms chose from a grid by the mean outer-valid loss over {len(TUNING_SEEDS)} "
        "seeds that this report does not use. The test split was read once per run, at its end.",
        f"Policy {plan.policy.digest[:12]}: preset {info.preset}, seed {info.seed}, "
        f"{info.decisions:,} decisions, learned on {', '.join(info.families) or 'nothing named'}.",
    ]
    if widened:
        notes.append(
            "The best of the grid lay on its edge, so that it was widened by decades: "
            f"{'; '.join(widened)}."
        )
    return tuple(notes)
