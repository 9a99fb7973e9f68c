"""Two processes, one model: distributed data parallel with the plug-in.

    torchrun --nproc-per-node 2 examples/ddp.py

Run without torchrun it starts the two processes itself. Each sees its own half of every batch; all
take the same decisions, so nothing but the usual lines is needed.
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pacesetter.agent import LearnedScheduler

STEPS, BATCH = 200, 64


def main() -> None:
    """What each process runs."""
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2048, 8, generator=generator)
    targets = inputs.sin().sum(1, keepdim=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    scheduler = LearnedScheduler(optimizer, total_steps=STEPS)
    for step in range(STEPS):
        rows = torch.randint(2048, (BATCH,), generator=generator)[rank::world]
        loss = nn.functional.mse_loss(model(inputs[rows].to(device)), targets[rows].to(device))
        loss.backward()
        optimizer.step()
        scheduler.step(loss)  # its own loss: the ranks' losses are averaged at each decision
        optimizer.zero_grad()
        if rank == 0 and step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.4f}, lr {scheduler.get_last_lr()[0]:.2e}")
    rates = [None] * world
    dist.all_gather_object(rates, [decision.lr for decision in scheduler.history])
    if rank == 0:
        print(f"{len(rates[0])} decisions, the same on all ranks: {rates[0] == rates[-1]}")
    dist.barrier()  # nobody leaves while another is still talking
    dist.destroy_process_group()
    sys.stdout.flush()
    # All is done. An interpreter that shuts down in the usual way is now and then aborted by a
    # thread of gloo's that is still there ("terminate called without an active exception").
    os._exit(0)


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sys.exit(subprocess.call([*command, "--nproc-per-node", "2", __file__]))
