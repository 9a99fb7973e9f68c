"""Callbacks: what is told to TensorBoard, Weights & Biases and a CSV file."""

import csv
import math
import sys
from types import SimpleNamespace

import pytest

from pacesetter.agent.plugin.callbacks import (
    CSVCallback,
    TensorBoardCallback,
    WandbCallback,
    scalars,
)
from pacesetter.agent.plugin.history import COLUMNS, Decision, History, Intervention
from pacesetter.envs.features import NUM_FEATURES


def decision(step, **changes):
    known = {"loss": 1 / step, "lr": 0.1 / step, "lr_factor": 1 / step}
    held = {"momentum": 0.9, "clip_threshold": 2.0, "features": (0.5,) * NUM_FEATURES}
    return Decision(**{"step": step, "action": (0.25, -0.5, 1.0), **known, **held, **changes})


CUT = Intervention(step=18, kind="lr_cut", detail="loss 12 times its best")
RUN = [
    decision(10, clip_threshold=math.inf, momentum=None),
    decision(20, valid_loss=0.75, interventions=(CUT,)),
    decision(30, loss=math.nan),
]


def test_scalars_leave_out_what_is_unknown():
    assert scalars(RUN[1]) == {
        "pacesetter/loss": 0.05,
        "pacesetter/valid_loss": 0.75,
        "pacesetter/lr": 0.005,
        "pacesetter/lr_factor": 0.05,
        "pacesetter/momentum": 0.9,
        "pacesetter/clip_threshold": 2.0,
        "pacesetter/action/log_lr": 0.25,
        "pacesetter/action/log_one_minus_momentum": -0.5,
        "pacesetter/action/log_clip_ratio": 1.0,
    }
    missing = {"momentum", "clip_threshold", "valid_loss"}
    assert scalars(RUN[1]).keys() - scalars(RUN[0]).keys() == {f"pacesetter/{n}" for n in missing}
    assert "pacesetter/loss" not in scalars(RUN[2])


def read_events(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize("own_writer", [False, True])
def test_tensorboard_reads_back_what_was_decided(own_writer, tmp_path):
    pytest.importorskip("tensorboard")
    target = tmp_path / "events"
    if own_writer:
        target = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(target))
    callback = TensorBoardCallback(target)
    for taken in RUN:
        callback.on_decision(taken)
    events = read_events(tmp_path / "events")  # without closing: nothing may be lost in a crash
    names = {name for taken in RUN for name in scalars(taken)}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        expected = {d.step: scalars(d)[name] for d in RUN if name in scalars(d)}
        found = {e.step: e.value for e in events.Scalars(name)}
        assert found == {step: pytest.approx(v, rel=1e-6) for step, v in expected.items()}
    (event,) = events.Tensors("pacesetter/interventions/text_summary")
    assert event.step == 18
    assert event.tensor_proto.string_val == [b"lr_cut at 18: loss 12 times its best"]
    if own_writer:
        target.close()


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pacesetter\[train\]'"):
        TensorBoardCallback(tmp_path)


class FakeRun:
    """Keeps what a run of Weights & Biases is told."""

    def __init__(self):
        self.axes, self.logged = {}, []

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)


@pytest.mark.parametrize("given", [False, True])
def test_wandb_is_told_on_an_axis_of_its_own(given, monkeypatch):
    run = FakeRun()
    if not given:
        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    callback = WandbCallback(run if given else None)
    for taken in RUN:
        callback.on_decision(taken)
    assert run.axes == {"pacesetter/step": None, "pacesetter/*": "pacesetter/step"}
    assert [values["pacesetter/step"] for values in run.logged] == [10, 20, 30]
    for values, taken in zip(run.logged, RUN, strict=True):
        assert scalars(taken).items() <= values.items()
    texts = [values.get("pacesetter/interventions") for values in run.logged]
    assert texts == [None, "lr_cut at 18: loss 12 times its best", None]


def test_wandb_without_a_run_or_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    with pytest.raises(RuntimeError, match=r"call wandb.init\(\) first"):
        WandbCallback()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        WandbCallback()


def test_csv_is_that_of_the_history_at_any_moment(tmp_path):
    path, history = tmp_path / "new" / "run.csv", History()
    callback = CSVCallback(path)
    assert not path.exists()
    for taken in RUN:
        callback.on_decision(taken)
        history.append(taken)
        expected = history.to_csv(tmp_path / "expected.csv").read_bytes()
        assert path.read_bytes() == expected
    assert [p.name for p in path.parent.iterdir()] == ["run.csv"]


def test_a_resumed_run_replaces_the_lines_that_it_takes_again(tmp_path):
    path, whole = tmp_path / "run.csv", tmp_path / "whole.csv"
    for target, parts in ((whole, [RUN]), (path, [RUN, RUN[1:]])):
        for part in parts:  # killed after step 30, resumed from a checkpoint after step 10
            callback = CSVCallback(target)
            for taken in part:
                callback.on_decision(taken)
    assert path.read_bytes() == whole.read_bytes()
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["10", "20", "30"]


@pytest.mark.parametrize("content", ["", "step,loss\n1,2\n", ",".join(reversed(COLUMNS))])
def test_another_file_is_not_overwritten(content, tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match="not a history of this version"):
        CSVCallback(path)
    assert path.read_text() == content
