"""Which part of a model raised an error: the module to name in a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def blame(model: nn.Module, call: Callable[[], object]) -> str | None:
    """The innermost module that was at work when a call failed.

    Args:
        model: whose modules are watched.
        call: runs the model, and fails.

    Returns:
        Such as ``"`encoder.rnn` (MyLayer)"``; None where the call succeeds, or fails outside of
        the model's modules.
    """
    at_work: list[str] = []
    handles = []
    for name, module in model.named_modules():
        label = f"`{name or 'the model'}` ({type(module).__name__})"

        def enter(_: nn.Module, __: Any, label: str = label) -> None:
            at_work.append(label)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            at_work.pop()

        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]
    try:
        call()
    except Exception:
        return at_work[-1] if at_work else None
    finally:
        for handle in handles:
            handle.remove()
    return None
