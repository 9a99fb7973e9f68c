"""The work of a comparison: what has to be done, where it is kept, and doing it one by one here.

`spread_work` does the same on a Ray cluster. Every piece is written when it is over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pacesetter.agent.runs.folder import write_json
from pacesetter.experiments.runs.arm_runs import Plan, strict_records, strict_replays
from pacesetter.experiments.rivals.baselines import OPEN_LOOP, POLICY, STRICT
from pacesetter.experiments.compare_config import CompareConfig
from pacesetter.experiments.runs.progress import Clock, Progress
from pacesetter.experiments.runs.records import RunRecord, read_records, write_records
from pacesetter.experiments.runs.replay import Replay, meta_train_replay
from pacesetter.experiments.studies import Search
from pacesetter.experiments.runs.task_work import (
    Piece,
    choose,
    edge_notes,
    piece_records,
    pieces,
    search_arms,
    slug,
)
from pacesetter.inner_models.task import Task, TaskFamily


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a comparison has to do.

    Attributes:
        config: what to compare.
        plan: what is run on every task.
        tasks: their names differ.
        families: meta-train families of the open-loop replay.
        out: the folder.
    """

    config: CompareConfig
    plan: Plan
    tasks: tuple[Task, ...]
    families: tuple[TaskFamily, ...]
    out: Path

    @cached_property
    def pieces(self) -> list[Piece]:
        """Parts of the work on every task, once its searches are over."""
        return pieces(self.plan)

    @property
    def storage(self) -> Path:
        """File of all searches."""
        return self.out / "studies.db"

    @property
    def replay_path(self) -> Path:
        """File of the open-loop replay."""
        return self.out / "replay.json"

    def folder(self, task: Task) -> Path:
        """Folder of a task's records."""
        return self.out / "tasks" / slug(task.name)

    def strict_path(self, task: Task) -> Path:
        """File of a task's records of the strict replay."""
        return self.out / "strict" / f"{slug(task.name)}.json"


@dataclass
class Done:
    """What came of it.

    Attributes:
        records: every run.
        widened: searches that were given more room.
        edges: searches whose best is on an edge still.
    """

    records: list[RunRecord] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)

    def note_edges(self, task: Task, searches: Mapping[str, Search]) -> None:
        """Keeps what a reader should know of the searches on a task."""
        widened, edges = edge_notes(task.name, searches)
        self.widened += widened
        self.edges += edges


def work_here(work: Work, *, bar: Progress, clock: Clock) -> Done:
    """Does all of it in this process, but for arms that ``jobs`` hands to others.

    Args:
        work: what to do.
        bar: has a stage for each piece, one for each task's searches, and two more.
        clock: is written after each.
    """
    config, plan = work.config, work.plan
    done = Done()
    bar.begin("the policy's mean schedule")
    replay = read_replay(work) or write_replay(work, mean_schedule(work))
    bar.done()
    for task in work.tasks:
        bar.begin(f"{task.name}, tuning")
        searches = search_arms(
            task, plan, trials=config.trials, storage=work.storage, seed=config.seed
        )
        clock.write()
        bar.done()
        done.note_edges(task, searches)
        chosen = choose(task, plan, searches, trials=config.trials)
        for piece in work.pieces:
            bar.begin(f"{task.name}, {piece.name}")
            done.records += piece_records(
                task, piece, work.folder(task), chosen=chosen, replay=replay
            )
            clock.write()
            bar.done()
    bar.begin("strict replay")
    replays = strict_schedules(work, done.records)
    for task in work.tasks if replays else ():
        path = work.strict_path(task)
        if not path.is_file():
            write_records(path, strict_records(task, plan, replays))
        done.records += read_records(path)
    bar.done()
    return done


def read_replay(work: Work) -> Replay | None:
    """The open-loop replay, where it is among the arms and has been made."""
    if OPEN_LOOP.name not in work.plan.arms or not work.replay_path.is_file():
        return None
    mean = np.array(json.loads(work.replay_path.read_text(encoding="utf-8")))
    return Replay(mean, work.plan.policy.control)


def write_replay(work: Work, found: Replay | None) -> Replay | None:
    """Keeps the open-loop replay, where there is one; returns what was kept."""
    if found is None:
        return None
    write_json(work.replay_path, found.mean.tolist())
    return read_replay(work)


def mean_schedule(work: Work) -> Replay | None:
    """Makes the open-loop replay, where it is among the arms."""
    if OPEN_LOOP.name not in work.plan.arms:
        return None
    return meta_train_replay(
        work.plan.policy,
        work.families,
        num_tasks=work.config.replay_tasks,
        generator=torch.Generator().manual_seed(work.config.seed),
        device=work.plan.device,
    )


def strict_schedules(work: Work, records: Sequence[RunRecord]) -> dict[float, Replay]:
    """The strict replay by start, where it is among the arms: it needs all tasks' runs.

    Args:
        work: what is done.
        records: of all tasks.
    """
    # Where all of the policy's runs crashed there is nothing to play back.
    replayed = {r.start_lr for r in records if r.arm == POLICY.name and r.trajectory}
    starts = tuple(start for start in work.plan.start_lrs if start in replayed)
    if STRICT.name not in work.plan.arms or not starts:
        return {}
    return strict_replays(records, replace(work.plan, start_lrs=starts))
