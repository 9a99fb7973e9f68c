"""One job, trained by this process alone and by two that it forks, for agent/test_distributed.py.

Every rank writes what it ended with. `python ranks.py FOLDER`
"""

import json
import math
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimizer would import it, in every process
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from jobs import Job, flat, reactive
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from pacesetter.agent.plugin.distributed import Group
from pacesetter.agent.plugin.scheduler import LearnedScheduler

STEPS = 32
# What FSDP2 calls: older versions of torch shard on GPUs only.
SHARDS = hasattr(torch.cpu.Stream, "record_event")
ALONE = ("plain", "plain-broken")
TOGETHER = ("ddp", "ddp-valid", *(("fsdp", "fsdp-broken", "fsdp-saved") if SHARDS else ()))


def prepared(name):
    """The model and its optimizer as one of the ways has them."""
    torch.manual_seed(0)
    # An odd number of rows in places, so that shards differ in size, and one that only rank 0 has.
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1)).double()
    if name == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if name == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(how, out, *, rank=0, world=1):
    name, _, trouble = how.partition("-")
    job, losses, calls = Job(), [], []
    job.model, job.optimizer = prepared(name)
    policy = reactive(clip_ratio_start=0.8)
    scheduler = LearnedScheduler(job.optimizer, STEPS, policy=policy)

    def counted(call):
        def wrapped(*args, **kwargs):
            calls.append(scheduler._run.steps)
            return call(*args, **kwargs)

        return wrapped

    originals = dist.all_reduce, dist.broadcast
    dist.all_reduce, dist.broadcast = map(counted, originals)
    for step in range(STEPS):
        if trouble == "saved" and step == 18:  # a decision was just taken
            old = job.model, job.optimizer, scheduler
            job.model, job.optimizer = prepared(name)
            scheduler = LearnedScheduler(job.optimizer, STEPS, policy=policy)
            exchange(out, old, (job.model, job.optimizer, scheduler))
        rows = torch.tensor([(7 * step + i) % 64 for i in range(8)]).chunk(world)[rank]
        loss = (job.model(job.inputs[rows]) - job.targets[rows]).square().mean()
        job.optimizer.zero_grad()
        loss.backward()
        if trouble == "broken" and step == 16 and rank == world - 1:
            for p in job.model.parameters():
                (p.grad.to_local() if name == "fsdp" else p.grad).fill_(math.nan)
        if trouble == "valid" and step % 7 == 0:
            scheduler.observe_validation(loss.item() * (1 + rank))
        job.optimizer.step()
        scheduler.step(loss)
        losses.append(loss.item())
    dist.all_reduce, dist.broadcast = originals
    if name == "fsdp":
        for module in (job.model, job.model[0]):
            module.unshard()
    result = {
        "losses": losses,
        "weights": flat(job.model).tolist(),
        "history": [
            [d.step, d.loss, d.lr, d.momentum, d.clip_threshold] for d in scheduler.history
        ],
        "features": [d.features for d in scheduler.history],
        "skipped": scheduler.skipped_steps,
        "calls": calls,
    }
    (out / f"{how}-{rank}.json").write_text(json.dumps(result))


def exchange(out, old, new):
    """Saves one job and loads it into another, in the manner of torch.distributed.checkpoint."""
    for job, act in ((old, dcp.save), (new, dcp.load)):
        model, optimizer = get_state_dict(*job[:2])
        act({"model": model, "optim": optimizer, "scheduler": job[2]}, checkpoint_id=out / "dcp")
    set_state_dict(*new[:2], model_state_dict=model, optim_state_dict=optimizer)


def refuse_plain_shards():
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns while it is imported

    net = nn.Linear(4, 2)
    zero = ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=1e-2)
    refused = [(zero, "Zero"), (zero.optim, "Zero")]
    for kept in (False, True):
        net = FullyShardedDataParallel(
            nn.Linear(4, 2), use_orig_params=kept, device_id=torch.device("cpu")
        )
        refused.append((torch.optim.AdamW(net.parameters()), "FSDP1"))
    for optimizer, words in refused:
        with pytest.raises(TypeError, match=words):
            LearnedScheduler(optimizer, STEPS)


def use_groups(rank):
    """A group averages and hands around."""
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


def train_together(rank, out):
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    use_groups(rank)
    if SHARDS:
        refuse_plain_shards()
    for how in TOGETHER:
        train(how, out, rank=rank, world=2)
    dist.barrier()
    dist.destroy_process_group()


def main(out):
    # Forked after the imports, which take longer than all else, and before anything is computed.
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=train_together, args=(r, out), daemon=True) for r in range(2)]
    for process in ranks:
        process.start()
    for how in ALONE:
        train(how, out)
    for process in ranks:
        process.join()
    return max(abs(process.exitcode) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
