"""Measures the goals of the project: final loss, speed, robustness and adaptivity of a policy.

`docs/goals.md` has the protocol. All work on a task is cut in pieces, each of which is written when
it is over and not done twice; what does not depend on the policy is kept in a cache that
measurements of several policies can share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pacesetter.agent.policy.policy import Policy, load_policy
from pacesetter.agent.runs.folder import claim_folder, write_json, write_text
from pacesetter.agent.runs.interruption import safe_point
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.goals_baselines import HandRuns, hand_runs
from pacesetter.experiments.goals_criteria import Criterion, criteria
from pacesetter.experiments.goals_losses import Losses
from pacesetter.experiments.goals_policy import policy_runs, speed_runs
from pacesetter.experiments.goals_records import SPLITS, GoalRun, read_runs, write_csv, write_runs
from pacesetter.experiments.goals_rivals import Habits, habits, rival_runs, strict_runs
from pacesetter.experiments.goals_tables import report
from pacesetter.experiments.runs.environment import check_device, describe_environment
from pacesetter.experiments.runs.progress import Clock, Progress
from pacesetter.experiments.runs.task_work import slug
from pacesetter.experiments.tasks import named_task, task_names
from pacesetter.experiments.tuning import TUNING_SEEDS
from pacesetter.inner_models.registry import META_TRAIN, SETS, make_family
from pacesetter.inner_models.task import SplitName, Task, TaskFamily


@dataclass(frozen=True, kw_only=True)
class GoalsConfig:
    """What decides the result of a measurement.

    Attributes:
        policy: file, or ``"default"`` for the shipped one.
        tasks: names of fixed tasks, of families, or of `SETS`.
        tasks_per_family: fixed tasks that a family stands for.
        num_seeds: runs of every arm on every task, seeds 0 to ``num_seeds - 1``.
        trials: random settings of AdamW that tuning tries besides the default.
        habit_tasks: meta-train tasks on which the policy's mean schedule and multiple are found.
        seed: of what is drawn: trials, meta-train tasks, resamples.
        device: where the runs live.

    Raises:
        ValueError: a number is out of its range, or there is no task.
    """

    policy: str = "default"
    tasks: tuple[str, ...] = ("validation",)
    tasks_per_family: int = 2
    num_seeds: int = 5
    trials: int = 20
    habit_tasks: int = 64
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 1 <= self.num_seeds <= min(TUNING_SEEDS):
            raise ValueError(f"num_seeds must be a positive number, but got {self.num_seeds}")
        for name in ("tasks_per_family", "trials", "habit_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)}")
        if not self.tasks:
            raise ValueError("tasks must be given: names of tasks, families, or 'validation'")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of initial weights and batch order."""
        return tuple(range(self.num_seeds))

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of single tasks."""
        families = [family for name in self.tasks for family in SETS.get(name, (name,))]
        return task_names(families, per_family=self.tasks_per_family)


@dataclass(frozen=True)
class Measurement:
    """What `measure_goals` found.

    Attributes:
        runs: every one.
        criteria: in the order of the goals.
        table: the same as text.
        summary: the same in JSON types.
    """

    runs: tuple[GoalRun, ...]
    criteria: tuple[Criterion, ...]
    table: str
    summary: dict[str, Any]


def measure_goals(
    config: GoalsConfig,
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    policy: Policy | None = None,
    tasks: Sequence[Task] | None = None,
    families: Sequence[TaskFamily] | None = None,
) -> Measurement:
    """Measures all goals; writes ``table.txt``, ``table.md``, ``results.csv``, ``summary.json``.

    Args:
        config: what to measure.
        out: the folder, new or empty; or that of a measurement to go on with.
        cache: where runs are kept that do not depend on the policy; default: ``out / "cache"``.
        resume: go on with the measurement in `out`.
        progress: show how far it is.
        policy: used instead of the file that `config` names.
        tasks: used instead of those that `config` names. Names must differ.
        families: of meta-train; default: all of them.

    Raises:
        FileExistsError: `out` holds something and `resume` is off.
        FileNotFoundError: there is no such policy, or nothing to go on with.
        ValueError: unknown tasks or device, or `out` holds another measurement.
    """
    check_device(config.device)
    agent = policy or load_policy(config.policy)
    chosen = [named_task(name) for name in config.task_names] if tasks is None else list(tasks)
    if not chosen or len({slug(task.name) for task in chosen}) < len(chosen):
        raise ValueError(f"need tasks with names that differ, but got {[t.name for t in chosen]}")
    learned_on = families or [make_family(name) for name in META_TRAIN]
    settings = {
        **asdict(config),
        "policy": agent.digest,
        "tasks": [task.name for task in chosen],
        "data": {task.name: task.splits.digest()[:12] for task in chosen},
    }
    claim_folder(out, kind="goals", settings=settings, resume=resume)
    shared = out / "cache" if cache is None else cache
    clock = Clock(out / "seconds.json")
    runs: list[GoalRun] = []
    hand: dict[str, HandRuns] = {}
    with Progress(1 + 5 * len(chosen), shown=progress) as bar:
        bar.begin("the policy on meta-train tasks")
        known = habits(
            agent,
            learned_on,
            num_tasks=config.habit_tasks,
            seed=config.seed,
            cache=shared,
            device=config.device,
        )
        safe_point()
        bar.done()
        for task in chosen:
            bar.begin(f"{task.name}, AdamW by hand")
            hand[task.name] = hand_runs(
                task,
                trials=config.trials,
                seeds=config.seeds,
                seed=config.seed,
                cache=shared,
                device=config.device,
            )
            safe_point()
            runs += hand[task.name].runs
            clock.write()
            bar.done()
            for name, piece in _pieces(task, agent, config, hand[task.name], known).items():
                bar.begin(f"{task.name}, {name}")
                runs += _kept(out / "tasks" / slug(task.name) / f"{name}.json", piece)
                clock.write()
                bar.done()
        played = tuple(runs)

        def strict(task: Task) -> list[GoalRun]:
            return strict_runs(task, agent, played, seeds=config.seeds, device=config.device)

        for task in chosen:
            bar.begin(f"{task.name}, strict replay")
            runs += _kept(
                out / "tasks" / slug(task.name) / "strict.json",
                partial(strict, task),
            )
            clock.write()
            bar.done()
    return _written(out, config, agent, runs, hand, known, hours=clock.seconds / 3600)


def _pieces(
    task: Task, policy: Policy, config: GoalsConfig, hand: HandRuns, known: Habits
) -> dict[str, Callable[[], list[GoalRun]]]:
    """The policy's work on a task, by name of the file that keeps it."""
    seeds, device = config.seeds, config.device
    return {
        "policy": lambda: policy_runs(task, policy, seeds=seeds, device=device),
        "speed": lambda: speed_runs(task, policy, hand, seeds=seeds, device=device),
        "rivals": lambda: rival_runs(task, policy, known, seeds=seeds, device=device),
    }


