"""The best known loss of photo-flow: what a far larger flow reaches with far more training.

    python benchmarks/photo_flow_reference.py --sides 3 4

Trains a flow of 12 coupling layers of width 128 for 20,000 steps of AdamW under a cosine, on all
train patches with fresh dequantisation noise at every step, and prints its loss on each split. The
peak learning rate with the least outer-valid loss counts; `photo_flow.BEST_KNOWN` comes from here.
"""

from __future__ import annotations

import argparse

import torch

from pacesetter.inner_models.families.real.photos import (
    Flow,
    FlowShape,
    dequantised_splits,
    negative_log_likelihood,
    photo_patches,
    pixel_statistics,
)
from pacesetter.inner_models.task import SPLITS

BATCH_SIZE = 512


def reference(side: int, lr: float, *, steps: int) -> dict[str, float]:
    """Final loss of one run on each split, in nats per row."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    patches = photo_patches(side)[0]
    splits = dequantised_splits(side, num_train=len(patches), generator=generator)
    mean, spread = pixel_statistics(patches)
    levels = patches.flatten(1).double()
    model = Flow(FlowShape(side=side, couplings=12, hidden=128, activation="silu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = levels[torch.randint(len(levels), (BATCH_SIZE,), generator=generator)]
        noise = torch.rand(chosen.shape, generator=generator, dtype=torch.float64)
        rows = ((chosen + noise - mean) / spread).float()
        optimizer.zero_grad()
        negative_log_likelihood(model, (rows,)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return {s: float(negative_log_likelihood(model, getattr(splits, s))) for s in SPLITS}


def main() -> None:
    """Prints a line per side and learning rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    for side in args.sides:
        for lr in args.lrs:
            found = reference(side, lr, steps=args.steps)
            print(side, lr, {name: round(loss, 3) for name, loss in found.items()}, flush=True)


if __name__ == "__main__":
    main()
