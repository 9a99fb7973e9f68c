"""The record of decisions: a list, a table, a picture."""

import csv
import json
import math
import re
import sys

import pytest

from pacesetter.agent.plugin.history import COLUMNS, Decision, History, Intervention
from pacesetter.envs.actions import ACTION_NAMES, NUM_ACTIONS
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES


def decision(step, **changes):
    known = {"loss": 1 / step, "lr": 0.1 / step, "lr_factor": 1 / step}
    held = {"momentum": 0.9, "clip_threshold": 2.0}
    features = tuple(step + i / 7 for i in range(NUM_FEATURES))
    action = tuple(-i / 3 for i in range(NUM_ACTIONS))
    values = {"step": step, "features": features, "action": action}
    return Decision(**{**values, **known, **held, **changes})


CUT = Intervention(step=12, kind="lr_cut", detail="loss 12 times its best")
ROLLBACK = Intervention(step=27, kind="rollback", detail="back to the weights of step 20")
SECOND_CUT = Intervention(step=30, kind="lr_cut", detail="1 update skipped, 2 broken; see above")


@pytest.fixture
def history():
    record = History()
    record.append(decision(10))
    record.append(decision(20, valid_loss=0.75, interventions=(CUT,)))
    record.append(decision(30, interventions=(ROLLBACK, SECOND_CUT)))
    record.append(decision(40, loss=math.nan, momentum=None, clip_threshold=math.inf))
    return record


def test_reads_like_a_list(history):
    assert len(history) == 4
    assert history[0] == decision(10)
    assert history[-1].step == 40
    assert [d.step for d in history[1:3]] == [20, 30]
    assert [d.step for d in reversed(history)] == [40, 30, 20, 10]
    assert decision(10) in history
    assert decision(20) not in history
    assert repr(history) == "<History of 4 decisions>"
    with pytest.raises(IndexError):
        _ = history[4]


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
    assert rows[-1]["momentum"] == ""
    assert rows[-1]["loss"] == "nan"
    assert [row["valid_loss"] for row in rows] == ["", "0.75", "", ""]
    assert [row["interventions"] for row in rows] == [
        "",
        "lr_cut at 12: loss 12 times its best",
        "rollback at 27: back to the weights of step 20; "
        "lr_cut at 30: 1 update skipped, 2 broken; see above",
        "",
    ]
    assert tuple(rows[0]) == COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["history.csv"]
    table = history.table()
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == rows
    assert {type(cell) for row in table for cell in row.values()} == {int, float, str, type(None)}


def test_interventions_of_the_whole_run(history):
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT]
    assert History().interventions == []


def test_what_the_guard_did_at_the_horizon_is_told_last(history):
    late = Intervention(step=50, kind="rollback", detail="the last interval diverged")
    history.interventions_at_end = [late]
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT, late]
    assert [row["interventions"] for row in history.table()][2:] == [
        f"{ROLLBACK}; {SECOND_CUT}",
        str(late),
    ]
    assert str(history).endswith("  rollback at 50: the last interval diverged")
    assert history[-1].interventions == ()
    other = History()
    other.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert other.interventions == history.interventions


def test_a_horizon_that_moves_loses_nothing(history):
    old_end, cut_again, new_end = (
        Intervention(step=step, kind="rollback", detail="") for step in (45, 55, 60)
    )
    history.interventions_at_end = [old_end]
    history.append(decision(55, interventions=(cut_again,)))
    history.interventions_at_end += [new_end]
    assert history.interventions == [CUT, ROLLBACK, SECOND_CUT, old_end, cut_again, new_end]
    assert history[-1].interventions == (old_end, cut_again)
    assert history.interventions_at_end == [new_end]


def test_prints_as_an_aligned_table(history):
    lines = str(history).splitlines()
    assert lines[0].split() == [
        *("step", "loss", "valid", "loss", "lr", "momentum", "clip", "at"),
        *ACTION_NAMES,
    ]
    assert len(lines) == 5
    assert re.split(" +", lines[1].strip()) == [
        *("10", "0.1", "-", "0.01", "0.9", "2"),
        *("+0.00", "-0.33", "-0.67"),
    ]
    assert re.split(" +", lines[4].strip())[:6] == ["40", "nan", "-", "0.0025", "-", "inf"]
    assert lines[2].endswith("  lr_cut at 12: loss 12 times its best")
    end = lines[0].index("loss") + len("loss")
    for line in lines[1:]:
        assert line[end - 1] != " "  # numbers end below the end of their heading
        assert line[end] == " "
    assert str(History()) == "<History of 0 decisions>"


def test_state_is_json(history):
    state = history.state_dict()
    text = json.dumps(state)
    other = History()
    other.load_state_dict(json.loads(text))
    assert repr(list(other)) == repr(list(history))  # equal but for NaN
    assert other[0] == history[0]
    assert other.interventions == history.interventions
    assert json.dumps(other.state_dict()) == text
    assert json.loads(text)["decisions"][:3] == state["decisions"][:3]


def test_curves_leave_out_what_is_unknown(history):
    curves = history.curves()
    assert curves["lr"] == ([10, 20, 30, 40], [0.1 / s for s in (10, 20, 30, 40)])
    for name in ("loss", "momentum", "clip_threshold"):
        assert curves[name][0] == [10, 20, 30]
    assert curves["valid_loss"] == ([20], [0.75])


def test_plot_marks_each_kind_of_intervention_once(history, tmp_path):
    pytest.importorskip("matplotlib")
    assert History().plot(tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")
    text = history.plot(tmp_path / "new" / "history.svg").read_text()
    # matplotlib draws text as paths and leaves the words in comments.
    for words in ("lr cut", "rollback", "valid loss"):
        assert text.count(f"<!-- {words} -->") == 1
    assert "<!-- handover -->" not in text


def test_plot_without_matplotlib_names_the_extra(history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        history.plot(tmp_path / "history.png")
