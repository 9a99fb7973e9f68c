"""What users hand to the plug-in, checked: errors say what was expected and what came."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor


def positive_integer(value: Any, name: str) -> int:
    """A count, of whatever integer type.

    Raises:
        ValueError: it is no integer, or not positive.

    >>> positive_integer(0, "total_steps")
    Traceback (most recent call last):
    ValueError: Expected positive integer total_steps, but got 0
    """
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f"Expected positive integer {name}, but got {value!r}")
    return number


def count(value: Any, name: str) -> int:
    """A count that may be zero.

    Raises:
        ValueError: it is no integer, or negative.

    >>> count(-1, "warmup_steps")
    Traceback (most recent call last):
    ValueError: Expected integer warmup_steps of zero or more, but got -1
    """
    number = _integer(value)
    if number is None or number < 0:
        raise ValueError(f"Expected integer {name} of zero or more, but got {value!r}")
    return number


def one_number(value: Any, name: str) -> Tensor:
    """A loss as a tensor of shape (1,), detached, on whatever device it is.

    Raises:
        TypeError: it is neither a tensor nor a number.
        ValueError: it is a tensor of another size than 1.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, but got shape {tuple(value.shape)}")
        return value.detach().reshape(1)
    if not isinstance(value, str | bytes):
        try:
            return torch.tensor([float(value)], dtype=torch.float64)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a tensor or a number, but got {type(value).__name__}")


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
