"""The record of a run: decisions as list, table and picture; logs; schedules to replay.

Schedules of whole runs: test_plug_in_options.py.
"""

import csv
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import decision
from torch import nn
from torch.optim import SGD, AdamW

from pacesetter.agent.plugin.callbacks import (
    CSVCallback,
    TensorBoardCallback,
    WandbCallback,
    scalars,
)
from pacesetter.agent.plugin.history import COLUMNS, History, Intervention, RecordedSchedule
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURE_NAMES

CUT = Intervention(step=12, kind="lr_cut", detail="loss 12 times its best")
ROLLBACK = Intervention(step=27, kind="rollback", detail="back to step 20")
SECOND_CUT = Intervention(step=30, kind="lr_cut", detail="1 update skipped, 2 broken")


RUN = [
    decision(10),
    decision(20, valid_loss=0.75, interventions=(CUT,)),
    decision(30, interventions=(ROLLBACK, SECOND_CUT)),
    decision(40, loss=math.nan, momentum=None, clip_threshold=math.inf),
]


def recorded(decisions):
    record = History()
    for taken in decisions:
        record.append(taken)
    return record


@pytest.fixture
def history():
    return recorded(RUN)


def test_reads_like_a_list_and_its_state_is_json(history):
    assert len(history) == 4
    assert history[-1].step == 40
    assert [d.step for d in history[1:3]] == [20, 30]
    assert [d.step for d in reversed(history)] == [40, 30, 20, 10]
    assert decision(10) in history
    assert decision(20) not in history
    assert repr(history) == "<History of 4 decisions>"
    with pytest.raises(IndexError):
        _ = history[4]
    text, other = json.dumps(history.state_dict()), History()
    other.load_state_dict(json.loads(text))
    assert repr(list(other)) == repr(list(history))  # equal but for NaN
    assert other[0] == history[0]
    assert json.dumps(other.state_dict()) == text


def test_table_has_one_exact_line_per_decision(history, tmp_path):
    path = history.to_csv(tmp_path / "new" / "history.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, d in zip(rows, history, strict=True):
        assert int(row["step"]) == d.step
        assert float(row["lr"]) == d.lr
        assert float(row["clip_threshold"]) == d.clip_threshold
        assert [float(row[n]) for n in FEATURE_NAMES] == list(d.features)
        assert [float(row[f"action_{n}"]) for n in ACTION_NAMES] == list(d.action)
    assert (rows[-1]["momentum"], rows[-1]["loss"]) == ("", "nan")
    assert [row["valid_loss"] for row in rows] == ["", "0.75", "", ""]
    notes = ["", "lr_cut at 12: loss 12 times its best", f"{ROLLBACK}; {SECOND_CUT}", ""]
    assert [row["interventions"] for row in rows] == notes
    assert tuple(rows[0]) == COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["history.csv"]
    table = history.table()
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == rows
    assert {type(cell) for row in table for cell in row.values()} == {int, float, str, type(None)}


def test_what_the_guard_did_at_the_horizon_is_told_last_and_kept_where_the_horizon_moves(history):
    first, again, last = (Intervention(step=s, kind="rollback", detail="x") for s in (45, 55, 60))
    assert History().interventions == []
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT]
    history.interventions_at_end = [first]
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT, first]
    assert history.table()[-1]["interventions"] == str(first)
    assert str(history).endswith("  rollback at 45: x")
    assert history[-1].interventions == ()
    other = History()
    other.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert other.interventions == history.interventions
    history.append(decision(55, interventions=(again,)))
    history.interventions_at_end += [last]
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT, first, again, last]
    assert history[-1].interventions == (first, again)
    assert history.interventions_at_end == [last]


def test_prints_as_an_aligned_table(history):
    lines = str(history).splitlines()
    heading = ["step", "loss", "valid loss", "lr", "momentum", "clip at", *ACTION_NAMES]
    assert re.split("  +", lines[0].strip()) == heading
    assert len(lines) == 5
    actions = ["+0.25", "-0.50", "+1.00"]
    assert lines[1].split() == ["10", "0.1", "-", "0.01", "0.9", "2", *actions]
    assert lines[4].split() == ["40", "nan", "-", "0.0025", "-", "inf", *actions]
    assert lines[2].endswith("  lr_cut at 12: loss 12 times its best")
    end = lines[0].index("loss") + len("loss")
    for line in lines[1:]:
        assert line[end - 1] != " "  # numbers end below the end of their heading
        assert line[end] == " "
    assert str(History()) == "<History of 0 decisions>"


