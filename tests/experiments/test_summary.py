"""What a summary says of synthetic records, and how tables and sentences say it."""

import math
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from report_sample import record

from pacesetter.experiments.analysis.statistics import Resamples
from pacesetter.experiments.analysis.summary import summarise
from pacesetter.experiments.report import text as said
from pacesetter.experiments.report.text import format_markdown, format_summary, headline
from pacesetter.experiments.runs.records import Entry

TASKS, SEEDS = tuple("abcdef"), range(5)
DEFAULT, COSINE = Entry("adamw-default"), Entry("adamw-cosine", None, 20)
POLICY = Entry("policy", 1e-3)
LABELS = {"adamw-default": "AdamW 1e-3", "adamw-cosine": "AdamW cosine", "policy": "policy"}


def runs(entry, *, factor, spread=0.02, shift=0.0, failed=None, wall=1.0, tasks=TASKS):
    """Runs of an arm whose losses are about `factor` times the task's own."""
    generator = np.random.default_rng(zlib.crc32(repr(entry).encode()))
    rows = []
    for t, task in enumerate(tasks):
        for seed in SEEDS:
            loss = (1 + t) * factor * math.exp(spread * generator.normal()) + shift
            untrained = (1 + t) * 3.0 + shift
            options = {"start": entry.start_lr, "budget": entry.budget, "failed": failed}
            row = record(task, entry.arm, seed, loss=loss, untrained=untrained, **options)
            changes = {"metric": {"test": 1.0 - 0.1 * factor}, "wall_seconds": wall}
            changes |= {"steps": [50, 100], "valid_steps": [50, 100]}
            changes["valid_curve"] = [(loss + untrained) / 2, loss]
            steps = 100 + (200 * entry.budget if entry.budget > 1 else 0)
            changed = replace(row, inner_steps=steps, metric_name="accuracy")
            rows.append(changed if failed else replace(changed, **changes))
    return rows


def records():
    """A reference, a tuned rival with three budgets, another that is worse, and the policy."""
    rows = runs(DEFAULT, factor=1.0)
    for budget, factor in ((1, 0.99), (5, 0.8), (20, 0.6)):
        rows += runs(Entry("adamw-cosine", None, budget), factor=factor)
    rows += runs(Entry("sgd"), factor=1.3)
    for start, factor in ((1e-4, 0.9), (1e-3, 0.7), (1e-2, 0.75)):
        rows += runs(Entry("policy", start), factor=factor, wall=1.5)
    return rows


def summary_of(rows, **options):
    options = {"labels": LABELS, **options}
    return summarise(rows, generator=np.random.default_rng(0), **options)


def one_line(text):
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Resamples.draw.__kwdefaults__, "num_resamples", 1000)
        yield


@pytest.fixture(scope="module")
def found():
    return summary_of(records())


def test_scores_are_log_ratios_with_intervals_on_two_levels(found):
    policy = found.of(POLICY)
    for split in ("test", "outer_valid"):
        score = policy.scores[split]
        assert score.estimate == pytest.approx(math.log(0.7), abs=0.02)
        assert score.low < score.estimate < score.high < 0
        assert policy.iqm[split].estimate == pytest.approx(math.log(0.7), abs=0.02)
    assert policy.best.estimate == pytest.approx(score.estimate)
    assert policy.finding() == "better"
    assert found.of(Entry("sgd")).finding() == "worse"
    assert found.of(DEFAULT).finding() == "no clear difference"


def test_normalised_scores_lie_between_default_and_tuned(found):
    assert found.tuned_budget == 20
    assert found.of(DEFAULT).normalised["test"].estimate == pytest.approx(0.0, abs=0.03)
    assert found.of(COSINE).normalised["test"].estimate == pytest.approx(1.0, abs=0.03)
    assert found.of(POLICY).normalised["test"].estimate == pytest.approx(0.75, abs=0.03)
    assert {t.tuned_entry for t in found.task_summaries} == {COSINE}


