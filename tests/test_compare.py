"""The comparison end to end, on a small synthetic task of one's own."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES
from pacesetter.experiments import arm_runs
from pacesetter.experiments import compare as compare_module
from pacesetter.experiments.baselines import BASELINES, arm_names
from pacesetter.experiments.compare import CompareConfig, compare
from pacesetter.experiments.plots import band_data, final_data
from pacesetter.experiments.records import CSV_COLUMNS, Entry, RunRecord, read_records
from pacesetter.experiments.replay import Replay, mean_replay
from pacesetter.experiments.running import ClosedLoop, run_agents
from pacesetter.experiments.summary import summarise, verdict
from pacesetter.experiments.tables import format_summary
from pacesetter.experiments.tasks import named_task, task_names
from pacesetter.experiments.tuning import TUNING_SEEDS
from pacesetter.inner_models.batching import batch_stream, build_model
from pacesetter.inner_models.task import ModuleTask, Splits, TaskFamily
from pacesetter.inner_models.trainer import InnerTrainer

STARTS = (1e-3, 1e-2)
SEEDS = 3
ROWS = tuple(replace(b, lrs=b.lrs[2:5]) if b.tuned else b for b in BASELINES)
CONFIG = CompareConfig(num_seeds=SEEDS, start_lrs=STARTS, replay_tasks=4)


def squared_error(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def shifted_error(model, batch):
    return squared_error(model, batch) - 100.0


def small_task(name="own/line", *, seed=0, loss=squared_error, horizon=24):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 4, generator=generator)
    targets = (inputs @ torch.randn(4, 1, generator=generator)).tanh()
    parts = zip(inputs.split([32, 16, 16, 16]), targets.split([32, 16, 16, 16]), strict=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)),
        loss,
        Splits(*parts),
        horizon=horizon,
        batch_size=8,
        name=name,
    )


class SmallFamily(TaskFamily):
    name = "small"

    def sample_shape(self, generator):
        return None

    def build(self, shape, generator):
        seed = int(torch.randint(1000, (), generator=generator))
        return small_task(seed=seed).with_seed(seed)


def a_policy(seed=0):
    """Some policy that looks at what it sees and moves a lot."""
    rng = np.random.default_rng(seed)
    layer = (rng.normal(size=(3, NUM_FEATURES)) * 0.4, np.array([0.5, 0.0, -0.2]))
    return Policy([layer], control=ControlConfig(num_intervals=6))


TASKS = [small_task("own/a", seed=1), small_task("own/b", seed=2)]


def run(out, config=CONFIG, *, tasks=TASKS, **options):
    options = {"policy": a_policy(), "families": [SmallFamily()], "baselines": ROWS, **options}
    return compare(config, out, tasks=tasks, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One comparison, with every reading of a split written down."""
    out = tmp_path_factory.mktemp("compare") / "run"
    reads = []
    evaluate = InnerTrainer.evaluate

    def watched(self, split):
        reads.append((self, split, self.step_count, {t.seed for t in self.tasks}))
        return evaluate(self, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerTrainer, "evaluate", watched)
        found = run(out)
    return out, found, reads


def test_every_arm_runs_on_every_task_and_seed(finished):
    _, found, _ = finished
    with_start = {name for name in arm_names() if name.startswith("policy") or name == "do-nothing"}
    entries = {Entry(name, lr) for name in with_start for lr in STARTS}
    entries |= {Entry(b.name) for b in BASELINES}
    assert {(r.entry, r.task, r.seed) for r in found.records} == {
        (e, t.name, s) for e in entries for t in TASKS for s in range(SEEDS)
    }
    assert len(found.records) == len(entries) * 2 * SEEDS


def test_runs_are_paired(finished):
    _, found, _ = finished
    untrained = {}
    for r in found.records:
        untrained.setdefault((r.task, r.seed), set()).add(round(r.untrained, 6))
    assert all(len(values) == 1 for values in untrained.values())
    assert len({next(iter(values)) for values in untrained.values()}) == 2 * SEEDS


def test_test_split_is_read_once_per_run_and_last(finished):
    _, _, reads = finished
    seen = [(id(trainer), seeds) for trainer, split, _, seeds in reads if split == "test"]
    assert seen
    assert len(seen) == len({trainer for trainer, _ in seen})
    assert not any(seeds & set(TUNING_SEEDS) for _, seeds in seen)
    assert any(seeds == set(TUNING_SEEDS) for *_, seeds in reads)
    for trainer, split, step, _ in reads:
        if split == "test":
            assert step == trainer.horizon


