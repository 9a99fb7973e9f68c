"""The decision core: recorded decisions, many runs at once, and who has the last word."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pacesetter.envs.actions import ActionCodec, ControlConfig
from pacesetter.envs.decision import DecisionCore
from pacesetter.inner_models.watch.signals import IntervalStatistics

RECORDED = Path(__file__).parents[1] / "data" / "decisions.npz"
RUNS = ("adamw", "adamw-valid", "sgd-diverges", "adamw-boom")
EXACT = {"rtol": 1e-12, "atol": 1e-14}  # processors round logarithms differently


def make_core(name="adamw", *, num_runs=1, **options):
    sgd = name.startswith("sgd")
    codec = ActionCodec(
        ControlConfig(), total_steps=300, momentum_start=[0.9] * num_runs, momentum_scales_lr=sgd
    )
    return DecisionCore(codec, adaptive=not sgd, **options)


def recording(name):
    """One dictionary per decision of a run that was recorded before there was a core."""
    with np.load(RECORDED, allow_pickle=False) as file:
        columns = {key: file[f"{name}/{key}"] for key in COLUMNS}
        steps = np.split(file[f"{name}/losses"], columns["steps"][:-1])
        norms = np.split(file[f"{name}/norms"], columns["steps"][:-1])
        names = file["stat_names"].tolist()
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        record = dict(zip(columns, row, strict=True))
        scalars = {n: np.array([v]) for n, v in zip(names, record["stats"], strict=True)}
        record["stats"] = IntervalStatistics(
            **scalars, losses=steps[i][:, None], norms=norms[i][:, None]
        )
        yield record


COLUMNS = ("steps", "stats", "valid", "features", "action", "verdict", "hyperparameters", "kinds")


def repeated(stats, times):
    return IntervalStatistics(
        **{f.name: np.repeat(getattr(stats, f.name), times, axis=-1) for f in fields(stats)}
    )


def broken(stats):
    """The same interval, had every step of it broken."""
    nothing = np.full_like(stats.losses, np.nan)
    return replace(stats, losses=nothing, norms=nothing, nonfinite_share=np.ones(1))


def take(core, record, action=None):
    """Feeds one recorded interval to a core, and takes the recorded decision or another."""
    core.observe_validation(np.full(core.codec.num_runs, record["valid"]))
    stats = repeated(record["stats"], core.codec.num_runs)
    features, verdict = core.encode(stats), core.judge(stats)
    taken = core.decide(np.tile(record["action"] if action is None else action, (len(features), 1)))
    return features, verdict, taken


@pytest.mark.parametrize("num_runs", [1, 3])
@pytest.mark.parametrize("name", RUNS)
def test_recorded_decisions_come_out_the_same(name, num_runs):
    core, overfitted = make_core(name, num_runs=num_runs), False
    for record in recording(name):
        features, verdict, taken = take(core, record)
        codec = core.codec
        settings = (codec.lr_factors(record["steps"], 1)[0], codec.momentum, codec.clip_ratio)
        for run in range(num_runs):
            np.testing.assert_allclose(features[run], record["features"], **EXACT)
            np.testing.assert_array_equal(taken[run], record["action"])
            seen = [verdict.alarm[run], verdict.roll_back[run], verdict.good[run]]
            assert seen == record["verdict"].tolist()
            np.testing.assert_allclose(
                [values[run] for values in settings], record["hyperparameters"], **EXACT
            )
        kinds = []
        if verdict.roll_back[0] or verdict.lr_cut[0]:
            kinds.append("rollback" if verdict.roll_back[0] else "lr_cut")
        if core.overfitting[0] and not overfitted:
            kinds.append("overfitting")
        overfitted = core.overfitting[0]
        assert " ".join(kinds) == record["kinds"]


def test_overfitting_overrules_the_action_and_only_that_of_lr():
    core, seen = make_core(), set()
    for record in recording("adamw-valid"):
        _, _, taken = take(core, record, [1.0, 0.5, -0.5])
        overfits = bool(core.overfitting[0])
        assert taken[0].tolist() == [-1.0 if overfits else 1.0, 0.5, -0.5]
        seen.add(overfits)
    assert seen == {True, False}


def test_what_is_not_controlled_stays():
    core = make_core(control=("momentum",))
    for record in recording("adamw-boom"):  # the guard cuts in vain
        _, _, taken = take(core, record, [1.0, 0.5, -0.5])
        assert taken[0].tolist() == [0.0, 0.5, 0.0]
    assert core.codec.lr_offset == 0
    assert core.codec.clip_ratio == pytest.approx(4.0)
    assert core.codec.momentum < 0.5


def test_the_guard_and_the_caller_can_set_the_agent_aside():
    core, handed_over = make_core(), []
    for record in recording("adamw"):
        _, verdict, taken = take(core, {**record, "stats": broken(record["stats"])}, [1, 1, 1])
        handed_over.append(bool(verdict.handed_over[0]))
        assert taken.any() == (not verdict.plain[0])
    assert handed_over.index(True) == 3  # the fourth alarm
    assert sum(handed_over) == 1

    record = next(recording("adamw"))
    core = make_core(num_runs=2)
    core.judge(repeated(record["stats"], 2))
    taken = core.decide(np.ones((2, 3)), set_aside=np.array([True, False]))
    assert taken.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_at_the_horizon_what_diverged_goes_back_at_once():
    core, verdicts = make_core(), []
    record = next(recording("adamw"))
    for interval in range(1, 41):
        last = interval == 40
        stats = broken(record["stats"]) if last else record["stats"]
        assert core.interval == interval
        core.encode(stats)
        verdicts.append(core.judge(stats))
        if not last:
            core.decide(np.zeros((1, 3)))
    assert not any(v.roll_back[0] for v in verdicts[:-1])
    assert verdicts[-1].roll_back[0]


def test_all_processes_do_what_the_first_does():
    first, second = make_core("sgd-diverges"), make_core("sgd-diverges")
    for record in recording("sgd-diverges"):
        sent = {}
        own = ((first, record["action"], record["valid"]), (second, [1, 1, 1], 0))
        for core, action, valid_loss in own:
            core.observe_validation(np.array([valid_loss]))
            core.encode(record["stats"])
            core.judge(record["stats"])
            taken = core.decide([action], broadcast=partial(sent.setdefault, "by the first"))
            assert taken[0].tolist() == record["action"].tolist()
    assert second.codec.state_dict() == first.codec.state_dict()
    assert second.verdict.alarm.dtype == bool


def test_state_goes_on_exactly():
    whole, first, second = (make_core() for _ in range(3))
    for i, record in enumerate(recording("adamw-boom")):
        features, *_ = take(whole, record)
        if i == 25:
            second.load_state_dict(first.state_dict())
        half = first if i < 25 else second
        assert take(half, record)[0].tolist() == features.tolist()
    assert repr(second.state_dict()) == repr(whole.state_dict())  # NaN is no equal of itself


def test_misuse_is_refused():
    core = make_core(num_runs=2)
    with pytest.raises(RuntimeError, match="no verdict before judge"):
        core.decide(np.zeros((2, 3)))
    core.judge(repeated(next(recording("adamw"))["stats"], 2))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), but got \(3,\)"):
        core.decide(np.zeros(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        core.decide([[0, 0, np.nan], [0, 0, 0]])
