"""Execution in worker processes: the same results; a death costs one run; what cannot be sent."""

import importlib
import os
import threading
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace

import pytest

from pacesetter.experiments.compare_config import named_task
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.batched import RunOptions
from pacesetter.experiments.runs.execution import Job, Spread, opened
from pacesetter.experiments.runs.matrix import BaselineGroup

ROWS = {b.name: b for b in BASELINES}
OPTIONS = RunOptions(evaluate=("outer_valid", "test"))
FATAL = """
import os

def fatal(params, h, task):
    os._exit(3)
"""


def job(*configured, task, seeds=(0,)):
    return Job("a job", BaselineGroup(rows=configured, seeds=seeds, options=OPTIONS), task)


def results(jobs, *, workers):
    with opened(jobs=workers) as execution:
        found = dict(execution.run(jobs))
    return [found[i] for i in range(len(jobs))]


@pytest.fixture
def task():
    return replace(named_task("tabular-mlp/1"), horizon=12)


@pytest.fixture
def fatal(tmp_path, monkeypatch):
    """An arm that kills its process."""
    (tmp_path / "fatal_optimizer.py").write_text(FATAL)
    monkeypatch.syspath_prepend(tmp_path)
    optimizer = importlib.import_module("fatal_optimizer").fatal
    return replace(ROWS["nadam-cosine"], name="fatal", optimizer=optimizer)


class Fragile(Spread):
    """Workers that die of one setting, without any processes."""

    def submit(self, job):
        future = Future()
        if any(c.setting["lr"] == 0.5 for c in job.work.rows):
            future.set_exception(BrokenExecutor())
        else:
            future.set_result(job.work.run(job.task))
        return future


def test_a_worker_that_dies_fails_its_own_run_only(task):
    row = ROWS["adamw-constant"]
    settings = [Configured(row, {"lr": lr}) for lr in (0.01, 0.5, 0.02)]
    jobs = [job(*settings, task=task, seeds=(0, 1)), job(settings[0], task=task)]
    found = dict(Fragile(2).run(jobs))
    assert [r.lr for r in found[0]] == [0.01, 0.01, 0.5, 0.5, 0.02, 0.02]
    assert [r.failed is not None for r in found[0]] == [False, False, True, True, False, False]
    assert "worker process died" in found[0][2].failed
    assert found[1][0].losses == pytest.approx(found[0][0].losses, rel=1e-5)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers_and_one_may_die(task, fatal):
    calm = Configured(ROWS["nadam-cosine"], {"lr": 0.01})
    jobs = [job(calm, task=task, seeds=(seed,)) for seed in range(3)]
    jobs.append(job(Configured(ROWS["adamw-cosine"], {"lr": 0.01}), task=task))
    alone = results(jobs, workers=1)
    deadly = job(Configured(fatal, {"lr": 0.01}), calm, task=task)
    *found, (dead, survivor) = results([*jobs, deadly], workers=2)
    for (one,), (other,) in zip(alone, found, strict=True):
        assert one.failed is None
        assert one.losses == pytest.approx(other.losses, rel=1e-6)
        assert one.metric == other.metric
    assert "worker process died" in dead.failed
    assert survivor.losses == found[0][0].losses


class Pid:
    """Says which process does it."""

    def run(self, task):
        return os.getpid()

    def halves(self):
        return []


@pytest.mark.slow
def test_what_cannot_be_sent_is_done_here():
    stuck = Pid()
    stuck.lock = threading.Lock()
    assert results([Job("here", stuck, None)], workers=2) == [os.getpid()]
