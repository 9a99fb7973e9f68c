"""What the divergence guard does to runs of the meta-train families: rescues, and harm.

    OMP_NUM_THREADS=1 python benchmarks/guard_survey.py --out benchmarks/results/guard-survey.txt

Each family's tasks are drawn as in meta-training, starts of the learning rate up to 30 times off
included. Of two siblings one follows the plain schedule, the other random changes of the learning
rate, rises more than falls. Each is run with the guard and without (broken updates are skipped and
answered by half the learning rate in both), and the final outer-valid losses are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pacesetter.envs.runs import ScheduledRuns
from pacesetter.inner_models.registry import META_TRAIN, make_family
from pacesetter.inner_models.task import Task
from pacesetter.inner_models.watch.guard import LR_CUT, DivergenceGuard, Verdict
from pacesetter.inner_models.watch.signals import IntervalStatistics

LONGEST = 1500


class Watcher(DivergenceGuard):
    """Counts alarms, and may leave it at that."""

    def __init__(self, num_runs: int, *, acts: bool) -> None:
        super().__init__(num_runs)
        self.alarms = np.zeros(num_runs, dtype=int)
        self._acts = acts

    def judge(self, stats: IntervalStatistics) -> Verdict:
        verdict = super().judge(stats)
        self.alarms += verdict.alarm
        if self._acts:
            return verdict
        none = np.zeros(len(verdict.alarm), dtype=bool)
        return Verdict(
            alarm=none,
            lr_cut=np.where(stats.nonfinite_share > 0, -LR_CUT, 0.0),
            headroom=np.full(len(none), np.inf),
            roll_back=none,
            plain=none,
            handed_over=none,
            good=none,
        )


def play(
    tasks: list[Task], actions: NDArray[np.float64], *, acts: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Final losses of two siblings per task, and how many alarms each had."""
    runs = ScheduledRuns(tasks, siblings=2)
    watcher = runs.core._guard = Watcher(runs.num_runs, acts=acts)
    runs.begin()
    decision = 0
    while not runs.done:
        runs.decide(actions[decision])
        decision += 1
    return runs.final_losses().ravel(), watcher.alarms


def main() -> None:
    """Prints one line per run with an alarm, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=4, help="groups of four tasks per family")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to write the lines to as well")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    lines, ratios, total = [], [], 0
    for name in META_TRAIN:
        generator = torch.Generator().manual_seed(args.seed)
        for _ in range(args.groups):
            tasks = make_family(name).sample_group(4, generator)
            if tasks[0].horizon > LONGEST:
                continue
            actions = np.zeros((40, 8, 3))
            actions[:, 1::2, 0] = rng.normal(0.1, 0.5, (40, 4))
            guarded, alarms = play(tasks, actions, acts=True)
            alone, _ = play(tasks, actions, acts=False)
            total += len(alarms)
            for run in np.flatnonzero(alarms):
                with_guard, without = guarded[run], alone[run]
                lost = not np.isfinite(without)
                ratios.append(0.0 if lost else with_guard / without)
                task = tasks[run // 2]
                lines.append(
                    f"{name:22s} {task.horizon:5d} steps  {task.optimizer.name:8s} alarms "
                    f"{alarms[run]:2d}  loss {with_guard:.4g} with, {without:.4g} without"
                )
    table = np.array(ratios)
    lines.append(
        f"{len(table)} of {total} runs had an alarm; of these {np.mean(table < 0.9):.0%} ended "
        f"more than a tenth lower with the guard, {np.mean(table > 1.1):.0%} more than a tenth "
        f"higher (at worst {table.max():.2f} times), the median {np.median(table):.2f} times"
    )
    print(*lines, sep="\n")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