def test_curves_leave_out_what_is_unknown(history):
    curves = history.curves()
    assert curves["lr"] == ([10, 20, 30, 40], [0.1 / s for s in (10, 20, 30, 40)])
    for name in ("loss", "momentum", "clip_threshold"):
        assert curves[name][0] == [10, 20, 30]
    assert curves["valid_loss"] == ([20], [0.75])


def test_plot_marks_each_kind_of_intervention_once(history, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert History().plot(tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")
    text = history.plot(tmp_path / "new" / "history.svg").read_text()
    # matplotlib draws text as paths and leaves the words in comments.
    for words in ("lr cut", "rollback", "valid loss"):
        assert text.count(f"<!-- {words} -->") == 1
    assert "<!-- handover -->" not in text
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        history.plot(tmp_path / "history.png")


# -- callbacks ----------------------------------------------------------------------


def test_scalars_leave_out_what_is_unknown():
    known = {"loss": 0.05, "valid_loss": 0.75, "lr": 0.005, "lr_factor": 0.05, "momentum": 0.9}
    actions = {"log_lr": 0.25, "log_one_minus_momentum": -0.5, "log_clip_ratio": 1.0}
    expected = {**known, "clip_threshold": 2.0, **{f"action/{n}": a for n, a in actions.items()}}
    assert scalars(RUN[1]) == {f"pacesetter/{name}": value for name, value in expected.items()}
    missing = {"loss", "momentum", "clip_threshold", "valid_loss"}
    assert scalars(RUN[1]).keys() - scalars(RUN[3]).keys() == {f"pacesetter/{n}" for n in missing}


@pytest.mark.parametrize("own_writer", [False, True])
def test_tensorboard_reads_back_what_was_decided(own_writer, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    target = tmp_path / "events"
    if own_writer:
        target = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(target))
    callback = TensorBoardCallback(target)
    for taken in RUN:
        callback.on_decision(taken)
    # Without closing: nothing may be lost in a crash.
    events = events.EventAccumulator(
        str(tmp_path / "events"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()
    names = {name for taken in RUN for name in scalars(taken)}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        expected = {d.step: scalars(d)[name] for d in RUN if name in scalars(d)}
        found = {e.step: e.value for e in events.Scalars(name)}
        assert found == {step: pytest.approx(v, rel=1e-6) for step, v in expected.items()}
    notes = events.Tensors("pacesetter/interventions/text_summary")
    assert [event.step for event in notes] == [12, 27, 30]
    assert notes[0].tensor_proto.string_val == [b"lr_cut at 12: loss 12 times its best"]
    if own_writer:
        target.close()


@pytest.mark.parametrize("given", [False, True])
def test_wandb_is_told_on_an_axis_of_its_own(given, monkeypatch):
    axes, logged = {}, []
    run = SimpleNamespace(
        define_metric=lambda name, step_metric=None: axes.update({name: step_metric}),
        log=logged.append,
    )
    if not given:
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    callback = WandbCallback(run if given else None)
    for taken in RUN:
        callback.on_decision(taken)
    assert axes == {"pacesetter/step": None, "pacesetter/*": "pacesetter/step"}
    assert [values["pacesetter/step"] for values in logged] == [10, 20, 30, 40]
    for values, taken in zip(logged, RUN, strict=True):
        assert scalars(taken).items() <= values.items()
    texts = [values.get("pacesetter/interventions") for values in logged]
    assert texts[:2] == [None, "lr_cut at 12: loss 12 times its best"]


def test_missing_packages_and_runs_are_named(tmp_path, monkeypatch):
    for module, found, make, message in (
        ("tensorboard", None, lambda: TensorBoardCallback(tmp_path), r"'pacesetter\[train\]'"),
        ("wandb", SimpleNamespace(run=None), WandbCallback, r"call wandb.init\(\) first"),
        ("wandb", None, WandbCallback, "pip install wandb"),
    ):
        monkeypatch.setitem(sys.modules, module, found)
        with pytest.raises((ImportError, RuntimeError), match=message):
            make()


def test_csv_is_that_of_the_history_at_any_moment_and_after_a_resumption(tmp_path):
    path = tmp_path / "new" / "run.csv"
    # Killed after step 30, resumed from a checkpoint after step 10.
    for first, last in ((0, 3), (1, 4)):
        callback = CSVCallback(path)
        assert path.exists() == (first > 0)
        for count in range(first, last):
            callback.on_decision(RUN[count])
            expected = recorded(RUN[: count + 1]).to_csv(tmp_path / "expected.csv")
            assert path.read_bytes() == expected.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["run.csv"]


@pytest.mark.parametrize("content", ["", "step,loss\n1,2\n", ",".join(reversed(COLUMNS))])
def test_another_file_is_not_overwritten(content, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a history of this version"):
        CSVCallback(path)
    assert path.read_text() == content


# -- recorded schedules ------------------------------------------------------------

LRS = (0.1, 0.0, 3e-3)


def sample():
    schedule = RecordedSchedule()
    rng = np.random.default_rng(3)
    for i in range(50):
        momentum = None if i % 7 == 0 else float(rng.uniform(0, 1))
        threshold = math.inf if i % 5 == 0 else float(rng.exponential())
        schedule.append(float(rng.exponential()), momentum=momentum, clip_threshold=threshold)
    return schedule


def same(one, two):
    """Bit for bit, NaN included."""
    return all(
        getattr(one, name).tobytes() == getattr(two, name).tobytes()
        for name in ("lr_factors", "momenta", "clip_thresholds")
    )


def test_a_replay_has_the_same_learning_rates_at_every_update():
    optimizer = AdamW([{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in LRS])
    replay = sample().to_lambda_lr(optimizer)
    for i in range(80):
        factor = sample().lr_factors[min(i, 49)]
        assert replay.get_last_lr() == [lr * factor for lr in LRS]
        assert [g["lr"] for g in optimizer.param_groups] == replay.get_last_lr()
        optimizer.step()
        replay.step()


def test_csv_is_exact_and_readable(tmp_path):
    schedule = sample()
    path = schedule.to_csv(tmp_path / "new" / "schedule.csv", base_lr=0.2)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == ["step", "lr_factor", "lr", "momentum", "clip_threshold"]
    assert [int(row["step"]) for row in rows] == list(range(50))
    assert [float(row["lr"]) for row in rows] == [0.2 * f for f in schedule.lr_factors]
    assert rows[0]["momentum"] == ""
    assert rows[0]["clip_threshold"] == "inf"
    assert same(RecordedSchedule.from_csv(path), schedule)
    assert [p.name for p in path.parent.iterdir()] == ["schedule.csv"]


GOOD = "step,lr_factor,lr,momentum,clip_threshold\n0,1,0.1,0.9,inf\n1,0.5,0.05,,2\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1,0.5", "1,half", r"line 3: lr_factor must be a number, but got 'half'"),
        ("1,0.5", "1,-1", r"line 3: lr_factor must be finite and not negative"),
        ("1,0.5", "2,0.5", r"line 3: expected step 1, but got 2"),
        ("0,1,", ",1,", r"line 2: step must be a number, but got ''"),
        ("0.9", "1.5", r"line 2: momentum must lie in \[0, 1\), but got 1.5"),
        (",inf", ",0", r"line 2: clip_threshold must be positive"),
        (",,2\n", "\n", r"line 3: clip_threshold must be a number, but got None"),
        ("lr_factor", "factor", r"line 1: expected the columns step, .*, but lr_factor missing"),
        (GOOD, "", r"line 1: expected the columns"),
    ],
)
def test_errors_name_the_line(old, new, message, tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(GOOD)
    assert len(RecordedSchedule.from_csv(path)) == 2
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        RecordedSchedule.from_csv(path)


def test_state_and_function_are_copies(tmp_path):
    schedule, other, empty = sample(), RecordedSchedule(), RecordedSchedule()
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(schedule, other)
    factor = schedule.lr_lambda()
    last = schedule.lr_factors[-1]
    schedule.append(7.0, momentum=0.5)
    assert (len(other), len(schedule)) == (50, 51)
    assert factor(10**9) == last != 7.0
    assert repr(empty) == "<RecordedSchedule of 0 updates>"
    with pytest.raises(ValueError, match="empty"):
        empty.to_lambda_lr(SGD([nn.Parameter(torch.ones(2))]))
    assert len(RecordedSchedule.from_csv(empty.to_csv(tmp_path / "e.csv", base_lr=1.0))) == 0
