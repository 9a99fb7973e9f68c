"""Recorded schedules: kept, written, read, and replayed; those of runs: test_plug_in_options.py."""

import csv
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.plugin.history import RecordedSchedule

LRS = (0.1, 0.0, 3e-3)


def make_optimizer():
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in LRS]
    return torch.optim.AdamW(groups)


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
    optimizer = make_optimizer()
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
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
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
        ("1,0.5", "1,nan", r"line 3: lr_factor must be finite"),
        ("1,0.5", "1,-1", r"line 3: lr_factor must be finite and not negative"),
        ("1,0.5", "2,0.5", r"line 3: expected step 1, but got 2"),
        ("0,1,", ",1,", r"line 2: step must be a number, but got ''"),
        ("0.9", "1.5", r"line 2: momentum must lie in \[0, 1\), but got 1.5"),
        ("0.9", "x", r"line 2: momentum must be a number, but got 'x'"),
        (",inf", ",0", r"line 2: clip_threshold must be positive"),
        (",inf", ",nan", r"line 2: clip_threshold must be positive"),
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
    schedule, other = sample(), RecordedSchedule()
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(schedule, other)
    factor = schedule.lr_lambda()
    last = schedule.lr_factors[-1]
    schedule.append(7.0, momentum=0.5)
    assert (len(other), len(schedule)) == (50, 51)
    assert factor(10**9) == last != 7.0


def test_an_empty_schedule_cannot_be_replayed(tmp_path):
    schedule = RecordedSchedule()
    assert repr(schedule) == "<RecordedSchedule of 0 updates>"
    with pytest.raises(ValueError, match="empty"):
        schedule.to_lambda_lr(make_optimizer())
    assert len(RecordedSchedule.from_csv(schedule.to_csv(tmp_path / "e.csv", base_lr=1.0))) == 0