def test_budgets_starts_and_field(found):
    (arm,) = found.by_budget
    assert arm == "adamw-cosine"
    assert [e.entry.budget for e in found.by_budget[arm]] == [1, 5, 20]
    assert [e.inner_steps for e in found.by_budget[arm]] == [3000, 9000, 27000]
    assert found.field == (DEFAULT, COSINE, Entry("sgd"), POLICY)
    (starts,) = found.sensitivity
    assert starts.start_lrs == (1e-4, 1e-3, 1e-2)
    assert starts.factors == pytest.approx((0.1, 1.0, 10.0))
    assert starts.scores[1].estimate == found.of(POLICY).scores["test"].estimate
    moved = summary_of(records() + runs(Entry("adamw-default", 1e-1), factor=2.0))
    default = {s.arm: s for s in moved.sensitivity}["adamw-default"]
    assert default.start_lrs == (1e-3, 1e-1)  # its rate counts as a start
    expected = np.mean(np.log([0.9, 0.7, 0.75])) - math.log(0.7)
    assert starts.penalty.estimate == pytest.approx(expected, abs=0.01)


def test_ranks_and_profiles(found):
    assert list(found.ranks.ranks) == [COSINE, POLICY, DEFAULT, Entry("sgd")]
    assert [r.estimate for r in found.ranks.ranks.values()] == [1.0, 2.0, 3.0, 4.0]
    assert found.ranks.friedman_p < 0.01
    assert found.profile_of == "normalised score"
    profile = found.profiles[POLICY]
    assert np.all(np.diff(profile.share) <= 0)
    at = dict(zip(profile.thresholds.round(2).tolist(), profile.share.tolist(), strict=True))
    assert (at[0.5], at[1.01]) == (1.0, 0.0)


def test_speed_metric_and_overhead(found):
    policy, sgd = found.of(POLICY), found.of(Entry("sgd"))
    assert policy.reached.estimate == 1.0
    assert policy.overhead.estimate == pytest.approx(1.5)
    assert sgd.reached.estimate == 0.0
    assert sgd.steps_to_target.estimate == 1.0
    assert policy.area.high < 0
    assert sgd.area.low > 0
    assert policy.metrics["accuracy"].estimate == pytest.approx(0.03)


def test_difference_to_a_rival(found):
    row = next(d for d in found.differences if (d.ours, d.rival) == (POLICY, COSINE))
    assert row.finding() == "worse"
    assert row.improvement.estimate == 0.0
    assert row.overhead.estimate == pytest.approx(1.5)
    assert len(found.differences) == 3 * 5


def test_holm_takes_back_what_one_interval_says():
    """Of many rivals with small leads single intervals say more than may be claimed together."""
    rows = runs(DEFAULT, factor=1.0, spread=0.3)
    for i in range(20):
        rows += runs(Entry(f"rival-{i}"), factor=math.exp(-0.2), spread=0.3)
    found = summary_of(rows)
    alone = {e.label for e in found.entries if e.scores["test"].high < 0}
    together = {e.label for e in found.entries if e.finding() == "better"}
    assert together < alone


def test_negative_losses_are_scored_ranked_and_normalised():
    rows = []
    for entry, factor in ((DEFAULT, 1.0), (COSINE, 0.6), (POLICY, 0.7)):
        rows += runs(entry, factor=factor, shift=-100.0, spread=0.0)
    found = summary_of(rows)
    assert not found.relative
    assert found.of(POLICY).normalised["test"].estimate == pytest.approx(0.75)
    assert found.task_summaries[0].gain == pytest.approx(0.4 / 2.0)
    assert "scores -" in headline(found)


