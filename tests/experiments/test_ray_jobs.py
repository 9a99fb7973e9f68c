"""Commands and comparisons on a Ray cluster: the results of the local engine, and nothing twice."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from pacesetter.agent.training.callbacks import CHECKPOINT, POLICY, VALIDATION
from pacesetter.agent.training.engines import RayEngine
from pacesetter.agent.training.train import train
from pacesetter.experiments import comparison as compare_module
from pacesetter.experiments.comparison import CompareConfig, compare
from pacesetter.experiments.presets import PRESETS
from pacesetter.experiments.rivals.baselines import OPEN_LOOP, STRICT
from pacesetter.experiments.rivals.baselines import POLICY as POLICY_ARM
from pacesetter.experiments.runs.execution import Job, RaySpread, opened
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.registry import fixed_task

pytest.importorskip("ray", reason="needs Ray: pip install 'pacesetter[ray]'")
# On a busy machine a worker may take long to start, and then the engine says so.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:waiting for"),
    pytest.mark.usefixtures("one_thread"),
]

FAMILY = TeacherMLP(TeacherRanges(num_train=(128, 256), horizon=(24, 40), eval_rows=32))


def command(out, address, *more):
    words = "train --preset smoke --decisions 1000 --seed 7 --engine ray --workers 2 --quiet"
    words += " --families quadratic --validation-families quadratic"
    places = ["--address", address, "--out", str(out)]
    cli = [sys.executable, "-m", "pacesetter.experiments.cli.main"]
    return [*cli, *words.split(), *places, *more]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_driver_killed_by_kill_9_resumes_to_the_policy_of_the_local_engine(cluster, tmp_path):
    family = {"families": ("quadratic",), "validation_families": ("quadratic",)}
    config = replace(PRESETS["smoke"], decisions=1_000, **family)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(killed, cluster.address), env=ENVIRONMENT, **silent)
    checkpoint = killed / CHECKPOINT
    try:
        while process.poll() is None and not (
            checkpoint.exists()
            and torch.load(checkpoint, weights_only=True)["num_timesteps"] >= 2 * config.rollout
        ):
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    done = torch.load(checkpoint, weights_only=True)["num_timesteps"]
    assert 2 * config.rollout <= done < config.rollouts * config.rollout
    again = command(killed, cluster.address, "--resume")
    subprocess.run(again, check=True, env=ENVIRONMENT, capture_output=True)
    train(config, whole, seed=7, progress=False, preset="smoke")
    for name in (POLICY, VALIDATION):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


COMPARED = CompareConfig(
    arms=(POLICY_ARM.name, OPEN_LOOP.name, STRICT.name, "adamw-constant", "schedule-free"),
    num_seeds=1,
    trials=6,
    replay_tasks=1,
)


def comparison(out, tasks, **options):
    found = compare(COMPARED, out, tasks=tasks, families=[FAMILY], **options)
    return [replace(record, wall_seconds=0.0) for record in found.records]


class Stop(Exception):  # noqa: N818
    """Stands for the end of the driver."""


def test_a_comparison_is_the_same_on_a_cluster_and_nothing_is_done_twice(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare_module, "write_report", lambda path, report: None)
    tasks = [replace(fixed_task("quadratic", i), horizon=12) for i in (0, 1)]
    whole = comparison(tmp_path / "here", tasks)
    begun, original = [], RaySpread.submit

    def submit(pool, job):
        if len(begun) == stop_at:
            raise Stop
        begun.append(job.name)
        return original(pool, job)

    monkeypatch.setattr(RaySpread, "submit", submit)
    monkeypatch.setattr(RaySpread, "_alone", lambda pool, job: submit(pool, job).result())
    engine = RayEngine(workers=2)
    # A replay; per task two rounds of siblings, and five single trials and one; pieces.
    for stop_at in (7, 18, -1):
        if stop_at >= 0:
            with pytest.raises(Stop):
                comparison(tmp_path / "there", tasks, engine=engine, resume=bool(begun))
        else:
            found = comparison(tmp_path / "there", tasks, engine=engine, resume=True)
    assert repr(found) == repr(whole)
    jobs = 1 + 2 * (1 + 5 + 1 + 1) + 2 * len({"agents", "siblings", "schedule-free"}) + 2
    assert jobs <= len(begun) <= jobs + 2  # but for what was under way at a stop
    begun.clear()
    again = comparison(tmp_path / "there", tasks, engine=engine, resume=True)
    assert repr(again) == repr(whole)
    assert not begun


class DiesOnce:
    def __init__(self, path):
        self.path = path

    def run(self, task):
        if not self.path.exists():
            self.path.touch()
            os._exit(1)
        return torch.get_num_threads()


class Fails:
    def run(self, task):
        raise ValueError("no such thing")


def test_a_job_whose_worker_dies_is_done_again(cluster, tmp_path):
    with opened(engine=RayEngine(workers=2, threads=1)) as execution:
        jobs = [Job(f"job {i}", DiesOnce(tmp_path / str(i)), None) for i in range(2)]
        assert dict(execution.run(jobs)) == {0: 1, 1: 1}
        with pytest.raises(ValueError, match="no such thing"):
            list(execution.run([Job("bad", Fails(), None)]))