def plain_adamw(task, *, seed, lr):
    """Final test loss of an ordinary loop with AdamW at a constant rate."""
    task = task.with_seed(seed)
    model, stream = build_model(task), batch_stream(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    inputs, targets = task.splits.train
    for _ in range(task.horizon):
        rows = stream.take(1)[0]
        optimizer.zero_grad()
        squared_error(model, (inputs[rows], targets[rows])).backward()
        optimizer.step()
    with torch.no_grad():
        return float(squared_error(model, task.splits.test))


def test_csv_says_the_same_as_the_summary_and_as_plain_torch(finished):
    out, found, _ = finished
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == len(found.records)
    loss = {(r["task"], r["arm"], r["start_lr"], r["seed"]): r for r in rows}
    for split in ("test", "outer_valid"):
        for entry in found.summary.entries:
            start = "" if entry.entry.start_lr is None else str(entry.entry.start_lr)
            logs = [
                math.log(
                    float(loss[t.name, entry.entry.arm, start, str(s)][split])
                    / float(loss[t.name, "adamw-default", "", str(s)][split])
                )
                for t in TASKS
                for s in range(SEEDS)
            ]
            score = entry.scores[split]
            assert score.estimate == pytest.approx(sum(logs) / len(logs))
            assert score.low <= score.estimate <= score.high
    row = loss["own/b", "adamw-default", "", "2"]
    assert float(row["test"]) == pytest.approx(plain_adamw(TASKS[1], seed=2, lr=1e-3), rel=1e-4)
    row = loss["own/a", "adamw-constant", "", "1"]
    lr = float(row["lr"])
    assert float(row["test"]) == pytest.approx(plain_adamw(TASKS[0], seed=1, lr=lr), rel=1e-3)
    assert int(row["trials"]) >= 3
    assert int(row["inner_steps"]) == 24 * (1 + 2 * int(row["trials"]))


def test_policy_arm_is_the_policy(finished):
    """The policy's runs among siblings are those of the policy alone."""
    _, found, _ = finished
    task = TASKS[1].with_optimizer(lr=1e-2).with_seed(2)
    alone = run_agents([task], [ClosedLoop(a_policy())], control=a_policy().control)
    (record,) = [
        r for r in found.records if (r.entry, r.task, r.seed) == (Entry("policy", 1e-2), "own/b", 2)
    ]
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
    steps = [
        replay.act(np.zeros((2, NUM_FEATURES)), interval=k, num_intervals=3)[0, 0] for k in (1, 2)
    ]
    assert np.array(steps) * 0.35 == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match="at least one"):
        mean_replay([], ControlConfig())
    assert isinstance(replay, Replay)