def test_tasks_without_gain_are_shown_and_left_out():
    rows = runs(DEFAULT, factor=1.0, spread=0.0) + runs(POLICY, factor=0.9, spread=0.0)
    for t, factor in zip(TASKS, (0.99, 0.99, 0.5, 0.5, 0.5, 0.5), strict=True):
        rows += [r for r in runs(COSINE, factor=factor, spread=0.0) if r.task == t]
    found = summary_of(rows)
    assert [t.counts for t in found.task_summaries] == [False] * 2 + [True] * 4
    assert found.task_summaries[0].gain == pytest.approx(0.01)
    assert found.of(POLICY).normalised["test"].estimate == pytest.approx(0.2)
    assert "without a, b, where tuning gains under 2 %" in one_line(format_summary(found))


def test_arm_that_failed_everywhere_is_told_and_left_out():
    rows = records() + runs(Entry("prodigy"), factor=1.0, failed="ImportError: no prodigyopt")
    found = summary_of(rows)
    assert Entry("prodigy") not in found.labels
    assert len(found.failures) == len(TASKS)
    reason = "prodigy failed on a (5 runs, left out): ImportError: no prodigyopt"
    assert reason in format_summary(found)


def test_runs_that_crash_count_as_diverged_where_others_of_the_arm_do_not():
    rows = records()
    rows += runs(Entry("lion"), factor=0.5, tasks=TASKS[:3])
    crashed = runs(Entry("lion"), factor=0.5, tasks=TASKS, failed="RuntimeError: out of luck")
    rows += [r for r in crashed if r.task in TASKS[3:]]
    found = summary_of(rows)
    lion = found.of(Entry("lion"))
    assert (lion.failed, lion.diverged, lion.num_runs) == (15, 15, 30)
    expected = (math.log(0.5) + math.log(3.0)) / 2  # as if untrained on half of the tasks
    assert lion.scores["test"].estimate == pytest.approx(expected, abs=0.02)


def test_one_run_makes_no_claim():
    rows = [r for r in records() if r.task == "a" and r.seed == 0]
    found = summary_of(rows)
    assert {d.finding() for d in found.differences} == {"no clear difference"}
    assert found.of(POLICY).scores["test"].high == math.inf
    assert found.ranks is None
    assert "(one run: no interval)" in headline(found)
    assert headline(found).endswith("; with so few tasks or seeds these are hints.")


def test_what_is_not_recorded_is_not_told():
    nothing = {"best": {}, "valid_steps": [], "valid_curve": [], "wall_seconds": math.nan}
    nothing |= {"metric": None, "metric_name": None}
    rows = [replace(r, **nothing) for r in records() if r.budget == 1]
    found = summary_of(rows)
    policy = found.of(POLICY)
    for value in (policy.best, policy.area, policy.reached, policy.overhead):
        assert value is None
    assert (policy.normalised, policy.metrics, found.tuned_budget) == ({}, {}, None)
    assert "normalised" not in format_summary(found)


def test_headline_is_one_sentence(found):
    text = headline(found)
    assert text.startswith("Policy from 0.001 has a test loss 30 % lower than AdamW 1e-3's (-3")
    assert "of 5 rivals it is better than 4, not clearly different from 0 and worse than 1" in text
    assert "worse than 1 (AdamW cosine (20 trials))" in text
    rows = [r for r in records() if r.arm != "policy"]
    assert headline(summary_of(rows)).startswith(
        "No agent was run; AdamW cosine (20 trials) has a test loss 40 % lower"
    )
    assert "nothing to compare" in headline(summary_of(runs(DEFAULT, factor=1.0)))


def test_tables_have_a_row_per_arm_the_best_first(found):
    rows = said.entry_cells(found)
    names = [row[0] for row in rows[1:]]
    assert names[:3] == ["AdamW cosine (20 trials)", "policy from 0.001", "AdamW cosine (5 trials)"]
    assert names[-1] == "sgd"
    assert headline(found) in one_line(format_summary(found))


def test_markdown_and_latex_escape_names():
    found = summary_of(records(), labels={**LABELS, "sgd": "50% of SGD_{x} | #1"})
    lines = [line for line in format_markdown(found).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"50\% of SGD\_\{x\} | \#1 & $+0." in said.format_latex(found)
