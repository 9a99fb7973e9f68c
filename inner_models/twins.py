"""Stub until the real one lands."""

from torch import nn


def swap_twins(model: nn.Module) -> nn.Module:
    """Returns the model as it is."""
    return model