def _kept(path: Path, run: Callable[[], list[GoalRun]]) -> list[GoalRun]:
    """The runs of a piece: read where it is done, run and written where it is not."""
    if not path.is_file():
        write_runs(path, run())
    safe_point()
    return read_runs(path)


def _written(
    out: Path,
    config: GoalsConfig,
    policy: Policy,
    runs: Sequence[GoalRun],
    hand: dict[str, HandRuns],
    known: Habits,
    *,
    hours: float,
) -> Measurement:
    losses: dict[SplitName, Losses] = {s: Losses(runs, s, seed=config.seed) for s in SPLITS}
    found = criteria(losses)
    notes = [
        f"Policy {policy.digest[:12]}: preset {policy.info.preset}, seed {policy.info.seed}, "
        f"{policy.info.decisions:,} decisions. {config.num_seeds} seeds. Tuned: the best of the "
        f"default and {config.trials} random trials, by mean outer-valid loss over two seeds, run "
        "again on others. Judged on test. In brackets: 95 % bootstrap intervals, tasks and seeds "
        "within them resampled; of fewer than ten tasks they are too short.",
        f"On {config.habit_tasks} meta-train tasks the policy's learning rate is {known.own:.3g} "
        f"times start and plain decay, on average; the best constant multiple is {known.best:g}.",
        f"It took {hours:.2f} hours, without what the cache held.",
    ]

    def table(*, markdown: bool) -> str:
        return report(found, losses, hand, runs, notes=notes, markdown=markdown)

    write_csv(out / "results.csv", runs)
    write_text(out / "table.txt", table(markdown=False) + "\n")
    write_text(out / "table.md", table(markdown=True) + "\n")
    summary = _summary(found, losses, hand, policy, known, config.device)
    write_json(out / "summary.json", summary)
    return Measurement(tuple(runs), tuple(found), table(markdown=False), summary)


def _summary(
    found: Sequence[Criterion],
    losses: dict[SplitName, Losses],
    hand: dict[str, HandRuns],
    policy: Policy,
    known: Habits,
    device: str,
) -> dict[str, Any]:
    return {
        "policy": policy.digest,
        "environment": describe_environment(device),
        "multiples": known.multiples,
        "criteria": [
            {
                "goal": c.group,
                "name": c.name,
                "unit": c.unit,
                "values": {split: _numbers(value) for split, value in c.values.items()},
                "to_reach": c.goal,
                "at_least": c.at_least,
                "reached": c.reached(),
                "remark": c.remark,
            }
            for c in found
        ],
        "tasks": {
            task: {
                "tuned_setting": hand[task].setting,
                "trials": [loss if np.isfinite(loss) else None for loss in hand[task].trials],
                **{f"tuning_gains_{split}": float(of.gain[t]) for split, of in losses.items()},
            }
            for t, task in enumerate(losses[SPLITS[0]].tasks)
        },
    }


def _numbers(value: Interval | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    ends = {"low": value.low, "high": value.high}
    known = {name: end if np.isfinite(end) else None for name, end in ends.items()}
    return {"estimate": value.estimate, **known}
