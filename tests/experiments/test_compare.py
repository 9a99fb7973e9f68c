"""The comparison end to end, on small synthetic tasks: the protocol, stops, crashes, refusals."""

import csv
import json
import math
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import reactive
from plain_loop import plainly_trained

from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES
from pacesetter.experiments import comparison as compare_module
from pacesetter.experiments.compare_config import TUNING_SEEDS
from pacesetter.experiments.comparison import CompareConfig, compare
from pacesetter.experiments.rivals.arms import Baseline
from pacesetter.experiments.rivals.baselines import AGENT_ARMS, BASELINES
from pacesetter.experiments.runs import stages
from pacesetter.experiments.runs.agents import ClosedLoop, mean_replay, run_agents
from pacesetter.experiments.runs.plain import PlainRun
from pacesetter.experiments.runs.records import CSV_COLUMNS, Entry
from pacesetter.experiments.runs.stages import SENSITIVE
from pacesetter.inner_models.engine.trainer import InnerTrainer
from tiny import SmallFamily, small_task, squared_error

STARTS = (1e-3, 1e-2)
SEEDS = 2
TRIALS = 6
TUNED = ("adamw-constant", "adamw-cosine", "schedule-free", "population")
NAMES = (*TUNED, "adamw-default", "adamw-cosine-calibrated")
ROWS = tuple(b for b in BASELINES if b.name in (*NAMES, "sgd-cosine"))
ARMS = (*(arm.name for arm in AGENT_ARMS), *NAMES)
CONFIG = CompareConfig(arms=ARMS, num_seeds=SEEDS, trials=TRIALS, start_lrs=STARTS, replay_tasks=2)
POLICY = reactive(size=0.4, num_intervals=6)
FEW = replace(CONFIG, arms=("policy", "sgd-cosine"), num_seeds=2, trials=2, start_lrs=(1e-3,))
TASKS = [small_task("own/a", seed=1, horizon=12), small_task("own/b", seed=2, horizon=12)]


def run(out, config=CONFIG, *, tasks=TASKS, **options):
    options = {"policy": POLICY, "families": [SmallFamily()], "baselines": ROWS, **options}
    return compare(config, out, tasks=tasks, **options)


