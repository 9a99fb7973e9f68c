"""Losses and metrics of the bundled families, as operations that `torch.func` batches well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pacesetter.inner_models.task import Batch, LossFn, Metric, Task


def cross_entropy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class logits (..., classes) and int64 labels (...).

    Equal to `torch.nn.functional.cross_entropy`, whose log_softmax over few classes is slow on a
    CPU where many runs are batched.
    """
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    right = shifted.gather(-1, labels[..., None])[..., 0]
    return (shifted.exp().sum(-1).log() - right).mean()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a model's logits; batch is (inputs, int64 labels)."""
    inputs, labels = batch
    return cross_entropy_of(model(inputs), labels)


def soft_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy to class probabilities; batch is (inputs, (rows, classes) of them)."""
    inputs, chances = batch
    logits: Tensor = model(inputs)
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    return (shifted.exp().sum(-1).log() - (chances * shifted).sum(-1)).mean()


def binary_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean binary cross-entropy; the model has one score a row, batch is (inputs, 0.0 or 1.0)."""
    inputs, labels = batch
    scores: Tensor = model(inputs)[..., 0]
    return (F.softplus(scores) - labels * scores).mean()


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of every token but the first, in nats; batch is (tokens,), int64."""
    (tokens,) = batch
    return cross_entropy_of(model(tokens[:, :-1]), tokens[:, 1:])


def mean_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error; batch is (inputs, targets)."""
    inputs, targets = batch
    # Not functional.mse_loss: its vmap rule does not broadcast targets that siblings share.
    error: Tensor = model(inputs) - targets
    return error.square().mean()


@dataclass(frozen=True)
class ScaledLoss:
    """A loss times the model's buffer ``loss_scale``, which differs from task to task."""

    loss: LossFn

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(model, batch) * model.get_buffer("loss_scale")


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """Share of rows whose greatest logit is that of their label; batch is (inputs, labels)."""
    inputs, labels = batch
    logits: Tensor = model(inputs)
    return (logits.argmax(-1) == labels).to(logits.dtype).mean()


def binary_accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """Share of rows on the right side of zero; batch is (inputs, 0.0 or 1.0)."""
    inputs, labels = batch
    scores: Tensor = model(inputs)[..., 0]
    return ((scores > 0) == (labels > 0.5)).to(scores.dtype).mean()


def exponential(mean: float) -> float:
    """The exponential function; infinite where it is too large for a number.

    >>> exponential(0.0), exponential(1e3)
    (1.0, inf)
    """
    return math.exp(mean) if not mean > 700 else math.inf


ACCURACY = Metric("accuracy", accuracy)
BINARY_ACCURACY = Metric("accuracy", binary_accuracy)
PERPLEXITY = Metric("perplexity", next_token_loss, exponential, higher_is_better=False)

_METRIC_OF_LOSS: dict[LossFn, Metric] = {
    cross_entropy: ACCURACY,
    binary_cross_entropy: BINARY_ACCURACY,
    next_token_loss: PERPLEXITY,
}


def metric_of(task: Task) -> Metric | None:
    """The task's metric: its own, or that of its loss, where it is one of the bundled losses.

    >>> from pacesetter.inner_models.registry import fixed_task
    >>> metric_of(fixed_task("digits-mlp", 0)).name
    'accuracy'
    """
    if task.metric is not None:
        return task.metric
    loss = task.loss.loss if isinstance(task.loss, ScaledLoss) else task.loss
    try:
        return _METRIC_OF_LOSS.get(loss)
    except TypeError:  # a loss that cannot be hashed is not one of the bundled ones
        return None


def with_label_noise(
    labels: Tensor, classes: int, share: float, generator: torch.Generator
) -> Tensor:
    """Labels of which a share is replaced by random ones."""
    wrong = torch.rand(labels.shape, generator=generator) < share
    return torch.where(wrong, torch.randint(classes, labels.shape, generator=generator), labels)
