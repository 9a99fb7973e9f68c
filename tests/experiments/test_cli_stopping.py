"""Ctrl-C and SIGTERM: stop where nothing is lost, say how to go on, and go on."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from pacesetter.agent.runs.interruption import (
    Stopped,
    deferring,
    heeding_signals,
    safe_point,
    stop_requested,
)
from pacesetter.agent.training.callbacks import CHECKPOINT, POLICY
from pacesetter.experiments import comparison
from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.presets import PRESETS

CLI = [sys.executable, "-m", "pacesetter.experiments.cli.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PATIENCE = 250
"""Seconds; only a broken test waits as long."""

JOB = """
import multiprocessing
import time
from pathlib import Path

import torch
from torch import nn
from pacesetter.inner_models.families.convex import Quadratic, QuadraticRanges

short = Quadratic(QuadraticRanges(horizon=(20, 24)))

if multiprocessing.parent_process() is not None:
    Path("working").touch()

def build():
    return nn.Linear(3, 1)

def make_task(seed):
    if not Path("go").exists():
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    x = torch.randn(90, 3)
    parts = [(p, p.sum(1, keepdim=True)) for p in x.split(30)]
    return build, parts, nn.MSELoss(), {"horizon": 20}
"""

pytestmark = pytest.mark.processes


@pytest.fixture
def start(tmp_path):
    """Starts a command in `tmp_path`, its output going to files."""
    (tmp_path / "job.py").write_text(JOB)
    running = []

    def start(*argv):
        with (tmp_path / "out.txt").open("w") as out, (tmp_path / "err.txt").open("w") as err:
            process = subprocess.Popen(
                [*CLI, *argv],
                cwd=tmp_path,
                env=ENVIRONMENT,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a terminal would send Ctrl-C to all of it, as we do
            )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def wait_for(happened, process):
    end = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, "the command ended before its time"
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


def go_on(errors):
    """The arguments of the command that goes on, as the user is told them."""
    line = next(line for line in errors.splitlines() if "go on with:" in line)
    words = shlex.split(line.partition("go on with: ")[2])
    assert words[0] == "pacesetter"
    return words[1:]


GOAL = 2_000
"""Decisions of a training that ends in some seconds, and not before it can be stopped."""


@pytest.mark.slow
def test_train_stops_after_its_rollout_and_goes_on(tmp_path, start):
    given = ("--preset", "smoke", "--decisions", str(GOAL), "--families", "job:short")
    process = start("train", *given, "--validation-families", "job:short", "--out", "run")
    checkpoint = tmp_path / "run" / CHECKPOINT
    wait_for(checkpoint.exists, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    errors = (tmp_path / "err.txt").read_text()
    assert "Ctrl-C: stopping as soon as nothing is lost by it" in errors
    assert "Traceback" not in errors
    done = torch.load(checkpoint, weights_only=True)["num_timesteps"]
    assert PRESETS["smoke"].rollout <= done < GOAL
    process = start(*go_on(errors))
    assert process.wait(PATIENCE) == 0
    assert (tmp_path / "run" / POLICY).is_file()
    assert torch.load(checkpoint, weights_only=True)["num_timesteps"] >= GOAL


def compare(*more):
    given = ("--task", "job:make_task", "--trials", "2", "--seeds", "1", "--out", "run")
    return ("compare", *given, "--arms", "adamw-cosine,policy", *more)


def test_compare_stops_after_its_unit_and_goes_on(tmp_path, start, monkeypatch):
    process = start(*compare("--json"))
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "SIGTERM: stopping as soon" in (tmp_path / "err.txt").read_text(), process)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 143
    errors = (tmp_path / "err.txt").read_text()
    assert "Traceback" not in errors
    assert '"stopped": "SIGTERM"' in (tmp_path / "out.txt").read_text()
    assert (tmp_path / "run" / "studies.db").is_file()  # the first round of trials is kept
    assert not (tmp_path / "run" / "tasks").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "job", raising=False)
    monkeypatch.setattr(comparison, "write_report", lambda path, report: path.touch())
    assert cli.main(go_on(errors)) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_workers_do_not_outlive_it(tmp_path, start):
    (tmp_path / "go").touch()
    process = start(*compare("schedule-free", "--jobs", "2", "--steps", "20000"))
    wait_for((tmp_path / "working").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "once more stops at once" in (tmp_path / "err.txt").read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "--resume" in (tmp_path / "err.txt").read_text()


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    time.sleep(0)  # handlers run between two instructions of the interpreter


def test_without_a_deferral_a_signal_stops_at_once():
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(Stopped) as stop, heeding_signals():
            send(number)
        assert (stop.value.number, stop.value.safely) == (number, False)
        assert signal.getsignal(number) is before


def test_a_deferred_signal_waits_for_a_safe_point(capfd):
    with heeding_signals():
        with deferring():
            safe_point()
            assert not stop_requested()
            send()
            assert stop_requested()
            with pytest.raises(Stopped) as stop:
                safe_point()
            assert stop.value.safely
            with pytest.raises(Stopped) as stop:
                send(signal.SIGTERM)
            assert (stop.value.number, stop.value.safely) == (signal.SIGTERM, False)
        assert not stop_requested()
        safe_point()  # the work was over before it was heeded
        with pytest.raises(Stopped):
            send()
    assert capfd.readouterr().err.count("stopping as soon as nothing is lost") == 1


def test_in_a_script_of_the_users_nothing_changes():
    # A suite that runs in the background of a shell ignores SIGINT from the start.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with deferring():
            safe_point()
            assert not stop_requested()
            with pytest.raises(KeyboardInterrupt) as stop:
                send()
        assert type(stop.value) is KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, inherited)