def only_notes(path, report):
    """Instead of the report, whose figures take seconds and have tests of their own."""
    path.write_text("\n".join([*report.notes, report.command]))


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(compare_module, "write_report", only_notes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One comparison, with every reading of a split written down."""
    out = tmp_path_factory.mktemp("compare") / "run"
    reads = []
    evaluate, alone = InnerTrainer.evaluate, PlainRun.evaluate

    def watched(self, split):
        reads.append((self, split, self.step_count, {t.seed for t in self.tasks}))
        return evaluate(self, split)

    def watched_alone(self, split, *args):
        reads.append((self, split, self.task.horizon, {self.task.seed}))
        return alone(self, split, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerTrainer, "evaluate", watched)
        patch.setattr(PlainRun, "evaluate", watched_alone)
        patch.setattr(compare_module, "write_report", only_notes)
        found = run(out, latex=True)
    return out, found, reads


def test_every_arm_runs_on_every_task_seed_and_budget(finished):
    _, found, _ = finished
    entries = {Entry(arm.name, lr) for arm in AGENT_ARMS for lr in STARTS}
    entries |= {Entry("adamw-default"), Entry("adamw-cosine-calibrated")}
    entries |= {Entry(name, None, budget) for name in TUNED for budget in (1, 5, TRIALS)}
    # AdamW by hand from the policy's other start; from 1e-3 it is what it is anyway.
    entries |= {Entry(name, 1e-2) for name in SENSITIVE}
    assert {(r.entry, r.task, r.seed) for r in found.records} == {
        (e, t.name, s) for e in entries for t in TASKS for s in range(SEEDS)
    }
    assert len(found.records) == len(entries) * 2 * SEEDS
    assert not any(r.failed for r in found.records)
    untrained = {(r.task, r.seed, round(r.untrained, 5)) for r in found.records}
    assert len(untrained) == len({loss for *_, loss in untrained}) == 2 * SEEDS  # paired


def test_test_split_is_read_once_per_run_and_last(finished):
    _, _, reads = finished
    seen = [(id(model), seeds) for model, split, _, seeds in reads if split == "test"]
    assert seen
    assert len(seen) == len({model for model, _ in seen})
    assert not any(seeds & set(TUNING_SEEDS) for _, seeds in seen)
    assert any(seeds == set(TUNING_SEEDS) for *_, seeds in reads)
    for model, split, step, _ in reads:
        if split == "test" and isinstance(model, InnerTrainer):
            assert step == model.horizon


def test_budgets_are_nested_paid_for_and_chosen_on_outer_valid(finished):
    """Each budget's setting is the best of the first trials; the studies say which those were."""
    optuna = pytest.importorskip("optuna")
    out, found, _ = finished
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'studies.db'}")
    for arm in ("adamw-cosine", "schedule-free"):
        for task in TASKS:
            study = optuna.load_study(study_name=f"{task.name} | {arm}", storage=storage)
            assert len(study.trials) == TRIALS
            for budget in (1, 5, TRIALS):
                best = min(study.trials[:budget], key=lambda t: t.value)
                entry = Entry(arm, None, budget)
                rows = [r for r in found.records if (r.entry, r.task) == (entry, task.name)]
                assert len(rows) == SEEDS
                assert all(r.setting == pytest.approx(best.params) for r in rows)
                spent = 12 * (1 + (2 * budget if budget > 1 else 0))
                assert {r.inner_steps for r in rows} == {spent}
    storage.engine.dispose()
    default, budget_1 = (
        [r.losses["test"] for r in found.records if r.entry == Entry(name)]
        for name in ("adamw-default", "adamw-constant")
    )
    assert budget_1 == pytest.approx(default, rel=1e-4)  # its default is 1e-3 too


def test_csv_says_the_same_as_the_records_and_as_plain_torch(finished):
    out, found, _ = finished
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(found.records)
    loss = {(r["task"], r["arm"], r["start_lr"], r["budget"], r["seed"]): r for r in rows}
    assert len(loss) == len(rows)
    for r in found.records:
        start = "" if r.start_lr is None else str(r.start_lr)
        row = loss[r.task, r.arm, start, str(r.budget), str(r.seed)]
        assert float(row["test"]) == r.losses["test"]
    for task, start, lr in ((TASKS[1], "", 1e-3), (TASKS[0], "0.01", 1e-2)):
        row = loss[task.name, "adamw-default", start, "1", "1"]
        model = plainly_trained(task, partial(torch.optim.AdamW, lr=lr), seed=1)
        plain = task.loss(model, task.splits.test).item()
        assert float(row["test"]) == pytest.approx(plain, rel=1e-3)


def test_policy_arm_is_the_policy(finished):
    """The policy's runs among siblings are those of the policy alone."""
    _, found, _ = finished
    task = TASKS[1].with_optimizer(lr=1e-2).with_seed(1)
    alone = run_agents([task], [ClosedLoop(POLICY)], control=POLICY.control)
    runs = {(r.entry, r.task, r.seed): r for r in found.records}
    record = runs[Entry("policy", 1e-2), "own/b", 1]
    assert record.losses["test"] == pytest.approx(alone.losses("test")[0], rel=1e-3)
    assert record.lrs == pytest.approx(np.ravel(alone.lrs), rel=1e-3)
    assert np.ptp(record.lrs) > 0
    assert np.isfinite(record.clip_thresholds).all()


