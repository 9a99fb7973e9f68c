"""Jobs on several processes: two of them, with gloo on the CPU, started as a user starts them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pacesetter.agent.plugin.distributed import Group

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(),
        reason="needs torch.distributed, gloo",
    ),
]
STEPS = 60

# One job, trained in several ways: every rank writes what it ended with. On two processes, it is
# also seen that a group averages and hands around.
SCRIPT = """
import json, math, os, sys
import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pacesetter.agent.plugin.distributed import Group
from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import NUM_FEATURES

out, steps, *ways = sys.argv[1:]
steps = int(steps)


def train(how):
    name, _, trouble = how.partition("-")
    parallel = name != "plain"
    rank = dist.get_rank() if parallel else 0
    world = dist.get_world_size() if parallel else 1

    rng = np.random.default_rng(0)
    shapes = [(8, NUM_FEATURES), (3, 8)]
    layers = [(0.15 * rng.normal(size=s), 0.15 * rng.normal(size=s[0])) for s in shapes]
    policy = Policy(layers, control=ControlConfig(clip_ratio_start=0.8))

    torch.manual_seed(0)
    dtype = torch.float64
    # An odd number of rows in places, so that shards differ in size, and one that only rank 0 has.
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)).to(dtype)
    if name == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if name == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = LearnedScheduler(optimizer, steps, policy=policy)

    collectives = []
    if parallel:
        def counted(call):
            def wrapped(*args, **kwargs):
                collectives.append((scheduler._run.steps, call.__name__))
                return call(*args, **kwargs)
            return wrapped
        originals = dist.all_reduce, dist.broadcast
        dist.all_reduce, dist.broadcast = map(counted, originals)

    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 4, generator=g, dtype=dtype)
    targets = inputs.sin().sum(1, keepdim=True)
    losses = []
    for step in range(steps):
        rows = torch.tensor([(7 * step + i) % 64 for i in range(8)]).chunk(world)[rank]
        loss = (model(inputs[rows]) - targets[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if trouble == "broken" and step == 20 and rank == world - 1:
            grads = [p.grad for p in model.parameters()]
            for grad in grads:
                (grad.to_local() if name == "fsdp" else grad).fill_(math.nan)
        if trouble == "valid" and step % 7 == 0:
            scheduler.observe_validation(loss.item() * (1 + rank))
        optimizer.step()
        scheduler.step(loss)
        losses.append(loss.item())
    weights = [p.full_tensor() if name == "fsdp" else p for p in model.parameters()]
    result = {
        "losses": losses,
        "weights": torch.cat([w.detach().flatten() for w in weights]).tolist(),
        "history": [
            [d.step, d.loss, d.lr, d.momentum, d.clip_threshold] for d in scheduler.history
        ],
        "features": [d.features for d in scheduler.history],
        "skipped": scheduler.skipped_steps,
        "collectives": collectives,
    }
    if parallel:
        dist.all_reduce, dist.broadcast = originals
    with open(f"{out}/{how}-{rank}.json", "w") as file:
        json.dump(result, file)


def use_groups():
    rank = dist.get_rank()
    table = np.arange(6.0).reshape(2, 3)
    for group in (Group(), Group(dist.new_group([0, 1]))):
        rows = table + 10 * rank
        assert group.size == 2
        assert (group.reduce(rows) == table + 5).all()
        assert (group.broadcast(rows) == table).all()
        assert (rows == table + 10 * rank).all()  # nothing is changed in place
        rows[0, 0] = math.nan if rank else 1.0
        assert math.isnan(group.reduce(rows)[0, 0])
    alone = [Group(dist.new_group([r])) for r in range(2)][rank]
    assert alone.size == 1
    assert alone.reduce(rows) is rows


if not ways[0].startswith("plain"):
    dist.init_process_group("gloo")
    use_groups()
for how in ways:
    train(how)
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # a thread of gloo's may abort an interpreter that shuts down
"""


# What FSDP2 calls: older versions of torch shard on GPUs only.
SHARDS = hasattr(torch.cpu.Stream, "record_event")
FSDP = ("fsdp", "fsdp-broken") if SHARDS else ()
WAYS = {1: ("plain", "plain-broken"), 2: ("ddp", "ddp-valid", *FSDP)}
needs_shards = pytest.mark.skipif(not SHARDS, reason="this torch has no FSDP2 on the CPU")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Runs the job in all ways; returns what every rank has written, way by way."""
    out = tmp_path_factory.mktemp("ranks")
    script = out / "job.py"
    script.write_text(SCRIPT, encoding="utf-8")
    found = {}
    for processes, ways in WAYS.items():
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*command, str(script), str(out), str(STEPS), *ways],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=140,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for way in ways:
            files = [out / f"{way}-{rank}.json" for rank in range(processes)]
            found[way] = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    return found


@pytest.mark.parametrize(
    "how",
    ["ddp", "ddp-valid", *(pytest.param(f"fsdp{x}", marks=needs_shards) for x in ("", "-broken"))],
)
def test_all_ranks_take_the_same_decisions(job, how):
    first, second = job[how]
    assert first["losses"] != second["losses"]
    assert len(first["history"]) > 20
    assert first["history"] == second["history"]
    assert first["weights"] == second["weights"]
    assert first["skipped"] == second["skipped"]
    # Each has its own validation losses; the first rank's view decides.
    assert (first["features"] != second["features"]) == (how == "ddp-valid")


@pytest.mark.parametrize(
    ("how", "tolerance"), [("ddp", 1e-6), pytest.param("fsdp", 1e-5, marks=needs_shards)]
)
def test_two_processes_do_what_one_does_with_the_whole_batch(job, how, tolerance):
    (whole,), (first, second) = job["plain"], job[how]
    np.testing.assert_allclose(first["weights"], whole["weights"], atol=tolerance)
    np.testing.assert_allclose(first["history"], whole["history"], rtol=tolerance)
    np.testing.assert_allclose(first["features"], whole["features"], atol=tolerance)
    mean = (np.array(first["losses"]) + second["losses"]) / 2
    np.testing.assert_allclose(mean, whole["losses"], atol=tolerance)


@needs_shards
def test_a_shard_that_breaks_has_all_ranks_skip_the_update(job):
    (whole,), (first, second) = job["plain-broken"], job["fsdp-broken"]
    assert first["skipped"] == second["skipped"] == whole["skipped"] == 1
    np.testing.assert_allclose(first["weights"], whole["weights"], atol=1e-5)


def test_data_parallelism_has_no_collective_but_at_decisions(job):
    (first, _) = job["ddp"]
    decisions = [row[0] for row in first["history"]]
    calls = [step for step, _ in first["collectives"] if step < STEPS]
    assert set(calls) == set(decisions)
    assert len(calls) <= 3 * len(decisions)


def test_a_group_of_one_is_no_group():
    group, rows = Group(), np.arange(6.0).reshape(2, 3)
    assert group.size == 1
    assert group.reduce(rows) is rows
    assert group.broadcast(rows) is rows
