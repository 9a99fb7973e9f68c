"""What the plug-in costs: a job with it, against the same job that clips with `clip_grad_norm_`.

    python benchmarks/overhead.py --device cpu --out benchmarks/results/overhead.txt

Two copies of a job take turns, block by block, in one process; a block is as long as an interval
of the plug-in on average, so that it holds a decision with all that belongs to it. A ratio is taken
of each pair of blocks, and shown as the median over pairs with its quartiles. `mlp` has 100k
parameters and batches of 128, `transformer` 10M and batches of 4 x 64 tokens. On CUDA, where
optimizers are fused, the waits of the host for the device are counted too, by torch's profiler, in
a job with the plug-in and in one without.

Numbers of a machine that does something else as well are worth nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pacesetter.agent import LearnedScheduler

STEPS, INTERVALS = 1000, 40
BLOCK = STEPS // INTERVALS
TARGETS = {"mlp": 1.05, "transformer": 1.01}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Transformer(nn.Module):
    """A language model of 10M parameters over bytes."""

    def __init__(self, width: int = 320, layers: int = 8, context: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=8, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: (batch, context) -> (batch, 256, context)."""
        hidden = self.encoder(self.embedding(tokens), mask=self.mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits.transpose(1, 2)


def make_job(name: str, *, plugged: bool, rollback: bool | None, device: str) -> Callable[[], None]:
    """A call that does one step of a job; all jobs of one name begin alike."""
    torch.manual_seed(0)
    if name == "mlp":
        sizes = (64, 256, 256, 64, 10)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers[:-1])
        inputs, targets = torch.randn(32, 128, 64), torch.randint(10, (32, 128))
    else:
        model = Transformer()
        inputs, targets = torch.randint(256, (2, 32, 4, 64))
    model, inputs, targets = model.to(device), inputs.to(device), targets.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.startswith("cuda"))
    scheduler = None
    if plugged:
        scheduler = LearnedScheduler(optimizer, STEPS, model=model, rollback=rollback)
    batches = 0

    def step() -> None:
        nonlocal batches
        at = batches % len(inputs)
        batches += 1
        loss = nn.functional.cross_entropy(model(inputs[at]), targets[at])
        loss.backward()
        if scheduler is None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step(loss)
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], *, device: str) -> float:
    """Time of one block, the device's work included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(BLOCK):
        step()
    wait()
    return time.perf_counter() - start


def measure(
    name: str, *, blocks: int, repeats: int, rollback: bool | None, device: str
) -> np.ndarray:
    """Seconds of a step without and with the plug-in, pair by pair: shape (2, pairs)."""
    pairs = []
    for _ in range(repeats):
        bare, plugged = (
            make_job(name, plugged=p, rollback=rollback, device=device) for p in (False, True)
        )
        for block in range(blocks):
            # Each goes first in turn: what drifts over time then favours neither.
            order = (bare, plugged) if block % 2 else (plugged, bare)
            first, second = (seconds(step, device=device) for step in order)
            if block:  # the first block allocates
                pairs.append((first, second) if block % 2 else (second, first))
    return np.array(pairs).T / BLOCK


def waits(name: str, *, plugged: bool, device: str) -> list[int]:
    """How often the host waits for the device, block by block."""
    step = make_job(name, plugged=plugged, rollback=None, device=device)
    seconds(step, device=device)
    counts = []
    for _ in range(3):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            for _ in range(BLOCK):
                step()
        counts.append(sum(event.name in WAITS for event in watched.events()))
    return counts


def report(
    name: str, *, blocks: int, repeats: int, rollback: bool | None, device: str
) -> list[str]:
    """The lines on one model."""
    bare, plugged = measure(name, blocks=blocks, repeats=repeats, rollback=rollback, device=device)
    low, middle, high = np.percentile(plugged / bare, (25, 50, 75))
    lines = [
        f"{name:12s} {device:5s} {1e6 * np.median(bare):10,.0f} us a step without, "
        f"{1e6 * np.median(plugged):10,.0f} with; ratio {middle:.4f} ({low:.4f} to {high:.4f}) "
        f"over {len(bare)} pairs of blocks; target {TARGETS[name]:.2f}"
    ]
    if device.startswith("cuda"):
        without, with_it = (waits(name, plugged=p, device=device) for p in (False, True))
        lines.append(
            f"{name:12s} {device:5s} waits of the host in blocks of {BLOCK} steps: "
            f"{without} without, {with_it} with"
        )
    return lines


def main() -> None:
    """Measures and, where asked, writes the lines to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--device", help="default: cpu, and cuda where there is one")
    parser.add_argument("--repeats", type=int, default=3, help="of the whole (default: 3)")
    parser.add_argument(
        "--blocks", type=int, help="of a job's 40 (default: 40; of the transformer on a CPU, 8)"
    )
    parser.add_argument("--no-rollback", action="store_true", help="keep no snapshots")
    parser.add_argument("--out", type=Path, help="write the lines to this file")
    args = parser.parse_args()
    devices = [args.device] if args.device else ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    lines = [
        f"python benchmarks/overhead.py --repeats {args.repeats}"
        f"{' --no-rollback' if args.no_rollback else ''}: torch {torch.__version__}, "
        f"python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads"
    ]
    print(lines[0])
    for device in devices:
        if device.startswith("cuda"):
            lines.append(torch.cuda.get_device_name(device))
            print(lines[-1])
        for name in args.models:
            short = name == "transformer" and device == "cpu"
            found = report(
                name,
                blocks=min(args.blocks or (8 if short else INTERVALS), INTERVALS),
                repeats=args.repeats,
                rollback=False if args.no_rollback else None,
                device=device,
            )
            print(*found, sep="\n", flush=True)
            lines += found
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(args.out)


if __name__ == "__main__":
    main()
