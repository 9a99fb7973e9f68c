"""The goals, measured end to end on tiny tasks, and judged on losses that are known."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES
from pacesetter.experiments import goals_baselines, goals_policy, goals_rivals
from pacesetter.experiments.cli.main import main, make_parser
from pacesetter.experiments.goals import GoalsConfig, measure_goals
from pacesetter.experiments.goals_baselines import (
    CALIBRATED,
    DEFAULT,
    SEARCHED,
    TUNED,
    configured,
    train_settings,
    trial_settings,
)
from pacesetter.experiments.goals_criteria import criteria
from pacesetter.experiments.goals_losses import Losses
from pacesetter.experiments.goals_policy import (
    ADAPTIVE_STARTS,
    POLICY,
    RIGHT_START,
    SEEING,
    SEEING_SHORT,
    SHORT,
    TIMED,
    WRONG_STARTS,
)
from pacesetter.experiments.goals_records import SPLITS, GoalRun, read_runs
from pacesetter.experiments.goals_rivals import BEST_MULTIPLE, OWN_MULTIPLE, REPLAY, STRICT
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.batched import run_batch
from pacesetter.experiments.tuning import TUNING_SEEDS
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.registry import HELD_OUT
from pacesetter.inner_models.task import ModuleTask, Splits, TaskFamily

SEEDS = 2
CONFIG = GoalsConfig(num_seeds=SEEDS, trials=3, habit_tasks=4)
STARTS = sorted({RIGHT_START, *WRONG_STARTS, *ADAPTIVE_STARTS})
ENTRIES = (
    *((arm, None) for arm in (DEFAULT, TUNED, CALIBRATED, TIMED)),
    *((POLICY, start) for start in STARTS),
    *((arm, RIGHT_START) for arm in (SEEING, SHORT, SEEING_SHORT, REPLAY, STRICT)),
    *((arm, start) for arm in (OWN_MULTIPLE, BEST_MULTIPLE) for start in ADAPTIVE_STARTS),
)


def squared_error(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def small_task(name="own/line", *, seed=0, horizon=24):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 4, generator=generator)
    targets = (inputs @ torch.randn(4, 1, generator=generator)).tanh()
    parts = zip(inputs.split([32, 16, 16, 16]), targets.split([32, 16, 16, 16]), strict=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)),
        squared_error,
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


TASKS = (small_task("own/a", seed=1), small_task("own/b", seed=2))


def measure(out, **options):
    options = {"policy": a_policy(), "families": [SmallFamily()], "tasks": TASKS, **options}
    return measure_goals(CONFIG, out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One measurement, with every reading of a split written down."""
    out = tmp_path_factory.mktemp("goals") / "run"
    reads = []
    evaluate = InnerTrainer.evaluate

    def watched(self, split):
        reads.append((split, self.step_count, self.horizon, {t.seed for t in self.tasks}))
        return evaluate(self, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerTrainer, "evaluate", watched)
        found = measure(out, cache=out.parent / "cache")
    return out, found, reads


def test_every_arm_runs_on_every_task_and_seed(finished):
    out, found, _ = finished
    wanted = {(*e, t.name, s) for e in ENTRIES for t in TASKS for s in range(SEEDS)}
    assert {(r.arm, r.start_lr, r.task, r.seed) for r in found.runs} == wanted
    assert len(found.runs) == len(wanted)
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test"]) for row in rows] == [r.losses["test"] for r in found.runs]
    short = {r.steps for r in found.runs if r.arm in (SHORT, SEEING_SHORT, TIMED)}
    assert short == {16}
    assert {r.steps for r in found.runs if r.arm not in (SHORT, SEEING_SHORT, TIMED)} == {24}


def test_the_test_split_is_read_at_the_end_and_never_in_tuning(finished):
    _, _, reads = finished
    tests = [read for read in reads if read[0] == "test"]
    assert tests
    assert all(step == horizon for _, step, horizon, _ in tests)
    assert not any(seeds & set(TUNING_SEEDS) for *_, seeds in tests)
    assert any(seeds == set(TUNING_SEEDS) for *_, seeds in reads)


