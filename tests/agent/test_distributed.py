"""Jobs on several processes: two of them, with gloo on the CPU."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import ranks
from ranks import SHARDS, TOGETHER

from pacesetter.agent.plugin.distributed import Group

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Runs the job in all ways; returns what every rank has written, way by way."""
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, ranks.__file__, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for file in sorted(out.glob("*.json")):
        found.setdefault(file.stem.rpartition("-")[0], []).append(json.loads(file.read_text()))
    return found


@pytest.mark.parametrize("how", TOGETHER)
def test_all_ranks_take_the_same_decisions(job, how):
    first, second = job[how]
    assert first["losses"] != second["losses"]
    assert len(first["history"]) > 12
    assert first["history"] == second["history"]
    assert first["weights"] == second["weights"]
    assert first["skipped"] == second["skipped"]
    # Each has its own validation losses; the first rank's view decides.
    assert (first["features"] != second["features"]) == (how == "ddp-valid")


@pytest.mark.parametrize("how", [how for how in TOGETHER if "-" not in how])
def test_two_processes_do_what_one_does_with_the_whole_batch(job, how):
    tolerance = 1e-6 if how == "ddp" else 1e-5
    (whole,), (first, second) = job["plain"], job[how]
    np.testing.assert_allclose(first["weights"], whole["weights"], atol=tolerance)
    np.testing.assert_allclose(first["history"], whole["history"], rtol=tolerance)
    np.testing.assert_allclose(first["features"], whole["features"], atol=tolerance)
    mean = (np.array(first["losses"]) + second["losses"]) / 2
    np.testing.assert_allclose(mean, whole["losses"], atol=tolerance)


@pytest.mark.skipif(not SHARDS, reason="this torch has no FSDP2 on the CPU")
def test_a_distributed_checkpoint_loads_in_place(job):
    for through, resumed in zip(job["fsdp"], job["fsdp-saved"], strict=True):
        for what in ("losses", "history", "features"):
            assert resumed[what] == through[what]


@pytest.mark.skipif(not SHARDS, reason="this torch has no FSDP2 on the CPU")
def test_a_shard_that_breaks_has_all_ranks_skip_the_update(job):
    (whole,), (first, second) = job["plain-broken"], job["fsdp-broken"]
    assert first["skipped"] == second["skipped"] == whole["skipped"] == 1
    np.testing.assert_allclose(first["weights"], whole["weights"], atol=1e-5)


def test_data_parallelism_has_no_collective_but_at_decisions(job):
    (first, _) = job["ddp"]
    decisions = [row[0] for row in first["history"]]
    calls = [step for step in first["calls"] if step < len(first["losses"])]
    assert set(calls) == set(decisions)
    assert len(calls) <= 3 * len(decisions)


def test_a_group_of_one_is_no_group():
    group, rows = Group(), np.arange(6.0).reshape(2, 3)
    assert group.size == 1
    assert group.reduce(rows) is rows
    assert group.broadcast(rows) is rows