def test_replays_follow_their_means_and_look_at_nothing(finished):
    _, found, _ = finished

    def trajectories(arm, start):
        rows = [r for r in found.records if r.entry == Entry(arm, start)]
        return np.array([r.trajectory for r in rows])

    for start in STARTS:
        blind = trajectories("policy-open-loop", start)
        assert np.ptp(blind, axis=0) == pytest.approx(0.0, abs=1e-12)
        assert blind[0] == pytest.approx(trajectories("policy-open-loop", STARTS[0])[0])
        strict = trajectories("policy-open-loop-strict", start)
        assert strict[0] == pytest.approx(trajectories("policy", start).mean(axis=0))
        assert np.ptp(strict, axis=0) == pytest.approx(0.0, abs=1e-12)
        assert trajectories("do-nothing", start) == pytest.approx(0.0)


def test_replay_fits_runs_with_fewer_intervals():
    ramp = np.outer(np.arange(6) / 10, [1.0, 0.0, 0.0])
    replay = mean_replay([ramp, ramp[::2]], ControlConfig(num_intervals=6))
    assert replay.mean[:, 0] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.45])
    step = replay.act(np.zeros((2, NUM_FEATURES)), interval=1, num_intervals=3)[0, 0]
    assert step * 0.35 == pytest.approx(0.2)


def test_folder_holds_what_is_said(finished):
    out, found, _ = finished
    assert (out / "table.txt").read_text() == found.table + "\n"
    assert "\\begin{tabular}" in (out / "table.tex").read_text()
    assert "CompareConfig(" in (out / "report.html").read_text()  # the exact command
    assert json.loads((out / "seconds.json").read_text())["seconds"] > 0
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert set(json.loads((out / "data.json").read_text())) == {"own/a", "own/b"}


SCRIPT = Path(__file__).with_name("recompute_results.py")


@pytest.mark.parametrize("split", ["test", "outer_valid"])
def test_summary_is_recomputed_from_the_csv_by_a_script_that_shares_no_code(finished, split):
    out, found, _ = finished
    recomputed = runpy.run_path(str(SCRIPT))["recompute"](out / "results.csv", CONFIG.seed, split)
    assert len(recomputed) == len(found.summary.entries)
    for e in found.summary.entries:
        start = "" if e.entry.start_lr is None else str(e.entry.start_lr)
        theirs = recomputed[e.entry.arm, start, e.entry.budget]
        pairs = [(e.scores, theirs["score"]["mean"]), (e.iqm, theirs["score"]["iqm"])]
        for ours, values in [*pairs, (e.normalised, theirs["normalised"]["iqm"])]:
            found_here = (ours[split].estimate, ours[split].low, ours[split].high)
            assert found_here == pytest.approx(values, abs=1e-9)


