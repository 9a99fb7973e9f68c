"""What people quote beside the loss: accuracy of classifiers, perplexity of language models."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pacesetter.inner_models.families.generated import ScaledLoss
from pacesetter.inner_models.families.logistic import binary_cross_entropy
from pacesetter.inner_models.losses import cross_entropy
from pacesetter.inner_models.networks.transformer import next_token_loss
from pacesetter.inner_models.task import Batch, LossFn, Metric, Task


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

_NATURAL: dict[LossFn, Metric] = {
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
        return _NATURAL.get(loss)
    except TypeError:  # a loss that cannot be hashed is not one of ours
        return None