def test_tables_and_summary_are_written(finished):
    out, found, _ = finished
    assert (out / "table.txt").read_text().strip() == found.table.strip()
    markdown = (out / "table.md").read_text()
    assert all(task.name in markdown for task in TASKS)
    summary = json.loads((out / "summary.json").read_text())
    assert [c["name"] for c in summary["criteria"]] == [c.name for c in found.criteria]
    assert len(summary["tasks"]["own/a"]["trials"]) == 1 + CONFIG.trials


def test_tuned_is_the_best_trial_run_again(finished):
    out, found, _ = finished
    settings = trial_settings("own/a", trials=CONFIG.trials, seed=CONFIG.seed)
    summary = json.loads((out / "summary.json").read_text())["tasks"]["own/a"]
    alone = [
        train_settings(TASKS[0], [configured(s)], seeds=TUNING_SEEDS).losses["outer_valid"].mean()
        for s in settings
    ]
    assert summary["trials"] == pytest.approx(alone, rel=1e-4)
    assert summary["tuned_setting"] == settings[int(np.argmin(alone))]
    again = train_settings(TASKS[0], [configured(summary["tuned_setting"])], seeds=[1])
    tuned = [r for r in found.runs if (r.task, r.arm, r.seed) == ("own/a", TUNED, 1)]
    assert tuned[0].losses["test"] == pytest.approx(again.losses["test"][0, 0], rel=1e-4)


def test_unclipped_settings_train_as_in_the_comparison():
    cosine = next(b for b in BASELINES if b.name == "adamw-cosine")
    settings = [Configured(cosine, {"lr": lr, "weight_decay": 0.1}) for lr in (1e-3, 3e-2)]
    plain = run_batch(TASKS[0], settings, seeds=[0, 1], num_intervals=1, evaluate=SPLITS)
    pooled = [
        Configured(SEARCHED, {**s.setting, "momentum": 0.9, "schedule": "cosine", "clip": math.inf})
        for s in settings
    ]
    found = train_settings(TASKS[0], pooled, seeds=[0, 1])
    expected = np.array([o.losses["test"] for o in plain]).reshape(2, 2)
    np.testing.assert_allclose(found.losses["test"], expected, rtol=1e-5)
    clipped = [Configured(SEARCHED, {**c.setting, "clip": 0.5}) for c in pooled]
    assert (train_settings(TASKS[0], clipped, seeds=[0]).losses["test"] != expected[:, :1]).all()


def test_validation_losses_reach_the_seeing_policy_alone(finished):
    _, found, reads = finished
    losses = {(r.arm, r.start_lr, r.task, r.seed): r.losses["test"] for r in found.runs}
    key = (RIGHT_START, "own/a", 0)
    assert losses[(POLICY, *key)] != losses[(SEEING, *key)]
    assert losses[(SHORT, *key)] != losses[(SEEING_SHORT, *key)]
    assert any(split == "inner_valid" for split, *_ in reads)


def test_constant_multiples_are_those_of_meta_train(finished):
    out, found, _ = finished
    for arm, name in ((OWN_MULTIPLE, "habits"), (BEST_MULTIPLE, "multiple")):
        (path,) = (out.parent / "cache").glob(f"{name}-*.json")
        known = json.loads(path.read_text())["multiple"]
        multiples = [r.mean_multiple for r in found.runs if r.arm == arm]
        # The guard cuts the rate of a run that breaks, and nothing raises it.
        assert max(multiples) == pytest.approx(known)
        assert min(r.mean_multiple for r in found.runs if r.arm == POLICY) < known
    means = json.loads(path.read_text())["mean_log_loss"]
    assert means[str(known)] == min(means.values()) == 0.0


def test_a_second_policy_finds_the_baselines_in_the_cache(finished, tmp_path, monkeypatch):
    out, found, _ = finished

    def refuse(*_, **__):
        raise AssertionError("what does not depend on the policy is run once")

    monkeypatch.setattr(goals_baselines, "_run_all", refuse)
    monkeypatch.setattr(goals_rivals, "_multiple_means", refuse)
    other = measure(tmp_path / "other", cache=out.parent / "cache", policy=a_policy(1))
    same = [r for r in found.runs if r.arm in (DEFAULT, TUNED, CALIBRATED)]
    assert [r for r in other.runs if r.arm in (DEFAULT, TUNED, CALIBRATED)] == same
    pairs = zip(other.runs, found.runs, strict=True)
    assert all(a.losses != b.losses for a, b in pairs if a.arm == POLICY)