def test_stopped_comparison_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    arms = ("policy", "policy-open-loop-strict", "sgd-cosine", "population")
    config, tasks = replace(FEW, arms=arms), TASKS[:1]
    found = run(tmp_path / "whole", config, tasks=tasks)
    written, original = [], stages.write_records

    def stops(path, records):
        if len(written) == 2:
            written.append(None)
            raise KeyboardInterrupt
        written.append(path)
        original(path, records)

    monkeypatch.setattr(stages, "write_records", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", config, tasks=tasks)
    assert not (tmp_path / "run" / "results.csv").exists()
    again = run(tmp_path / "run", config, tasks=tasks, resume=True)
    written.remove(None)
    # Agents, siblings, populations of one and two trials, the strict replay.
    assert len(written) == len(set(written)) == 5
    same = ("arm", "task", "seed", "start_lr", "budget", "setting", "losses", "curve", "lrs")
    for one, other in zip(again.records, found.records, strict=True):
        assert [getattr(one, n) for n in same] == [getattr(other, n) for n in same]
    monkeypatch.setattr(InnerTrainer, "run", pytest.fail)  # nothing is trained any more
    assert run(tmp_path / "run", config, tasks=tasks, resume=True).table == again.table


def breaks(params, hyperparameters, task):
    raise RuntimeError("no such luck")


def test_arm_that_crashes_is_reported_as_failed_and_the_rest_goes_on(tmp_path):
    space = next(b for b in ROWS if b.name == "sgd-cosine").space
    broken = Baseline(name="broken", label="a", optimizer=breaks, space=space, source="here")
    config = replace(FEW, arms=("sgd-cosine", "broken"))
    out = tmp_path / "run"
    found = run(out, config, baselines=(*ROWS, broken), tasks=TASKS[:1])
    failed = [r for r in found.records if r.failed]
    assert len(failed) == 2 * 2  # seeds, budgets
    assert {(r.arm, r.failed) for r in failed} == {("broken", "RuntimeError: no such luck")}
    assert all(math.isfinite(r.losses["test"]) for r in found.records if not r.failed)
    assert "no such luck" in found.table
    assert "RuntimeError: no such luck" in (out / "results.csv").read_text()


def test_reference_that_crashes_ends_with_its_reason(tmp_path):
    reference = replace(next(b for b in ROWS if b.name == "adamw-default"), optimizer=breaks)
    with pytest.raises(ValueError, match=r"'adamw-default'.*crashed: RuntimeError: no such luck"):
        run(tmp_path / "run", replace(FEW, arms=("do-nothing",)), baselines=(reference,))
    assert (tmp_path / "run" / "results.csv").is_file()


def test_policy_that_crashes_takes_nothing_along(tmp_path, monkeypatch):
    def crash(self, features, *, interval, num_intervals):
        raise RuntimeError("lost")

    monkeypatch.setattr(ClosedLoop, "act", crash)
    config = replace(FEW, arms=("policy", "policy-open-loop-strict", "do-nothing"))
    found = run(tmp_path / "run", config, tasks=TASKS[:1])
    failures = {(r.arm, r.failed) for r in found.records if r.failed}
    assert failures == {("policy", "RuntimeError: lost")}


def test_folder_of_another_comparison_is_refused(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        run(out)
    for changes, message in (
        ({"config": replace(CONFIG, num_seeds=4)}, "num_seeds: 2 then, 4 now"),
        ({"tasks": [TASKS[0], small_task("own/b", seed=3, horizon=12)]}, r"data\.own/b: "),
    ):
        with pytest.raises(ValueError, match=message):
            run(out, resume=True, **changes)
    with pytest.raises(FileNotFoundError, match="cannot resume"):
        run(tmp_path / "none", resume=True)


def test_moved_edges_are_said_in_the_report(tmp_path):
    """A learning rate that is far too low everywhere: the search has to go beyond its range."""
    row = next(b for b in ROWS if b.name == "sgd-cosine")
    lr = replace(row.space.dimensions["lr"], low=1e-7, high=1e-5, default=1e-6)
    row = replace(row, space=type(row.space)({"lr": lr}))
    config, rows = replace(FEW, arms=("sgd-cosine",), trials=11), (ROWS[0], row)
    found = run(tmp_path / "run", config, tasks=TASKS[:1], baselines=rows)
    assert "sgd-cosine on own/a (lr beyond 1e-05)" in (tmp_path / "run/report.html").read_text()
    best = next(r for r in found.records if r.entry == Entry("sgd-cosine", None, 11))
    assert best.setting["lr"] > 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "num_seeds"),
        ({"start_lrs": (1e-3, 1e-3)}, "start_lrs"),
        ({"tasks": ()}, "tasks"),
        ({"trials": 0}, "trials must be positive, but got 0"),
        ({"jobs": 0}, "jobs must be positive, but got 0"),
        ({"steps": 10}, "steps are those of the user's own tasks"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_bad_arms_tasks_and_devices_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "run"
    broken = small_task(loss=lambda model, batch: squared_error(model, batch) / 0)
    for changes, tasks, message in (
        ({"arms": ("polic",)}, TASKS, "nearest: policy"),
        ({}, [TASKS[0], TASKS[0]], "names that differ"),
        ({"device": "warp"}, TASKS, "device"),
        ({"tasks": ("digit-mlp/0",)}, None, "digits-mlp"),
        ({"tasks": ("digits-mlp",)}, None, "family/number"),
        ({}, [broken], "finite at the start"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(replace(CONFIG, **changes), out, tasks=tasks, policy=POLICY)
    assert not out.exists()
