"""The work of a comparison on a Ray cluster: arms, trials and tasks side by side.

First all searches, of every task at a time; then all pieces; then the strict replay, which needs
all of the policy's runs. Units of work are those of `work_here`, so results are the same but for
rounding, and either goes on with what the other has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from pacesetter.agent.training.engines import RayEngine
from pacesetter.experiments.runs.arm_runs import Chosen, Plan, strict_records, task_records
from pacesetter.experiments.runs.comparison_work import (
    Done,
    Work,
    mean_schedule,
    read_replay,
    strict_schedules,
    write_replay,
)
from pacesetter.experiments.runs.progress import Clock, Progress
from pacesetter.experiments.runs.ray_pool import Flow, RayPool, Unit, each
from pacesetter.experiments.runs.records import RunRecord, read_records, write_records
from pacesetter.experiments.runs.replay import Replay
from pacesetter.experiments.studies import Proposal, Search, Study, TrialResult, open_storage
from pacesetter.experiments.runs.task_work import Piece, choose, run_trials, trial_parts
from pacesetter.experiments.tuning import check_searches, rounds
from pacesetter.inner_models.task import Task


def work_spread(work: Work, engine: RayEngine, *, bar: Progress, clock: Clock) -> Done:
    """Does all of it on a cluster.

    Args:
        work: what to do.
        engine: the cluster.
        bar: see `work_here`.
        clock: is written after each stage.
    """
    # A unit has its worker to itself: what cannot be batched does not ask for more processes.
    work = replace(work, plan=replace(work.plan, jobs=1))
    with engine.opened() as workers:
        return _Spread(work, RayPool(workers), bar, clock).done()


class _Spread:
    def __init__(self, work: Work, pool: RayPool, bar: Progress, clock: Clock) -> None:
        self._work, self._pool, self._bar, self._clock = work, pool, bar, clock
        self._tasks = [pool.share(task) for task in work.tasks]
        self._plan = pool.share(work.plan)

    def done(self) -> Done:
        """Does all of it."""
        work, done = self._work, Done()
        replay, *searches = self._searches()
        chosen = []
        for task, found in zip(work.tasks, searches, strict=True):
            done.note_edges(task, found)
            chosen.append(choose(task, work.plan, found, trials=work.config.trials))
        self._pool.run([self._pieces(chosen, replay)])
        for task in work.tasks:
            for piece in work.pieces:
                done.records += read_records(piece.path(work.folder(task)))
        self._pool.run([self._strict(done.records)])
        for path in map(work.strict_path, work.tasks):
            done.records += read_records(path) if path.is_file() else []
        return done

    def _over(self, what: str) -> None:
        self._bar.begin(what)
        self._bar.done()
        self._clock.write()

    def _searches(self) -> list[Any]:
        """The open-loop replay, and what was found on each task."""
        work = self._work
        spaces = {b.name: b.space for b in work.plan.baselines if b.tuned}
        check_searches(spaces, trials=work.config.trials)
        with open_storage(work.storage) if spaces else nullcontext() as storage:
            flows = [self._search(i, spaces, storage) for i in range(len(work.tasks))]
            return self._pool.run([self._replay(), *flows])

    def _replay(self) -> Flow[Replay | None]:
        found = read_replay(self._work)
        what = "the policy's mean schedule"
        if found is None:
            made: list[Replay | None] = []
            yield from each(
                [Unit(what, mean_schedule, (replace(self._work, tasks=()),))],
                lambda _, result: made.append(result),
            )
            found = write_replay(self._work, made[0])
        self._over(what)
        return found

    def _search(
        self, index: int, spaces: Mapping[str, Any], storage: Any
    ) -> Flow[dict[str, Search]]:
        config, plan, task = self._work.config, self._work.plan, self._work.tasks[index]
        what = f"{task.name}, tuning"
        studies = [
            Study(task.name, name, space, storage=storage, seed=config.seed)
            for name, space in spaces.items()
        ]
        for open_trials in rounds(studies, trials=config.trials) if studies else ():
            proposals = [proposal for _, proposal in open_trials]
            parts = trial_parts(plan, proposals)
            units = [
                Unit(what, run_trials, (self._tasks[index], self._plan, [proposals[i] for i in p]))
                for p in parts
            ]
            pairs = [[open_trials[i] for i in part] for part in parts]
            yield from each(units, partial(_tell, pairs))
        self._over(what)
        return {study.arm: study.result() for study in studies}

    def _pieces(
        self, chosen: Sequence[Mapping[str, Sequence[Chosen]]], replay: Replay | None
    ) -> Flow[None]:
        """Runs all pieces that are not done yet, the longest first."""
        work = self._work
        units, paths = [], []
        for piece in sorted(work.pieces, key=_turn):
            for i, task in enumerate(work.tasks):
                what, path = f"{task.name}, {piece.name}", piece.path(work.folder(task))
                if path.is_file():
                    self._over(what)
                    continue
                args = (self._tasks[i], piece.plan, chosen[i], replay if piece.plan.arms else None)
                units.append(Unit(what, _piece, args))
                paths.append(path)
        yield from each(units, self._keeper(units, paths))

    def _strict(self, records: Sequence[RunRecord]) -> Flow[None]:
        """Runs the strict replay on every task on which it is not done yet."""
        work = self._work
        replays = strict_schedules(work, records)
        units, paths = [], []
        for i, task in enumerate(work.tasks if replays else ()):
            path = work.strict_path(task)
            if not path.is_file():
                args = (self._tasks[i], self._plan, replays)
                units.append(Unit(f"{task.name}, strict replay", strict_records, args))
                paths.append(path)
        yield from each(units, lambda number, found: write_records(paths[number], found))
        self._over("strict replay")

    def _keeper(self, units: Sequence[Unit], paths: Sequence[Any]) -> Any:
        def keep(number: int, found: list[RunRecord]) -> None:
            write_records(paths[number], found)
            self._over(units[number].name)

        return keep


def _turn(piece: Piece) -> bool:
    """Populations come first: nothing else is as long."""
    return not any(baseline.population for baseline in piece.plan.baselines)


def _piece(
    task: Task, plan: Plan, chosen: Mapping[str, Sequence[Chosen]], replay: Replay | None
) -> list[RunRecord]:
    return task_records(task, plan, chosen=chosen, replay=replay)


def _tell(
    parts: Sequence[Sequence[tuple[Study, Proposal]]], number: int, results: Sequence[TrialResult]
) -> None:
    for (study, proposal), result in zip(parts[number], results, strict=True):
        study.tell(proposal, result)