def test_finished_pieces_are_not_run_again(finished, monkeypatch):
    out, found, _ = finished
    path = out / "tasks" / "own_b" / "speed.json"
    before = read_runs(path)
    path.unlink()
    ran = []
    original = goals_policy.run_agents
    monkeypatch.setattr(
        goals_policy,
        "run_agents",
        lambda tasks, *a, **k: ran.append(tasks) or original(tasks, *a, **k),
    )
    again = measure(out, cache=out.parent / "cache", resume=True)
    assert len(ran) == 2
    assert all(task.horizon == 16 for tasks in ran for task in tasks)
    assert [r.losses for r in read_runs(path)] == [r.losses for r in before]
    assert [r.losses for r in again.runs] == [r.losses for r in found.runs]
    with pytest.raises(FileExistsError, match="--resume"):
        measure(out)
    with pytest.raises(ValueError, match="other settings"):
        measure(out, resume=True, policy=a_policy(1))


def test_damaged_files_are_named(finished, tmp_path):
    out, _, _ = finished
    for name in ("own_a-*.json", "multiple-*.json"):
        cache = tmp_path / name[0]
        cache.mkdir()
        for path in (out.parent / "cache").glob("*.json"):
            damaged = path.match(name)
            (cache / path.name).write_text("[]" if damaged else path.read_text())
        with pytest.raises(ValueError, match="remove it"):
            measure(tmp_path / f"run-{name[0]}", cache=cache)


# What follows judges losses that are made up.

NAMES = ("t/0", "t/1", "t/2")
LOSS = {DEFAULT: 1.0, TUNED: 0.5, CALIBRATED: 0.6, POLICY: 0.4, SEEING: 0.45}


def made_up(changes=None, *, losses=LOSS, shift=0.0):
    """Runs of all arms: the same loss on every task and seed but for some.

    Args:
        changes: loss by (arm, start, task); of all seeds.
        losses: by arm; of the others, the policy's.
        shift: added to all losses.
    """
    runs = []
    for arm, start in ENTRIES:
        for task in NAMES:
            loss = (changes or {}).get((arm, start, task), losses.get(arm, losses[POLICY])) + shift
            runs += [
                GoalRun(
                    task=task,
                    arm=arm,
                    start_lr=start,
                    seed=seed,
                    steps=16 if arm in (SHORT, SEEING_SHORT, TIMED) else 24,
                    untrained=2.0 + shift,
                    losses=dict.fromkeys(SPLITS, loss),
                    wall_seconds=2.0 if arm == SHORT else 1.0,
                    mean_multiple=3.0,
                )
                for seed in range(3)
            ]
    return runs


def judged(runs):
    found = criteria({split: Losses(runs, split) for split in SPLITS})
    return {c.name: c for c in found}


def named(found, *parts):
    (one,) = [c for name, c in found.items() if all(p in name for p in parts)]
    return one


def value(criterion):
    return criterion.values["test"].estimate


def test_scores_and_speed_are_what_they_are_by_hand():
    found = judged(made_up({(SHORT, RIGHT_START, t): 0.5 * math.exp(-0.1) for t in NAMES}))
    score = named(found, "policy: normalised score")
    assert value(score) == pytest.approx(0.6 / 0.5)
    assert score.reached() is True
    seeing = named(found, "seeing validation losses: normalised score")
    assert value(seeing) == pytest.approx(0.55 / 0.5)
    assert seeing.reached() is False
    assert value(named(found, "policy: mean log ratio to tuned")) == pytest.approx(math.log(0.8))
    speed = named(found, "policy, 2/3 of the steps: log ratio")
    assert value(speed) == pytest.approx(-0.1)
    assert speed.reached() is True
    assert value(named(found, "policy, 2/3 of the steps: time")) == pytest.approx(math.log(2))


def test_tasks_on_which_tuning_gains_nothing_are_left_out_and_named():
    found = judged(made_up({(TUNED, None, "t/1"): 0.99, (POLICY, RIGHT_START, "t/1"): 50.0}))
    score = named(found, "policy: normalised score")
    assert value(score) == pytest.approx(1.2)
    assert "t/1 (+1.0%)" in score.remark
    nothing = judged(made_up({(TUNED, None, t): 1.0 for t in NAMES}))
    score = named(nothing, "policy: normalised score")
    assert score.values["test"] is None
    assert score.reached() is None