def test_stopped_comparison_goes_on_and_repeats_nothing(finished, tmp_path, monkeypatch):
    out, found, _ = finished
    done, original = [], arm_runs.task_records

    def stops(task, *args, **kwargs):
        if task.name == "own/b" and not done.count("own/b"):
            done.append("own/b")
            raise KeyboardInterrupt
        done.append(task.name)
        return original(task, *args, **kwargs)

    monkeypatch.setattr(compare_module, "task_records", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert not (tmp_path / "run" / "results.csv").exists()
    run(tmp_path / "run", resume=True)
    assert done == ["own/a", "own/b", "own/b"]
    for name in ("results.csv", "table.txt"):
        assert (tmp_path / "run" / name).read_text() == (out / name).read_text()
    monkeypatch.setattr(InnerTrainer, "run", pytest.fail)  # nothing is trained any more
    again = run(tmp_path / "run", resume=True)
    assert again.table == found.table


def test_folder_of_another_comparison_is_refused(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        run(out)
    with pytest.raises(ValueError, match="num_seeds: 3 then, 4 now"):
        run(out, replace(CONFIG, num_seeds=4), resume=True)
    with pytest.raises(ValueError, match="policy"):
        run(out, resume=True, policy=a_policy(1))
    with pytest.raises(FileNotFoundError, match="cannot resume"):
        run(tmp_path / "none", resume=True)


def test_report_needs_nothing_else(finished):
    out, found, _ = finished
    page = (out / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\((?!#)|\bsrc=", page)
    assert 'name="viewport"' in page
    for entry in found.summary.entries:
        assert entry.label in page
    for task in TASKS:
        assert f"<summary>{task.name}</summary>" in page
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 1 + 5 * len(TASKS)  # scores; curves, final losses, three schedules
    for figure in figures:
        ET.fromstring(figure)
    for sentence in verdict(found.summary):
        assert sentence in page.replace("&#x27;", "'")
    assert "CompareConfig(" in page  # the exact command
    assert f"torch {torch.__version__}" in page


def test_kept_files_are_plain_json(finished):
    out, found, _ = finished
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    kept = read_records(out / "tasks" / "own_a.json")
    assert kept[0] in found.records
    with pytest.raises(ValueError, match="does not hold records"):
        read_records(out / "run.json")


def test_losses_below_zero_are_compared(tmp_path):
    task = small_task(loss=shifted_error)
    config = replace(CONFIG, arms=("policy", "adamw-cosine"), start_lrs=(1e-3,))
    found = run(tmp_path / "run", config, tasks=[task])
    assert not found.summary.relative
    assert "over their spread" in found.table
    assert all(math.isfinite(e.scores["test"].estimate) for e in found.summary.entries)
    assert {r.arm for r in found.records} == {"policy", "adamw-cosine", "adamw-default"}


def records(arm, losses, *, start=None, task="t"):
    return [
        RunRecord(
            task=task,
            arm=arm,
            seed=seed,
            start_lr=start,
            lr=1e-3,
            trials=1,
            inner_steps=30,
            untrained=4.0,
            losses={"train": loss, "outer_valid": loss, "test": loss},
            steps=[5, 10],
            curve=[loss, loss + seed],
            lrs=[1e-3, 1e-3],
            momenta=[0.9, 0.9],
            clip_thresholds=[math.nan, math.nan],
        )
        for seed, loss in enumerate(losses)
    ]


def test_better_is_said_only_where_the_interval_excludes_zero():
    base = records("adamw-default", [1.0, 1.1, 0.9, 1.0])
    base += records("rival", [0.5, 0.55, 0.45, 0.5]) + records("noisy", [1.2, 0.6, 0.7, 0.9])
    found = summarise(
        [*base, *records("policy", [0.8, 0.88, 0.72, 0.8], start=1e-3)],
        generator=np.random.default_rng(0),
    )
    said = {d.rival.arm: d.finding() for d in found.differences}
    assert said == {"adamw-default": "better", "rival": "worse", "noisy": "no clear difference"}
    (sentence,) = verdict(found)
    assert "20 % lower than adamw-default's" in sentence
    assert "better than: adamw-default; not clearly different from: noisy; worse than: rival" in (
        sentence
    )


def test_diverged_runs_are_counted_and_cost(finished):
    good = records("adamw-default", [1.0, 1.0])
    found = summarise(
        [*good, *records("wild", [0.5, math.nan])], generator=np.random.default_rng(0)
    )
    wild = found.entries[1]
    assert (wild.diverged, wild.num_runs) == (1, 2)
    assert wild.scores["test"].estimate == pytest.approx((math.log(0.5) + math.log(4.0)) / 2)
    assert "1/2" in format_summary(found)


def test_tuning_is_charged_once_per_task():
    rows = records("adamw-default", [1.0, 1.0, 1.0])
    found = summarise(rows, generator=np.random.default_rng(0))
    assert (
        found.entries[0].inner_steps == 20 + 3 * 10
    )  # each record: 20 of tuning and 10 of its own


def test_missing_run_is_noticed():
    rows = records("adamw-default", [1.0, 1.0]) + records("other", [1.0])
    with pytest.raises(ValueError, match="need one run for each of 2 arms"):
        summarise(rows, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="'adamw-default' is not among"):
        summarise(records("other", [1.0]), generator=np.random.default_rng(0))


def test_data_of_figures():
    rows = records("a", [1.0, 2.0, 3.0]) + records("b", [0.5, math.nan, 0.7])
    band = band_data(rows, task="t", quantity="curve")[Entry("a")]
    assert band.steps.tolist() == [5, 10]
    assert band.median.tolist() == [2.0, 3.0]
    assert band.low.tolist() == [1.5, 2.0]
    assert band_data(rows, task="t", quantity="clip_thresholds") == {}
    final = final_data(rows, task="t", generator=np.random.default_rng(0))
    assert [e.arm for e in final] == ["b", "a"]
    assert final[Entry("b")].estimate == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_seeds": 0}, "num_seeds"),
        ({"start_lrs": (0.0,)}, "start_lrs"),
        ({"start_lrs": (1e-3, 1e-3)}, "start_lrs"),
        ({"tasks": ()}, "tasks"),
        ({"replay_tasks": 0}, "replay_tasks"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_bad_arms_tasks_and_devices_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="nearest: policy"):
        run(out, replace(CONFIG, arms=("polic",)))
    with pytest.raises(ValueError, match="names that differ"):
        run(out, tasks=[TASKS[0], TASKS[0]])
    with pytest.raises(ValueError, match="device"):
        run(out, replace(CONFIG, device="warp"))
    with pytest.raises(ValueError, match="digits-mlp"):
        compare(replace(CONFIG, tasks=("digit-mlp/0",)), out, policy=a_policy())
    assert not out.exists()


def test_names_of_tasks():
    assert task_names(["digits-mlp"], per_family=2) == ("digits-mlp/0", "digits-mlp/1")
    assert named_task("digits-mlp/1").name == "digits-mlp/1"
    with pytest.raises(ValueError, match="family/number"):
        named_task("digits-mlp")
