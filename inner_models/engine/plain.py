"""One inner run in plain PyTorch: the readable twin of `trainer.py`.

The oracle of the tests and the sequential side of the throughput benchmark. It uses `torch.optim`
and an ordinary loop, and takes the same per-step statistics as the batched trainer, in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from pacesetter.inner_models.engine.data import PlainData, build_model
from pacesetter.inner_models.task import OptimizerConfig, SplitName, Task
from pacesetter.inner_models.watch.signals import COUNTED_AT_MOST, NORM_RATE


def make_torch_optimizer(
    params: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimizer of `torch.optim` that a configuration names."""
    c = config
    if c.name == "sgd":
        return torch.optim.SGD(params, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
    if c.name == "rmsprop":
        return torch.optim.RMSprop(
            params,
            lr=c.lr,
            alpha=c.beta2,
            eps=c.eps,
            weight_decay=c.weight_decay,
            momentum=c.momentum,
        )
    kind = torch.optim.AdamW if c.name == "adamw" else torch.optim.Adam
    return kind(
        params, lr=c.lr, betas=(c.momentum, c.beta2), eps=c.eps, weight_decay=c.weight_decay
    )


class ReferenceRun:
    """Trains one run of a task, with the initial weights and the batches that `InnerTrainer` has.

    Attributes:
        model: the module in training.
        losses: training loss of each step so far.
        norms: gradient norm of each step before clipping.
        clipped: whether each step was clipped.
        skipped: whether each step was skipped because its gradient norm was not finite.
    """

    def __init__(
        self,
        task: Task,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.task = task
        self._device, self._dtype = torch.device(device), dtype
        self.model = build_model(task).to(self._device, dtype)
        self._data = PlainData(task, device=self._device, dtype=dtype)
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_torch_optimizer(params, task.optimizer)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.clipped: list[bool] = []
        self.skipped: list[bool] = []
        self._norm_mean, self._norm_count = 0.0, 0

    def step(self, *, lr: float, momentum: float, clip_ratio: float = math.inf) -> float:
        """One inner step with the given hyperparameters; returns the training loss."""
        batch = self._data.next_batch()
        loss = self.task.loss(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm(grads))
        threshold = clip_ratio * self._norm_mean if self._norm_count else math.inf
        clip = math.isfinite(norm) and norm > threshold
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
        if clip:
            for grad in grads:
                grad.mul_(threshold / norm)
        if math.isfinite(norm):
            self.optimizer.step()
            counted = min(norm, COUNTED_AT_MOST * self._norm_mean) if self._norm_count else norm
            rate = max(1 / (self._norm_count + 1), NORM_RATE)
            self._norm_mean += rate * (counted - self._norm_mean)
            self._norm_count += 1
        self.losses.append(float(loss.detach()))
        self.norms.append(norm)
        self.clipped.append(clip)
        self.skipped.append(not math.isfinite(norm))
        return self.losses[-1]

    @torch.no_grad()
    def evaluate(self, split: SplitName) -> float:
        """Mean loss on a whole split, in evaluation mode."""
        self.model.eval()
        try:
            return float(self.task.loss(self.model, self._data.split(split)))
        finally:
            self.model.train()
