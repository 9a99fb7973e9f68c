"""Searches: nested budgets, equal trials after a stop, wider edges, crashes kept apart."""

import math

import numpy as np
import pytest

from pacesetter.experiments.compare_config import budgets
from pacesetter.experiments.rivals.space import Choice, Dimension, Space
from pacesetter.experiments.tuning import ROUND, tune

SPACE = Space(
    {
        "lr": Dimension(1e-4, 1e-1, default=1e-3),
        "weight_decay": Dimension(0.0, 0.3, default=0.01, log=False, most=1.0),
        "kind": Choice(("plain", "fancy"), default="plain"),
    }
)
LR_ONLY = Space({"lr": Dimension(1e-4, 1e-1, default=1e-3)})


def bowl(best_log_lr):
    """Losses with their minimum at a learning rate; `calls` holds what was asked for at once."""

    def run(proposals):
        run.calls.append([(p.arm, p.number) for p in proposals])
        for p in reversed(proposals):  # in whatever order
            yield p, (math.log10(p.setting["lr"]) - best_log_lr) ** 2 - 7.0, None

    run.calls = []
    return run


def search(tmp_path, run, *, spaces=None, trials=20, name="s.db", **options):
    spaces = {"a": SPACE, "b": LR_ONLY} if spaces is None else spaces
    storage = tmp_path / name
    return tune(["task/0"], spaces, run, trials=trials, storage=storage, **options)["task/0"]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Twenty trials of two arms, and what was asked for at once."""
    run = bowl(-2.0)
    return search(tmp_path_factory.mktemp("long"), run), run.calls


def test_trial_0_is_the_default_and_all_arms_go_round_by_round(long):
    found, calls = long
    assert found["a"].trials[0].setting == SPACE.default
    assert found["b"].trials[0].setting == LR_ONLY.default
    assert len(calls) == 20 // ROUND
    for i, call in enumerate(calls):
        numbers = range(ROUND * i, ROUND * (i + 1))
        assert sorted(call) == [(arm, n) for arm in "ab" for n in numbers]
    for f in found.values():
        assert [t.number for t in f.trials] == list(range(20))
        for t in f.trials:
            assert 1e-4 <= t.setting["lr"] <= 1e-1
            assert t.loss == pytest.approx(np.log10(t.setting["lr"] / 1e-2) ** 2 - 7)
        assert len({t.setting["lr"] for t in f.trials}) == 20
        assert not f.widened
        assert f.best(20).loss < -6.99  # TPE has come close
    assert {t.setting["kind"] for t in found["a"].trials} == {"plain", "fancy"}


def test_budgets_are_nested(tmp_path, long):
    """The first trials of a long search are those of a short one, whatever comes later."""
    found, _ = long
    for trials in (1, 8):
        short = search(tmp_path, bowl(-2.0), trials=trials, name=f"{trials}.db")
        assert all(short[arm].trials == found[arm].trials[:trials] for arm in "ab")
    assert budgets(19) == (1, 5, 19)
    losses = [found["a"].best(budget).loss for budget in budgets(20)]
    assert losses == sorted(losses, reverse=True)
    assert found["a"].best(5).number < 5


def test_equal_spaces_get_equal_first_points_and_other_tasks_and_seeds_others(tmp_path):
    def first(task, seed, trials=2):
        spaces, storage = {"a": LR_ONLY, "b": LR_ONLY}, tmp_path / f"{seed}.db"
        found = tune([task], spaces, bowl(-2.0), trials=trials, storage=storage, seed=seed)[task]
        assert found["a"].trials == found["b"].trials
        return [t.setting["lr"] for t in found["a"].trials]

    base = first("t/0", 0, trials=5)
    assert len({base[1], first("t/1", 0)[1], first("t/0", 1)[1]}) == 3
    logs = np.sort(np.log10(base[1:]))
    assert np.diff(logs).min() > 0.3  # spread out, not bunched as random ones may be


@pytest.mark.parametrize("stop_at", [0, 13])
def test_stopped_search_goes_on_as_if_nothing_had_been(tmp_path, stop_at, long):
    """Stopped before the first trial is over, and within the second round."""
    inner = bowl(-2.0)

    def stops(proposals):
        for told in inner(proposals):
            stops.left -= 1
            if stops.left < 0:
                raise KeyboardInterrupt
            yield told

    stops.left = stop_at
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, stops, trials=12)
    inner.calls.clear()
    resumed = search(tmp_path, inner, trials=12)
    assert all(resumed[arm].trials == long[0][arm].trials[:12] for arm in "ab")
    assert sum(map(len, inner.calls)) == 2 * 12 - stop_at  # nothing is run twice
    inner.calls.clear()
    assert search(tmp_path, inner, trials=12) == resumed
    assert not inner.calls


@pytest.mark.parametrize(("best", "up"), [(-0.2, True), (-4.8, False)])
def test_edge_is_widened_within_the_budget_and_said(tmp_path, best, up):
    found = search(tmp_path, bowl(best), spaces={"a": LR_ONLY})["a"]
    assert len(found.trials) == 20
    assert found.widened == (("lr beyond 0.1",) if up else ("lr below 0.0001",))
    chosen = found.best(20).setting["lr"]
    assert abs(math.log10(chosen) - best) < 0.25
    assert chosen > 0.1 if up else chosen < 1e-4
    first_outside = next(t for t in found.trials if not 1e-4 <= t.setting["lr"] <= 1e-1)
    assert first_outside.number % ROUND == 0  # the first trial after it was widened
    # In the middle of the decade that was added.
    assert math.log10(first_outside.setting["lr"]) == pytest.approx(-0.5 if up else -4.5)


def test_edge_that_cannot_be_moved_stays(tmp_path):
    fixed = Space({"lr": Dimension(1e-4, 1e-1, default=1e-3, most=1e-1)})
    found = search(tmp_path, bowl(3.0), spaces={"a": fixed})["a"]
    assert not found.widened
    assert max(t.setting["lr"] for t in found.trials) <= 0.1
    beyond = search(tmp_path, bowl(9.0), spaces={"a": LR_ONLY}, name="far.db", trials=10)["a"]
    assert beyond.on_edge == ("lr",)


def test_diverged_trials_lose_and_crashed_ones_say_why(tmp_path):
    def run(proposals):
        for p in proposals:
            lr = p.setting["lr"]
            if lr > 1e-2:
                yield p, math.nan, "RuntimeError: no"
            else:
                yield p, math.inf if lr > 3e-3 else lr, None

    found = search(tmp_path, run, spaces={"a": LR_ONLY})["a"]
    for t in found.trials:
        lr = t.setting["lr"]
        assert t.failed == ("RuntimeError: no" if lr > 1e-2 else None)
        assert t.loss == (lr if lr <= 3e-3 else math.inf)
    assert {t.failed is None for t in found.trials} == {True, False}
    assert math.isfinite(found.best(5).loss)
    assert search(tmp_path, bowl(0.0), spaces={"a": LR_ONLY})["a"] == found


def test_search_in_which_all_fails_keeps_the_default(tmp_path):
    found = search(tmp_path, lambda ps: [(p, math.inf, None) for p in ps], trials=7)["a"]
    assert found.best(5).setting == SPACE.default  # the earliest of equals
    assert not found.widened


def test_what_cannot_be_tuned_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trials must be a positive number, but got 0"):
        search(tmp_path, bowl(0), trials=0)
    with pytest.raises(ValueError, match="nothing to tune in c"):
        search(tmp_path, bowl(0), spaces={"c": Space({})})
    assert search(tmp_path, bowl(0), spaces={}) == {}
    assert not list(tmp_path.iterdir())
