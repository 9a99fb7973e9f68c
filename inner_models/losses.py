"""Losses that torch.func batches well, each equal to the one in `torch.nn.functional`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pacesetter.inner_models.task import Batch


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


def mean_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error; batch is (inputs, targets)."""
    inputs, targets = batch
    # Not functional.mse_loss: its vmap rule does not broadcast targets that siblings share.
    error: Tensor = model(inputs) - targets
    return error.square().mean()


def with_label_noise(
    labels: Tensor, classes: int, share: float, generator: torch.Generator
) -> Tensor:
    """Labels of which a share is replaced by random ones."""
    wrong = torch.rand(labels.shape, generator=generator) < share
    return torch.where(wrong, torch.randint(classes, labels.shape, generator=generator), labels)
