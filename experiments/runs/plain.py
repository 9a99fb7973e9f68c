"""Plain runs: one model in an ordinary loop, for optimizers of packages, which cannot be batched.

Initial weights, batch order and the skipping of broken gradients are those of the batched runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from pacesetter.envs.actions import interval_ends
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.schedules import number
from pacesetter.experiments.runs.batched import (
    RunOptions,
    Stopwatch,
    check_points,
    finite_mean,
    segments,
)
from pacesetter.experiments.runs.records import RunRecord, least, valid_points
from pacesetter.inner_models.engine.data import PlainData, build_model, task_seeds
from pacesetter.inner_models.losses import metric_of
from pacesetter.inner_models.task import LossFn, SplitName, Task

EVAL_ROWS = 2**14
"""Rows of a split that are evaluated at a time."""
NORM_BATCHES = 50
"""Batches from which running means of BatchNorm are taken anew for an average of weights."""


class PlainRun:
    """A model, its data and the optimizer of a package, for a task with a seed."""

    def __init__(
        self,
        task: Task,
        configured: Configured,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        baseline = configured.baseline
        assert callable(baseline.optimizer)
        self.task = task
        self._device, self._dtype = torch.device(device), dtype
        self.model = build_model(task).to(self._device, dtype)
        self._data = PlainData(task, device=self._device, dtype=dtype)
        self._params = [p for p in self.model.parameters() if p.requires_grad]
        hyper = baseline.hyperparameters(configured.setting, task)
        self.optimizer = baseline.optimizer(self._params, hyper, task)
        self._scheduled = baseline.schedule is not None
        # Schedule-Free keeps two sets of weights: one to take gradients at, one to evaluate.
        self._modes = hasattr(self.optimizer, "train") and hasattr(self.optimizer, "eval")
        self._base = [group["lr"] for group in self.optimizer.param_groups]
        self._mode(train=True)

    def _mode(self, *, train: bool) -> None:
        self.model.train(train)
        if self._modes:
            switch: Callable[[], None] = getattr(self.optimizer, "train" if train else "eval")
            switch()

    def step(self, factor: float) -> float:
        """One inner step at a multiple of the learning rate; returns the training loss."""
        if self._scheduled:
            for group, lr in zip(self.optimizer.param_groups, self._base, strict=True):
                group["lr"] = lr * factor
        loss = self.task.loss(self.model, self._data.next_batch())
        self.optimizer.zero_grad()
        loss.backward()
        for param in self._params:
            if param.grad is not None and param.grad.is_sparse:  # hardly an optimizer takes one
                param.grad = param.grad.to_dense()
        grads = [p.grad for p in self._params if p.grad is not None]
        if bool(nn.utils.get_total_norm(grads).isfinite()):
            self.optimizer.step()
        return float(loss.detach())

    @property
    def lr(self) -> float:
        """The learning rate in effect: Prodigy's includes its estimate of the distance."""
        group = self.optimizer.param_groups[0]
        return float(group.get("scheduled_lr", group["lr"]) * group.get("d", 1.0))

    @torch.no_grad()
    def evaluate(self, split: SplitName, what: LossFn | None = None) -> float:
        """Mean loss, or mean of something written like one, on a whole split."""
        data, total = self._data.split(split), 0.0
        rows = len(data[0])
        self._mode(train=False)
        if self._modes:
            self._renew_norms()
        try:
            for start in range(0, rows, EVAL_ROWS):
                part = tuple(t[start : start + EVAL_ROWS] for t in data)
                total += float((what or self.task.loss)(self.model, part)) * len(part[0])
        finally:
            self._mode(train=True)
        return total / rows

    def _renew_norms(self) -> None:
        """Takes the running means of BatchNorm from the weights that are evaluated.

        Training has left those of other weights. So does the package's documentation advise.
        """
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        size = self.task.batch_size
        last = min(len(self._data.train[0]), NORM_BATCHES * size) - size
        devices = [self._device] if self._device.type == "cuda" else []
        self.model.train()
        with torch.random.fork_rng(devices=devices):
            for start in range(0, last + 1, size):
                self.task.loss(self.model, tuple(t[start : start + size] for t in self._data.train))
        self.model.eval()


def run_plain(task: Task, configured: Configured, *, seed: int, options: RunOptions) -> RunRecord:
    """Trains one run of a baseline whose optimizer is a factory; the task's seed is replaced."""
    task = task.with_seed(seed)
    baseline, device = configured.baseline, torch.device(options.device)
    hyper = baseline.hyperparameters(configured.setting, task)
    factors = baseline.factors(task.horizon, hyper)
    feedback = None if baseline.feedback is None else baseline.feedback(hyper)
    checks = check_points(task.horizon)
    steps = interval_ends(task.horizon, options.num_intervals)
    watch, scale = Stopwatch(), 1.0
    losses: list[float] = []
    lrs: list[float] = []
    curve, mean_lrs, valid = [], [], {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(task_seeds(task)[2])
        run = PlainRun(task, configured, device=device)
        untrained = run.evaluate("outer_valid")
        for start, end in segments(task.horizon, steps, checked=feedback is not None):
            with watch:
                for i in range(start, end):
                    losses.append(run.step(scale * factors[i]))
                    lrs.append(run.lr)
                if feedback is not None and end in checks:
                    scale = feedback.factor(run.evaluate("inner_valid"))
            if end in steps:
                curve.append(float(finite_mean(np.array(losses)[:, None])[0]))
                mean_lrs.append(float(np.mean(lrs)))
                losses, lrs = [], []
                if end in valid_points(steps):
                    valid[end] = run.evaluate("outer_valid")
        metric = metric_of(task)
        return RunRecord(
            task=task.name,
            arm=baseline.name,
            setting=dict(configured.setting),
            seed=seed,
            lr=number(hyper, "lr", math.nan),
            inner_steps=task.horizon,
            untrained=untrained,
            losses={
                split: valid[steps[-1]] if split == "outer_valid" else run.evaluate(split)
                for split in options.evaluate
            },
            best={"outer_valid": least(list(valid.values()))},
            metric_name=None if metric is None else metric.name,
            metric=None
            if metric is None
            else {s: metric.value(run.evaluate(s, metric.measure)) for s in options.evaluate},
            steps=list(steps),
            curve=curve,
            lrs=mean_lrs,
            momenta=[number(hyper, "momentum", 0.9)] * len(steps),
            clip_thresholds=[math.nan] * len(steps),
            valid_steps=list(valid),
            valid_curve=list(valid.values()),
            wall_seconds=watch.seconds,
        )