def test_wrong_starts_are_held_against_the_right_one():
    changes = {(POLICY, 1e-2, t): 0.4 * 1.04 for t in NAMES}
    changes |= {(POLICY, 1e-4, t): 0.4 for t in NAMES} | {(POLICY, 1e-4, "t/2"): 0.4 * 1.2}
    found = judged(made_up(changes))
    assert value(named(found, "10 times too high", "mean")) == pytest.approx(math.log(1.04))
    assert named(found, "10 times too high", "worst").reached() is True
    mean = named(found, "10 times too low", "mean")
    assert value(mean) == pytest.approx(math.log(1.2) / 3)
    assert mean.reached() is False
    assert mean.remark == "2 of 3 tasks within 5%"
    worst = named(found, "10 times too low", "worst")
    assert value(worst) == pytest.approx(math.log(1.2))
    assert worst.remark == "on test: t/2"


def test_divergence_counts_only_where_the_default_is_sound():
    changes = {(POLICY, 1e-1, "t/0"): math.nan, (POLICY, 1e-1, "t/1"): math.inf}
    found = judged(made_up({**changes, (DEFAULT, None, "t/1"): math.nan}))
    diverged = named(found, "policy: runs that diverge")
    assert value(diverged) == 3
    assert diverged.reached() is False
    assert named(found, "seeing validation losses: runs that diverge").reached() is True
    # A run that diverged counts as one that learned nothing.
    worst = named(found, "100 times too high", "worst")
    assert value(worst) == pytest.approx(math.log(2.0 / 0.4))


def test_tasks_much_worse_than_the_default_are_named():
    found = judged(
        made_up({(POLICY, RIGHT_START, "t/2"): 1.25, (SEEING, RIGHT_START, "t/0"): 1.05})
    )
    worse = named(found, "policy: tasks more than 10%")
    assert value(worse) == 1
    assert "t/2 (+25%)" in worse.remark
    assert named(found, "seeing validation losses: tasks more than 10%").reached() is True


def test_adaptivity_needs_the_whole_interval():
    everywhere = {(STRICT, RIGHT_START, t): 0.5 for t in NAMES}
    somewhere = {(REPLAY, RIGHT_START, "t/0"): 0.5, (REPLAY, RIGHT_START, "t/1"): 0.39}
    found = judged(made_up(everywhere | somewhere))
    assert named(found, "(a')").reached() is True
    assert value(named(found, "(a')")) == pytest.approx(math.log(0.8))
    replay = named(found, "(a) ")
    assert value(replay) < 0
    assert replay.values["test"].high > 0
    assert replay.reached() is False
    assert value(named(found, "(c)")) == pytest.approx(math.log(0.4 / 0.6))
    pooled = judged(made_up({(OWN_MULTIPLE, 1e-2, t): 0.8 for t in NAMES}))
    assert value(named(pooled, "(b) ", "starts")) == pytest.approx(math.log(0.5) / 3)
    assert value(named(pooled, "(b) ", "start 0.01")) == pytest.approx(math.log(0.5))


def test_losses_may_be_negative():
    found = judged(made_up(shift=-5.0))
    assert value(named(found, "policy: normalised score")) == pytest.approx(1.2)
    # Differences over what the default has learned, 2.0 - 1.0.
    assert value(named(found, "policy: mean log ratio to tuned")) == pytest.approx(-0.1)


def test_a_missing_run_is_noticed():
    with pytest.raises(ValueError, match="need a run for each"):
        Losses(made_up()[1:], "test")


def test_names_stand_for_tasks():
    config = GoalsConfig(tasks=("held-out", "digits-mlp/5"), tasks_per_family=1)
    assert config.task_names == (*(f"{name}/0" for name in HELD_OUT), "digits-mlp/5")
    for wrong in ({"trials": 0}, {"num_seeds": 0}, {"tasks": ()}, {"habit_tasks": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GoalsConfig(**wrong)


def test_the_command_says_what_it_does_not_know(tmp_path, capsys):
    assert main(["goals", "--out", str(tmp_path / "x"), "--tasks", "digits-mpl/0,b/1"]) == 2
    assert "digits-mlp" in capsys.readouterr().err
    args = make_parser().parse_args(["goals", "--out", "x"])
    assert (args.seeds, args.trials, args.tasks_per_family, args.policy) == (5, 20, 2, "default")
