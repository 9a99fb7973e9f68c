"""Metrics of runs, from synthetic records and against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
from report_sample import record

from pacesetter.experiments.analysis.scores import (
    Grid,
    anchors,
    area_under_curve,
    normalised_scores,
    steps_to_target,
)
from pacesetter.experiments.analysis.statistics import fill_diverged
from pacesetter.experiments.runs.records import Entry

DEFAULT = Entry("adamw-default")


def run(arm, loss, *, task="t", seed=0, valid=None, curve=(), failed=None, **changes):
    """A run of 100 steps whose outer-valid loss was looked at in equal distances."""
    return replace(
        record(task, arm, seed, loss=loss, failed=failed, **changes),
        inner_steps=100,
        losses={"train": loss, "outer_valid": loss if valid is None else valid, "test": loss},
        steps=[] if failed else [50, 100],
        valid_steps=[100 * (k + 1) // len(curve) for k in range(len(curve))],
        valid_curve=list(curve),
    )


def crash(arm, **options):
    return run(arm, math.nan, failed="ImportError: no such package", **options)


def test_grid_is_in_order_and_complete():
    rows = [run(a, 1.0, task=t, seed=s) for t in "xy" for s in (3, 1) for a in ("b", "a")]
    grid = Grid(rows)
    assert (grid.entries, grid.tasks, grid.seeds) == ((Entry("b"), Entry("a")), ("x", "y"), (3, 1))
    assert grid.array(lambda r: r.seed)[0].tolist() == [[3, 1], [3, 1]]
    with pytest.raises(ValueError, match="2 arms, 2 tasks and 2 seeds, but got 7"):
        Grid(rows[1:])
    with pytest.raises(ValueError, match="of which 8 differ"):
        Grid([*rows, rows[0]])


def test_one_is_the_tuned_adamw_that_outer_valid_chose():
    rows = [
        run("adamw-default", 2.0),
        run("adamw-cosine", 1.0, budget=20, valid=0.4),
        run("adamw-linear", 0.5, budget=20, valid=0.5),
        run("adamw-linear", 0.5, budget=5, valid=0.1),
        run("sgd-cosine", 0.5, budget=20, valid=0.1),
    ]
    grid = Grid(rows)
    ends = anchors(grid, "test", reference=DEFAULT)
    assert ends.entries == (Entry("adamw-cosine", budget=20),)  # linear had luck on test
    assert (ends.default[0], ends.tuned[0], ends.gain[0]) == (2.0, 1.0, 0.5)
    scores = normalised_scores(grid.losses("test"), ends)
    assert scores.ravel().tolist() == [0.0, 1.0, 1.5, 1.5, 1.5]


@pytest.mark.parametrize(
    ("default", "tuned", "untrained", "gain", "counts"),
    [
        (2.0, 1.97, 4.0, 0.015, False),
        (2.0, 1.95, 4.0, 0.025, True),
        (2.0, 2.5, 4.0, -0.25, False),  # worse on test: scores would be upside down
        (-10.0, -10.3, 4.0, 0.3 / 14, True),
        (-10.0, -11.0, -12.0, math.inf, True),  # the default learned nothing
    ],
)
def test_tasks_where_tuning_gains_too_little_do_not_count(default, tuned, untrained, gain, counts):
    rows = [run("adamw-default", default, untrained=untrained)]
    grid = Grid([*rows, run("adamw-cosine", tuned, budget=20, untrained=untrained)])
    ends = anchors(grid, "test", reference=DEFAULT)
    assert ends.gain[0] == pytest.approx(gain)
    assert ends.counts.tolist() == [counts]
    scores = normalised_scores(grid.losses("test"), ends)
    assert scores.ravel() == pytest.approx([0.0, 1.0] if counts else [])


def test_normalised_score_knows_no_unit():
    """a x loss + b changes no score, negative losses or not."""
    losses = {"adamw-default": 3.0, "adamw-cosine": 2.0, "other": 2.25}

    def scores(a, b):
        rows = [
            run(arm, a * x + b, budget=20 if arm == "adamw-cosine" else 1, untrained=a * 5 + b)
            for arm, x in losses.items()
        ]
        grid = Grid(rows)
        return normalised_scores(grid.losses("test"), anchors(grid, "test", reference=DEFAULT))

    assert scores(1, 0).ravel().tolist() == [0.0, 1.0, 0.75]
    assert scores(7, -100) == pytest.approx(scores(1, 0))


NAN = math.nan


@pytest.mark.parametrize(
    ("target", "runs", "expected"),
    [
        ([3.0, 2.0, 1.5, 1.0], {"quick": [2.0, 0.9, 0.7, 0.5]}, [1.0, 0.5]),
        ([3.0, 2.0, 1.5, 1.0], {"never": [3.0, 2.0, 1.5, 1.1], "crashed": None}, [1.0, NAN, NAN]),
        ([2.0, 1.0], {"diverged": [0.9, NAN]}, [1.0, 0.5]),
        ([NAN, NAN], {"other": [9.5, 9.0]}, [NAN, 0.5]),  # any loss is as good
        ([-2.0, -3.0], {"same": [-2.9999, -3.0 + 1e-7]}, [1.0, 1.0]),  # rounding
    ],
)
def test_steps_to_target(target, runs, expected):
    rows = [run("adamw-default", target[-1], curve=target)]
    for arm, curve in runs.items():
        rows.append(crash(arm) if curve is None else run(arm, curve[-1], curve=curve))
    found = steps_to_target(Grid(rows), reference=DEFAULT)
    assert found.ravel().tolist() == pytest.approx(expected, nan_ok=True)


def test_area_is_the_mean_loss_over_the_run():
    rows = [
        run("adamw-default", 2.0, curve=[3.0, 2.0]),
        run("broken", math.nan, curve=[1.0, math.nan]),
        run("negative", -4.0, curve=[0.0, -4.0]),
        crash("crashed"),
    ]
    area = area_under_curve(Grid(rows))
    # 4, 3, 2; 4, 1, then the worst that anybody had: 4; 4, 0, -4; all the time 4.
    assert area.ravel() == pytest.approx([3.0, 2.5, 0.0, 4.0])


def test_anchors_of_diverged_runs_are_finite():
    grid = Grid([run("adamw-default", math.nan), run("adamw-cosine", 1.0, budget=20)])
    ends = anchors(grid, "test", reference=DEFAULT)
    assert (ends.default[0], ends.tuned[0]) == (4.0, 1.0)
    filled = fill_diverged(grid.losses("test"), untrained=grid.untrained)
    assert normalised_scores(filled, ends).ravel().tolist() == [0.0, 1.0]
