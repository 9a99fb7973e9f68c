"""What the throughput benchmark measures with: models, clocks, matrix products, memory."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp
from pacesetter.inner_models.networks.transformer import LanguageModel, TransformerShape
from pacesetter.inner_models.task import Splits, Task

INTERVAL = 10
"""Inner steps between decisions; about the mean of a horizon of 400 in 40 intervals."""
ROWS = 1024
aten = torch.ops.aten


def torch_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropy as a user writes it."""
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


def model_task(name: str, seed: int) -> Task:
    """One task of a benchmark model, with data and weights of its own.

    ``mlp``: 64-32-32-10 on batches of 64. ``convnet``: two layers of 8 and 16 channels with pooling
    on images of 8 x 8, batches of 64. ``transformer``: two layers of width 32 with two heads,
    context 16 over 16 symbols, batches of 16.
    """
    g = torch.Generator().manual_seed(seed)
    batch_size = 64
    if name == "mlp":
        shape = MLPShape(widths=(64, 32, 32, 10), activation="relu")
        build: Callable[[], nn.Module] = partial(build_mlp, shape)
        data = torch.randn(ROWS + 96, 64, generator=g), torch.randint(10, (ROWS + 96,), generator=g)
    elif name == "convnet":
        build = partial(
            build_convnet,
            ConvShape(image=(1, 8), channels=(8, 16), activation="relu", head="flatten"),
        )
        images = torch.randn(ROWS + 96, 1, 8, 8, generator=g)
        data = images, torch.randint(10, (ROWS + 96,), generator=g)
    elif name == "transformer":
        build = partial(
            LanguageModel,
            TransformerShape(vocabulary=16, width=32, heads=2, layers=2, context=16),
        )
        tokens = torch.randint(16, (ROWS + 96, 17), generator=g)
        data, batch_size = (tokens[:, :-1], tokens[:, 1:]), 16
    else:
        raise ValueError(f"model must be mlp, convnet or transformer, but got {name!r}")
    parts = zip(*(t.split([ROWS, 32, 32, 32]) for t in data), strict=True)
    splits = Splits(*(tuple(t.clone() for t in part) for part in parts), allow_overlap=True)
    return Task(build, cross_entropy, splits, horizon=10_000, batch_size=batch_size, seed=seed)


def timed(call: Callable[[], Any], *, device: str) -> float:
    """Seconds that a call takes, the device's work included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def rate(call: Callable[[], Any], *, steps: int, seconds: float, device: str) -> float:
    """Steps a second of a call that takes `steps` steps, over about `seconds`."""
    done, spent = 0, 0.0
    while spent < seconds:
        spent += timed(call, device=device)
        done += steps
    return done / spent


def batched(trainer: InnerTrainer) -> Callable[[], Any]:
    """An interval of all runs, with clipping and all statistics on."""
    lr = np.full((INTERVAL, trainer.num_runs), 1e-3)
    momentum, ratio = np.full(trainer.num_runs, 0.9), np.full(trainer.num_runs, 4.0)
    return lambda: trainer.run(lr, momentum=momentum, clip_ratio=ratio)


def sequential(task: Task, *, device: str) -> Callable[[], Any]:
    """An interval of one run of the plain twin, which takes the same statistics."""
    run = ReferenceRun(task, device=device)
    return lambda: [run.step(lr=1e-3, momentum=0.9, clip_ratio=4.0) for _ in range(INTERVAL)]


def bare_loop(task: Task, *, device: str) -> Callable[[], Any]:
    """An interval of a loop that trains and clips and looks at nothing."""
    model = build_model(task).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    columns = [t.to(device) for t in task.splits.train]
    rows = torch.randint(len(columns[0]), (INTERVAL, task.batch_size), device=device)

    def interval() -> None:
        for row in rows:
            optimizer.zero_grad()
            task.loss(model, tuple(c[row] for c in columns)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return interval


class _Products(TorchDispatchMode):
    """Counts the matrix products of what runs under it, as (batch, m, k, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, int, int, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Lets an operation pass, and looks at it."""
        out = func(*args, **(kwargs or {}))
        if func in (aten.mm.default, aten.addmm.default):
            left, right = args[-2:]
            self.found[(1, *left.shape, right.shape[1])] += 1
        elif func in (aten.bmm.default, aten.baddbmm.default):
            left, right = args[-2:]
            self.found[(*left.shape, right.shape[2])] += 1
        elif func is aten.convolution.default:
            weight = args[1]
            columns = out.shape[0] * out.shape[2:].numel()
            self.found[1, len(weight), weight[0].numel(), columns] += 1
        elif func is aten.convolution_backward.default:
            grad, _, weight = args[:3]
            rows, inner = len(weight), weight[0].numel()
            columns = grad.shape[0] * grad.shape[2:].numel()
            for wanted, shape in zip(
                args[-1], ((inner, rows, columns), (rows, columns, inner)), strict=False
            ):
                self.found[(1, *shape)] += int(wanted)
        return out


def products(task: Task, num_runs: int, *, device: str) -> Callable[[], Any]:
    """The bare matrix products of `num_runs` inner steps, as one batched product each."""
    model = build_model(task)
    batch = tuple(column[: task.batch_size] for column in task.splits.train)
    with _Products() as counter:
        torch.autograd.grad(task.loss(model, batch), list(model.parameters()))
    pairs = [
        (
            torch.randn(num_runs * b, m, k, device=device),
            torch.randn(num_runs * b, k, n, device=device),
            times,
        )
        for (b, m, k, n), times in counter.found.items()
    ]

    def run() -> None:
        for left, right, times in pairs:
            for _ in range(times):
                torch.bmm(left, right)

    return run


def peak_memory(name: str, num_runs: int, siblings: int, *, device: str) -> float:
    """Peak memory of a run in bytes: what building and training `num_runs` of them adds."""
    if device.startswith("cuda"):
        return _peak_in_process(name, num_runs, siblings, device)
    # The peak of a process never falls: each measurement needs a fresh one.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_in_process, (name, num_runs, siblings, device))


def _peak_in_process(name: str, num_runs: int, siblings: int, device: str) -> float:
    on_cuda = device.startswith("cuda")
    tasks = [model_task(name, seed) for seed in range(num_runs // siblings)]
    small = [replace(task, seed=0) for task in tasks[:1]]
    batched(InnerTrainer(small, siblings=1, device=device))()

    def used(field: str) -> int:
        if on_cuda:
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    before = used("VmRSS")
    if not on_cuda:
        # Linux: forgets the peak that imports had, so that the next one is ours.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    batched(InnerTrainer(tasks, siblings=siblings, device=device))()
    return (used("VmHWM") - before) / num_runs


def spread(values: Sequence[float] | Any) -> list[float]:
    """Median, least and greatest."""
    return [float(np.median(values)), float(np.min(values)), float(np.max(values))]


def show(figure: Sequence[float], form: str) -> str:
    """A median with its range."""
    median, low, high = (format(v, form).strip() for v in figure)
    return f"{median} ({low} to {high})"
