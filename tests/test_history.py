"""The record of decisions: a list, a table, a picture."""

import csv
import math
import sys

import pytest

from pacesetter.agent.history import Decision, History
from pacesetter.envs.actions import ACTION_NAMES, NUM_ACTIONS
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES


def decision(step, **changes):
    values = {
        "step": step,
        "loss": 1 / step,
        "features": tuple(step + i / 7 for i in range(NUM_FEATURES)),
        "action": tuple(-i / 3 for i in range(NUM_ACTIONS)),
        "lr": 0.1 / step,
        "lr_factor": 1 / step,
        "momentum": 0.9,
        "clip_threshold": 2.0,
    }
    return Decision(**{**values, **changes})


@pytest.fixture
def history():
    record = History()
    for step in (10, 20, 30):
        record.append(decision(step))
    record.append(decision(40, loss=math.nan, momentum=None, clip_threshold=math.inf))
    return record


def test_reads_like_a_list(history):
    assert len(history) == 4
    assert history[0] == decision(10)
    assert history[-1].step == 40
    assert [d.step for d in history[1:3]] == [20, 30]
    assert [d.step for d in reversed(history)] == [40, 30, 20, 10]
    assert decision(20) in history
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
    assert [p.name for p in path.parent.iterdir()] == ["history.csv"]


def test_state_round_trip(history):
    other = History()
    other.load_state_dict(history.state_dict())
    assert repr(list(other)) == repr(list(history))  # equal but for NaN
    assert other[0] == history[0]


def test_curves_leave_out_what_is_unknown(history):
    curves = history.curves()
    assert curves["lr"] == ([10, 20, 30, 40], [0.1 / s for s in (10, 20, 30, 40)])
    for name in ("loss", "momentum", "clip_threshold"):
        assert curves[name][0] == [10, 20, 30]


def test_plot_writes_a_picture(history, tmp_path):
    pytest.importorskip("matplotlib")
    path = history.plot(tmp_path / "new" / "history.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert History().plot(tmp_path / "empty.svg").read_text().startswith("<?xml")


def test_plot_without_matplotlib_names_the_extra(history, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[compare\]'"):
        history.plot(tmp_path / "history.png")
